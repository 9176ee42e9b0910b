"""Tiny configs of the three kinds, the released ones, and adapters filled with numbers."""

import copy
import json

import pytest
import torch

from u1_core.lora.adapter import Adapter, LoraModule
from u1_core.lora.plan import plan_lora
from u1_core.model.config import U1Config

TINY = {
    "model_type": "neo_chat",
    "llm_config": {
        "num_hidden_layers": 2,
        "hidden_size": 32,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "intermediate_size": 48,
        "rms_norm_eps": 1e-6,
        "vocab_size": 64,
        "rope_theta": 5e6,
    },
    "vision_config": {"hidden_size": 8, "patch_size": 16},
}
U1_8B = {"num_hidden_layers": 42, "hidden_size": 4096, "num_attention_heads": 32, "num_key_value_heads": 8}
U1_8B |= {"head_dim": 128, "intermediate_size": 12288, "vocab_size": 151936}
A3B = {"num_hidden_layers": 48, "hidden_size": 2048, "num_attention_heads": 32, "num_key_value_heads": 4}
A3B |= {"head_dim": 128, "intermediate_size": 6144, "vocab_size": 151936, "num_experts": 128, "num_experts_per_tok": 8}
A3B |= {"moe_intermediate_size": 768, "gen_num_experts": 32, "gen_num_experts_per_tok": 8}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8, "gen_num_experts": 3}


def raw_config(llm=None, vision=None, **top):
    raw = copy.deepcopy(TINY)
    raw["llm_config"] |= llm or {}
    raw["vision_config"] |= vision or {}
    return raw | top


RAW = {
    "u1": raw_config(),
    "u1.5": raw_config(use_pixel_head=True, noise_scale_max_value=16.0),
    "a3b": raw_config(llm=EXPERTS),
    "U1-8B": raw_config(llm=U1_8B, vision={"hidden_size": 1024}),
    "U1.5-8B": raw_config(llm=U1_8B, vision={"hidden_size": 1024}, use_pixel_head=True),
    "A3B": raw_config(llm=A3B, vision={"hidden_size": 1024}),
}


@pytest.fixture(scope="session")
def configs():
    """Configs by name: "u1", "u1.5", "a3b" are tiny; "U1-8B", "U1.5-8B" and "A3B" have the released sizes."""
    return {name: U1Config.from_dict(raw) for name, raw in RAW.items()}


@pytest.fixture
def filled(configs):
    """(config name, spec) -> an adapter whose every number is random, as after training."""

    def make(name, spec="attn=r4a2;mlp=r2a2", seed=0):
        generator = torch.Generator().manual_seed(seed)
        modules = {
            module.path: LoraModule(
                torch.randn(module.rank, module.in_features, generator=generator),
                torch.randn(module.out_features, module.rank, generator=generator),
                module.alpha,
            )
            for module in plan_lora(configs[name], spec).modules
        }
        return Adapter(modules, kinds=frozenset({configs[name].kind}))

    return make


@pytest.fixture
def model_config(shared):
    """Name of a released config -> the config."""
    return lambda name: U1Config.from_dict(json.loads((shared / "u1" / name).read_text(encoding="utf-8")))
