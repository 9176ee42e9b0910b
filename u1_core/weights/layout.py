"""How one layer's checkpoint tensors lie in memory: one flat buffer a layer, so that it can move in one copy.

The fields of `LayerWeights` are views into the buffer, each starting at a multiple of 256 bytes. Projections that
are multiplied together are stacked: q, k and v; gate and up; all experts.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from u1_core.model.config import Shape, U1Config, module_name
from u1_core.model.views import LayerWeights, MlpWeights, MoeWeights

ALIGNMENT_BYTES = 256


@dataclass(frozen=True, slots=True)
class LayerBuffer:
    """One layer in one piece of memory: `flat` is one-dimensional, `weights` are views into it."""

    flat: Tensor
    weights: LayerWeights


def layer_bytes(config: U1Config, tower: str, index: int, dtype: torch.dtype) -> int:
    """Bytes of the flat buffer of one layer."""
    return sum(_padded(shape, dtype) for shape in _fields(config, tower, index).values()) * dtype.itemsize


def allocate_layer(
    config: U1Config, tower: str, index: int, dtype: torch.dtype, device: str | torch.device, pin: bool = False
) -> LayerBuffer:
    """A layer's buffer, not yet filled. `pin` takes page-locked host memory, for copies to a GPU."""
    elements = layer_bytes(config, tower, index, dtype) // dtype.itemsize
    flat = torch.empty(elements, dtype=dtype, device=device, pin_memory=pin)
    return LayerBuffer(flat, layer_views(config, tower, index, flat))


def layer_views(config: U1Config, tower: str, index: int, flat: Tensor) -> LayerWeights:
    """A layer's fields as views of `flat`, which may be longer than `layer_bytes` asks for."""
    views, start = {}, 0
    for field, shape in _fields(config, tower, index).items():
        views[field] = flat[start : start + math.prod(shape)].view(shape)
        start += _padded(shape, flat.dtype)
    gate_up, down = views.pop("gate_up"), views.pop("down")
    router = views.pop("router", None)
    mlp = MlpWeights(gate_up, down) if router is None else MoeWeights(router, gate_up, down)
    return LayerWeights(**views, mlp=mlp)


def layer_slices(config: U1Config, tower: str, index: int, layer: LayerWeights) -> Iterator[tuple[str, Tensor]]:
    """Each checkpoint tensor of a layer: (name, the part of `layer` that holds it), both to load and to save."""

    def named(local: str, view: Tensor) -> tuple[str, Tensor]:
        return f"{module_name(tower, index, local)}.weight", view

    q_rows, kv_rows = config.heads * config.head_dim, config.kv_heads * config.head_dim
    q, k, v = layer.qkv.split([q_rows, kv_rows, kv_rows])
    yield named("input_layernorm", layer.input_norm)
    yield named("self_attn.q_proj", q)
    yield named("self_attn.k_proj", k)
    yield named("self_attn.v_proj", v)
    yield named("self_attn.q_norm", layer.q_norm[0])
    yield named("self_attn.q_norm_hw", layer.q_norm[1])
    yield named("self_attn.k_norm", layer.k_norm[0])
    yield named("self_attn.k_norm_hw", layer.k_norm[1])
    yield named("self_attn.o_proj", layer.o)
    yield named("post_attention_layernorm", layer.post_norm)
    if isinstance(layer.mlp, MlpWeights):
        blocks = [("mlp", layer.mlp.gate_up, layer.mlp.down)]
    else:
        yield named("mlp.gate", layer.mlp.router)
        experts = zip(layer.mlp.gate_up, layer.mlp.down, strict=True)
        blocks = [(f"mlp.experts.{i}", gate_up, down) for i, (gate_up, down) in enumerate(experts)]
    for block, gate_up, down in blocks:
        gate, up = gate_up.chunk(2)
        yield named(f"{block}.gate_proj", gate)
        yield named(f"{block}.up_proj", up)
        yield named(f"{block}.down_proj", down)


def _fields(config: U1Config, tower: str, index: int) -> dict[str, Shape]:
    """The stacked tensors of one layer, in the order they lie in the buffer."""
    width, q_width = config.width, config.heads * config.head_dim
    fields: dict[str, Shape] = {
        "input_norm": (width,),
        "qkv": (q_width + 2 * config.kv_heads * config.head_dim, width),
        "q_norm": (2, config.head_dim // 2),
        "k_norm": (2, config.head_dim // 2),
        "o": (width, q_width),
        "post_norm": (width,),
    }
    moe = config.moe_of(tower, index)
    if moe is None:
        return fields | {"gate_up": (2 * config.mlp_width, width), "down": (width, config.mlp_width)}
    return fields | {
        "router": (moe.experts, width),
        "gate_up": (moe.experts, 2 * moe.expert_width, width),
        "down": (moe.experts, width, moe.expert_width),
    }


def _padded(shape: Shape, dtype: torch.dtype) -> int:
    """Elements that a field takes in the buffer."""
    step = ALIGNMENT_BYTES // dtype.itemsize
    return -(-math.prod(shape) // step) * step
