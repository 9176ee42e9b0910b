from dataclasses import replace

import pytest
import torch

from u1_core.model.config import GENERATION, UNDERSTANDING, MoeConfig, U1Config, layer_tensor_shapes
from u1_core.model.views import MlpWeights, MoeWeights
from u1_core.weights.layout import allocate_layer, layer_bytes, layer_slices, layer_views
from u1_core.weights.tiny import KINDS, tiny_config

TOWERS = (UNDERSTANDING, GENERATION)


def config_of(kind: str) -> U1Config:
    return U1Config.from_dict(tiny_config(kind))


@pytest.mark.parametrize("tower", TOWERS)
@pytest.mark.parametrize("kind", KINDS)
def test_slices_are_the_checkpoints_tensors_and_fill_the_buffer_once(kind, tower):
    config = config_of(kind)
    buffer = allocate_layer(config, tower, 1, torch.float32, "cpu")
    buffer.flat.zero_()
    slices = dict(layer_slices(config, tower, 1, buffer.weights))
    assert {name: tuple(view.shape) for name, view in slices.items()} == dict(layer_tensor_shapes(config, tower, 1))
    for view in slices.values():
        view += 1
    assert int((buffer.flat == 1).sum()) == sum(view.numel() for view in slices.values())
    assert int((buffer.flat > 1).sum()) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fields_start_at_multiples_of_256_bytes(dtype):
    config = config_of("a3b")
    buffer = allocate_layer(config, GENERATION, 0, dtype, "cpu")
    layer, mlp = buffer.weights, buffer.weights.mlp
    fields = [layer.input_norm, layer.qkv, layer.q_norm, layer.k_norm, layer.o, layer.post_norm]
    fields += [mlp.router, mlp.gate_up, mlp.down]
    assert [field.storage_offset() * dtype.itemsize % 256 for field in fields] == [0] * 9
    assert all(field.is_contiguous() for field in fields)
    assert buffer.flat.nbytes == layer_bytes(config, GENERATION, 0, dtype)


def test_stacking_is_what_the_views_promise():
    config = config_of("a3b")
    buffer = allocate_layer(config, GENERATION, 2, torch.float32, "cpu")
    slices = dict(layer_slices(config, GENERATION, 2, buffer.weights))
    torch.nn.init.normal_(buffer.flat)
    start, layer = "language_model.model.layers.2.", buffer.weights
    attention = [slices[f"{start}self_attn.{name}_proj_mot_gen.weight"] for name in "qkv"]
    assert torch.equal(torch.cat(attention), layer.qkv)
    assert torch.equal(slices[f"{start}self_attn.k_norm_mot_gen.weight"], layer.k_norm[0])
    assert torch.equal(slices[f"{start}self_attn.k_norm_hw_mot_gen.weight"], layer.k_norm[1])
    expert = [slices[f"{start}mlp_mot_gen.experts.4.{name}_proj.weight"] for name in ("gate", "up")]
    assert torch.equal(torch.cat(expert), layer.mlp.gate_up[4])
    assert torch.equal(slices[f"{start}mlp_mot_gen.experts.4.down_proj.weight"], layer.mlp.down[4])


def test_a_longer_buffer_serves_layers_of_every_form():
    """A slot that is reused for each layer is as long as the longest."""
    config = replace(config_of("a3b"), dense_layers=frozenset({0}))
    sizes = [layer_bytes(config, tower, index, torch.bfloat16) for tower in TOWERS for index in range(2)]
    flat = torch.empty(max(sizes) // 2, dtype=torch.bfloat16)
    assert isinstance(layer_views(config, UNDERSTANDING, 0, flat).mlp, MlpWeights)
    assert isinstance(layer_views(config, UNDERSTANDING, 1, flat).mlp, MoeWeights)
    assert isinstance(layer_views(config, GENERATION, 0, flat).mlp, MoeWeights)


def test_full_size_layers_have_the_published_bytes():
    """A layer of one tower of U1-8B is 386 MB in bf16; each field of A3B's is a multiple of 256 bytes as it is."""
    u1 = replace(config_of("u1"), width=4096, heads=32, kv_heads=8, head_dim=128, mlp_width=12288)
    weights = 4096 * (4096 + 2 * 1024 + 4096 + 3 * 12288)
    assert layer_bytes(u1, GENERATION, 0, torch.bfloat16) == 2 * (weights + 2 * 4096 + 4 * 64) == 385_892_864
    moe = MoeConfig(experts=128, experts_per_token=8, expert_width=768, normalise_top_k=True)
    a3b = replace(u1, width=2048, kv_heads=4, moe=moe, moe_gen=replace(moe, experts=32))
    attention = 2048 * (4096 + 2 * 512 + 4096)
    expected = 2 * (attention + 128 * (2048 + 3 * 768 * 2048) + 2 * 2048 + 4 * 64)
    assert layer_bytes(a3b, UNDERSTANDING, 0, torch.bfloat16) == expected
