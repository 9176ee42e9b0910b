"""The dimensions of the published models, for plans made before anything is downloaded."""

from u1_core.errors import U1Error, nearest
from u1_core.model.config import U1Config

_LLM_8B = {
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "num_hidden_layers": 42,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "rms_norm_eps": 1e-6,
    "rope_theta": 5e6,
    "vocab_size": 151936,
}
_LLM_A3B = {
    **_LLM_8B,
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "num_hidden_layers": 48,
    "num_key_value_heads": 4,
    "rope_theta": 1e7,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 768,
    "gen_num_experts": 32,
    "gen_num_experts_per_tok": 8,
    "gen_moe_intermediate_size": 768,
}
_SHARED = {
    "model_type": "neo_chat",
    "patch_size": 16,
    "noise_scale_max_value": 8.0,
    "vision_config": {"hidden_size": 1024, "patch_size": 16},
}

RELEASED = {
    "U1-8B": {**_SHARED, "llm_config": _LLM_8B},
    "U1.5-8B": {**_SHARED, "llm_config": _LLM_8B, "use_pixel_head": True, "noise_scale_max_value": 16.0},
    "U1-A3B": {**_SHARED, "llm_config": _LLM_A3B},
}
"""Name -> what of its config.json this engine reads."""


def released_config(name: str) -> U1Config:
    """The config of a published model. Raises U1Error for a name that is none."""
    if name not in RELEASED:
        raise U1Error(f"there is no published model {name!r}{nearest(name, RELEASED)}; known are {', '.join(RELEASED)}")
    return U1Config.from_dict(RELEASED[name])
