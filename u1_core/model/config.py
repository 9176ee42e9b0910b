"""What a checkpoint's `config.json` says about the network, and every tensor's name and shape that follows from it.

Source of the fields: SenseNova-U1's published configs. The three kinds differ in the head (`use_pixel_head`: U1.5)
and in the feed-forward block (`num_experts`: A3B, mixture of experts).
"""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from u1_core.errors import U1Error

UNDERSTANDING = ""
GENERATION = "_mot_gen"
"""The two towers, as the suffix their tensors carry in a checkpoint."""

LAYERS = "language_model.model.layers"
EMBED_TOKENS = "language_model.model.embed_tokens.weight"
LM_HEAD = "language_model.lm_head.weight"
VISION = "vision_model.embeddings"
VISION_GEN = "fm_modules.vision_model_mot_gen.embeddings"
TIMESTEP_EMBEDDER = "fm_modules.timestep_embedder"
NOISE_SCALE_EMBEDDER = "fm_modules.noise_scale_embedder"
FM_HEAD = "fm_modules.fm_head"
SINUSOID_DIM = 256
ATTENTION_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP_PROJECTIONS = ("gate_proj", "up_proj", "down_proj")

Shape = tuple[int, ...]


@dataclass(frozen=True)
class MoeConfig:
    """One tower's mixture of experts: how many there are, how many a token visits, and each one's inner width."""

    experts: int
    experts_per_token: int
    expert_width: int
    normalise_top_k: bool


@dataclass(frozen=True)
class U1Config:
    """The network's dimensions. Widths are in features, patch sizes in pixels."""

    layers: int
    width: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp_width: int
    rms_norm_eps: float
    vocab_size: int
    rope_theta: float
    rope_theta_hw: float
    vision_width: int
    vision_rope_theta: float
    patch_size: int
    merge: int
    """Patches along one side of a token: a token covers (patch_size * merge)² pixels."""
    pixel_head: bool
    head_width: int
    """Inner width of the head. The released code fixes it (4096, or 1024 for the pixel head) whatever the config says;
    a checkpoint's own weight decides (`with_head_width_of`)."""
    noise_scale: float
    noise_scale_mode: str
    noise_scale_base_tokens: int
    noise_scale_max: float
    noise_scale_embedding: bool
    t_eps: float
    native_tokens: int
    """Tokens of a picture at the size the model is made for: 4096 in the released ones, 2048 x 2048 pixels."""
    moe: MoeConfig | None = None
    moe_gen: MoeConfig | None = None
    dense_layers: frozenset[int] = frozenset()
    """Layers of a mixture of experts whose understanding side is an ordinary MLP."""

    @property
    def kind(self) -> str:
        """ "u1", "u1.5" or "a3b"."""
        if self.moe:
            return "a3b"
        return "u1.5" if self.pixel_head else "u1"

    @property
    def token_pixels(self) -> int:
        """Side of the square of pixels that one picture token covers (32 in the released models)."""
        return self.patch_size * self.merge

    def with_head_width_of(self, shapes: Mapping[str, Shape]) -> "U1Config":
        """This config with the head as wide as a checkpoint's tensors say it is."""
        first = shapes.get(f"{FM_HEAD}.conv1.weight" if self.pixel_head else f"{FM_HEAD}.0.weight")
        return replace(self, head_width=first[0]) if first else self

    @property
    def kv_token_bytes(self) -> int:
        """Bytes of one token's K and V over all layers, at two bytes a number."""
        return self.layers * 2 * self.kv_heads * self.head_dim * 2

    @property
    def native_pixels(self) -> int:
        """Pixels of a picture at the size the model is made for."""
        return self.native_tokens * self.token_pixels**2

    def noise_scale_for(self, tokens: int) -> float:
        """Standard deviation of the noise for a picture of `tokens` tokens (U1_FACTS, "Flow")."""
        scale = self.noise_scale
        if self.noise_scale_mode in ("resolution", "dynamic", "dynamic_sqrt"):
            scale *= math.sqrt(tokens / self.noise_scale_base_tokens)
        if self.noise_scale_mode == "dynamic_sqrt":
            scale = math.sqrt(scale)
        return min(scale, self.noise_scale_max)

    def moe_of(self, tower: str, layer: int) -> MoeConfig | None:
        """The mixture of experts of `tower` at `layer`, or None where that block is a plain MLP."""
        if tower == GENERATION:
            return self.moe_gen
        return None if layer in self.dense_layers else self.moe

    @classmethod
    def from_file(cls, path: Path) -> "U1Config":
        """Read a config.json. Raises U1Error naming the file and the field."""
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise U1Error(f"{path}: there is no such file; a model folder needs its config.json") from None
        except (OSError, ValueError, RecursionError) as problem:
            raise U1Error(f"{path}: cannot be read as JSON ({problem})") from None
        try:
            return cls.from_dict(raw)
        except U1Error as problem:
            raise U1Error(f"{path}: {problem}") from None

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> "U1Config":
        """Build from the parsed config.json. Raises U1Error for anything this engine does not compute."""
        if not isinstance(raw, Mapping):
            raise U1Error(f"expected an object of settings, found {type(raw).__name__}")
        if raw.get("model_type") != "neo_chat":
            raise U1Error(f"model_type is {raw.get('model_type')!r}, not 'neo_chat': this is not a SenseNova-U1 model")
        llm, vision = _section(raw, "llm_config"), _section(raw, "vision_config")
        _refuse_unsupported(raw, llm)
        pixel_head = bool(raw.get("use_pixel_head", False))
        config = cls(
            layers=_number(llm, "num_hidden_layers", int),
            width=_number(llm, "hidden_size", int),
            heads=_number(llm, "num_attention_heads", int),
            kv_heads=_number(llm, "num_key_value_heads", int),
            head_dim=_number(llm, "head_dim", int),
            mlp_width=_number(llm, "intermediate_size", int),
            rms_norm_eps=_number(llm, "rms_norm_eps", float),
            vocab_size=_number(llm, "vocab_size", int),
            rope_theta=_number(llm, "rope_theta", float),
            rope_theta_hw=_number(llm, "rope_theta_hw", float, 10000.0),
            vision_width=_number(vision, "hidden_size", int),
            vision_rope_theta=_number(vision, "rope_theta_vision", float, 10000.0),
            patch_size=_number(vision, "patch_size", int),
            merge=round(1 / _number(raw, "downsample_ratio", float, 0.5)),
            pixel_head=pixel_head,
            head_width=1024 if pixel_head else 4096,
            noise_scale=_number(raw, "noise_scale", float, 1.0),
            noise_scale_mode=str(raw.get("noise_scale_mode", "resolution")),
            noise_scale_base_tokens=_number(raw, "noise_scale_base_image_seq_len", int, 64),
            noise_scale_max=_number(raw, "noise_scale_max_value", float, 8.0),
            noise_scale_embedding=bool(raw.get("add_noise_scale_embedding", True)),
            t_eps=_number(raw, "t_eps", float, 0.05),
            native_tokens=_number(raw, "max_image_seq_len", int, 4096),
            **_moe_fields(llm),
        )
        config._check()
        return config

    def _check(self) -> None:
        if self.head_dim % 4 or self.heads % self.kv_heads:
            raise U1Error(
                f"head_dim {self.head_dim} must divide by 4 and num_attention_heads {self.heads} "
                f"by num_key_value_heads {self.kv_heads}"
            )
        if self.pixel_head and self.token_pixels != 32:
            raise U1Error(f"use_pixel_head makes 32 pixels a token, but patch_size gives {self.token_pixels}")


def _section(raw: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    section = raw.get(key)
    if not isinstance(section, Mapping):
        raise U1Error(f"{key} is missing or not an object")
    return section


_REQUIRED = object()


def _number(section: Mapping[str, Any], key: str, kind: type, default: Any = _REQUIRED) -> Any:
    value = section.get(key, default)
    if value is _REQUIRED:
        raise U1Error(f"{key} is missing")
    if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0 or kind(value) != value:
        raise U1Error(f"{key} is {value!r}, expected a positive {'whole ' if kind is int else ''}number")
    return kind(value)


def _refuse_unsupported(raw: Mapping[str, Any], llm: Mapping[str, Any]) -> None:
    """Settings that change what is computed and that no released checkpoint has: better refused than ignored."""
    wanted = {
        "concat_time_token_num": (raw.get("concat_time_token_num", 0), 0),
        "use_adaLN": (raw.get("use_adaLN", False), False),
        "extra_num_layers_post": (raw.get("extra_num_layers_post", 0), 0),
        "tie_word_embeddings": (raw.get("tie_word_embeddings", False), False),
        "llm_config.attention_bias": (llm.get("attention_bias", False), False),
        "llm_config.rope_scaling": (llm.get("rope_scaling"), None),
        "llm_config.use_sliding_window": (llm.get("use_sliding_window", False), False),
        "llm_config.hidden_act": (llm.get("hidden_act", "silu"), "silu"),
    }
    for key, (value, supported) in wanted.items():
        if value != supported:
            raise U1Error(f"{key} is {value!r}; only {supported!r} is supported")
    if raw.get("fm_head_layers", 2) > 2 and not raw.get("use_pixel_head", False):
        raise U1Error(f"fm_head_layers is {raw['fm_head_layers']}; only the two-layer head is supported")


def _moe_fields(llm: Mapping[str, Any]) -> dict[str, Any]:
    if not llm.get("num_experts") or llm["num_experts"] <= 1:
        return {}
    normalise = bool(llm.get("norm_topk_prob", True))
    moe = MoeConfig(
        _number(llm, "num_experts", int),
        _number(llm, "num_experts_per_tok", int),
        _number(llm, "moe_intermediate_size", int),
        normalise,
    )
    moe_gen = MoeConfig(
        _number(llm, "gen_num_experts", int, moe.experts),
        _number(llm, "gen_num_experts_per_tok", int, moe.experts_per_token),
        _number(llm, "gen_moe_intermediate_size", int, moe.expert_width),
        normalise,
    )
    sparse_step = llm.get("decoder_sparse_step", 1)
    only_mlp = set(llm.get("mlp_only_layers") or ())
    dense = {i for i in range(llm["num_hidden_layers"]) if i in only_mlp or (i + 1) % sparse_step}
    return {"moe": moe, "moe_gen": moe_gen, "dense_layers": frozenset(dense)}


def module_name(tower: str, layer: int, local: str) -> str:
    """A layer's module by its checkpoint path: (GENERATION, 3, "self_attn.q_proj") -> "…3.self_attn.q_proj_mot_gen".

    The suffix sits on the projection in attention (`q_proj_mot_gen`) and on the block in the feed-forward
    (`mlp_mot_gen.gate_proj`).
    """
    if local.startswith("mlp."):
        return f"{LAYERS}.{layer}.mlp{tower}.{local[4:]}"
    return f"{LAYERS}.{layer}.{local}{tower}"


def tensor_shapes(config: U1Config) -> dict[str, Shape]:
    """Every tensor of a checkpoint with its shape, from the config alone."""
    shapes: dict[str, Shape] = {
        EMBED_TOKENS: (config.vocab_size, config.width),
        LM_HEAD: (config.vocab_size, config.width),
        "language_model.model.norm.weight": (config.width,),
        "language_model.model.norm_mot_gen.weight": (config.width,),
    }
    for prefix in (VISION, VISION_GEN):
        shapes |= _vision_shapes(config, prefix)
    embedders = [TIMESTEP_EMBEDDER] + [NOISE_SCALE_EMBEDDER] * config.noise_scale_embedding
    for prefix in embedders:
        shapes |= _linear_shapes(f"{prefix}.mlp.0", config.width, SINUSOID_DIM)
        shapes |= _linear_shapes(f"{prefix}.mlp.2", config.width, config.width)
    shapes |= _head_shapes(config)
    for layer in range(config.layers):
        for tower in (UNDERSTANDING, GENERATION):
            shapes.update(layer_tensor_shapes(config, tower, layer))
    return shapes


def layer_tensor_shapes(config: U1Config, tower: str, layer: int) -> Iterator[tuple[str, Shape]]:
    """Names and shapes of one layer of one tower, in the order the layer uses them."""
    width, half = config.width, config.head_dim // 2
    q_width, kv_width = config.heads * config.head_dim, config.kv_heads * config.head_dim

    def tensor(local: str, *shape: int) -> tuple[str, Shape]:
        return f"{module_name(tower, layer, local)}.weight", shape

    yield tensor("input_layernorm", width)
    for local, rows in (("q_proj", q_width), ("k_proj", kv_width), ("v_proj", kv_width)):
        yield tensor(f"self_attn.{local}", rows, width)
    for local in ("q_norm", "q_norm_hw", "k_norm", "k_norm_hw"):
        yield tensor(f"self_attn.{local}", half)
    yield tensor("self_attn.o_proj", width, q_width)
    yield tensor("post_attention_layernorm", width)
    moe = config.moe_of(tower, layer)
    if moe is None:
        blocks, inner = [""], config.mlp_width
    else:
        yield tensor("mlp.gate", moe.experts, width)
        blocks, inner = [f"experts.{i}." for i in range(moe.experts)], moe.expert_width
    for block in blocks:
        yield tensor(f"mlp.{block}gate_proj", inner, width)
        yield tensor(f"mlp.{block}up_proj", inner, width)
        yield tensor(f"mlp.{block}down_proj", width, inner)


def linear_modules(config: U1Config) -> dict[str, tuple[int, int]]:
    """Every linear map a LoRA may sit on: module path -> (out_features, in_features), from the config alone.

    The embedders of tokens are left out; convolutions are not linear maps.
    """
    return {
        name.removesuffix(".weight"): (shape[0], shape[1])
        for name, shape in tensor_shapes(config).items()
        if name.endswith(".weight") and len(shape) == 2 and name not in (EMBED_TOKENS, LM_HEAD)
    }


def _linear_shapes(module: str, rows: int, columns: int) -> dict[str, Shape]:
    return {f"{module}.weight": (rows, columns), f"{module}.bias": (rows,)}


def _vision_shapes(config: U1Config, prefix: str) -> dict[str, Shape]:
    patch, merge = config.patch_size, config.merge
    return {
        f"{prefix}.patch_embedding.weight": (config.vision_width, 3, patch, patch),
        f"{prefix}.patch_embedding.bias": (config.vision_width,),
        f"{prefix}.dense_embedding.weight": (config.width, config.vision_width, merge, merge),
        f"{prefix}.dense_embedding.bias": (config.width,),
    }


def _head_shapes(config: U1Config) -> dict[str, Shape]:
    inner = config.head_width
    if config.pixel_head:
        return {
            f"{FM_HEAD}.conv1.weight": (inner, config.width // 4, 3, 3),
            f"{FM_HEAD}.conv1.bias": (inner,),
            f"{FM_HEAD}.conv2.weight": (192, inner // 4, 3, 3),
            f"{FM_HEAD}.conv2.bias": (192,),
        }
    pixels = 3 * config.token_pixels**2
    return _linear_shapes(f"{FM_HEAD}.0", inner, config.width) | _linear_shapes(f"{FM_HEAD}.2", pixels, inner)
