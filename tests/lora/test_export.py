import math

import pytest
import torch
from safetensors import safe_open

from u1_core.errors import U1Error
from u1_core.lora.adapter import Adapter, LoraModule, tower_terms
from u1_core.lora.export import CONSTANT_INPUT, fold_full, truncated_svd
from u1_core.lora.files import read_lora, write_lora
from u1_core.lora.full import with_full_tensors
from u1_core.lora.inspect import inspect_lora
from u1_core.lora.merge import merged_tensor
from u1_core.lora.plan import DEFAULT_UNFROZEN, plan_lora, select_unfrozen
from u1_core.model.config import GENERATION, VISION_GEN
from u1_core.model.embedders import sinusoid
from u1_core.model.generation import generation_pass
from u1_core.model.views import KVChunk, PrefixKV


@pytest.fixture(params=["u1", "u1.5"])
def model(request, tiny):
    return tiny(request.param)


def trained(model, spec="attn=r2", scale=0.02):
    """An adapter as after a run: terms that do something, and every default tensor moved a little."""
    generator = torch.Generator().manual_seed(5)
    adapter = Adapter.create(plan_lora(model.config, spec), seed=1).to("cpu")
    for module in adapter.modules.values():
        module.up = scale * torch.randn(module.up.shape, generator=generator)
        module.down = module.down.detach()
    for name in select_unfrozen(model.config, DEFAULT_UNFROZEN):
        base = model.generation.modules[name]
        adapter.full[name] = base + scale * torch.randn(base.shape, generator=generator)
    return adapter


TIMESTEP = "fm_modules.timestep_embedder"
ADDED_UP = (
    f"{TIMESTEP}.mlp.2.bias",
    "fm_modules.noise_scale_embedder.mlp.2.bias",
    f"{VISION_GEN}.dense_embedding.bias",
)


def predict(model, adapter):
    config, generator = model.config, torch.Generator().manual_seed(0)
    shape = (config.layers, 5, config.kv_heads, config.head_dim)
    prefix = PrefixKV((KVChunk(torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)),), 5)
    z = torch.randn(1, 3, 4 * config.token_pixels, 4 * config.token_pixels, generator=generator)
    weights, terms = with_full_tensors(model.generation, [adapter]), tower_terms(config, [adapter], GENERATION)
    return generation_pass(config, weights, z, torch.tensor([0.4]), [prefix], terms)


def test_the_error_is_the_tail_of_the_singular_values():
    matrix = torch.randn(40, 30, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    s = torch.linalg.svdvals(matrix)
    for rank in (1, 7, 29):
        down, up, error = truncated_svd(matrix, rank)
        assert (down.shape, up.shape) == ((rank, 30), (40, rank))
        assert error == pytest.approx(math.sqrt((s[rank:] ** 2).sum() / (s**2).sum()), rel=1e-12)
        assert error == pytest.approx(((matrix - up @ down).norm() / matrix.norm()).item(), rel=1e-9)
    down, up, error = truncated_svd(torch.outer(torch.arange(4.0), torch.ones(5)), 3)
    assert (len(down), error) == (1, pytest.approx(0, abs=1e-6))
    assert truncated_svd(torch.zeros(3, 4), 2)[2] == 0.0


def test_every_tensor_is_told_of_and_the_stated_error_is_what_is_left(model):
    adapter = trained(model)
    read = model.source.read
    result, folded = fold_full(adapter, read, rank=6)
    assert [one.name for one in folded] == list(adapter.full)
    assert not result.full
    for one in folded:
        path = one.name.removesuffix(".weight")
        if one.rank:
            left = adapter.full[one.name] - merged_tensor(one.name, read(one.name).float(), [result])
            change = adapter.full[one.name] - read(one.name).float()
            if path.endswith("embedder.mlp.0"):
                bias = adapter.full[f"{path}.bias"] - read(f"{path}.bias")
                left[:, CONSTANT_INPUT] += bias
                change[:, CONSTANT_INPUT] += bias
            module = result.modules[path]
            assert module.rank == 6
            assert one.rank == (5 if path == f"{TIMESTEP}.mlp.2" else 6)
            left += (module.up[:, one.rank :] @ module.down[one.rank :]).view(left.shape)
            assert one.change == pytest.approx(change.norm().item(), rel=1e-5)
            assert one.error == pytest.approx((left.norm() / change.norm()).item(), rel=1e-4)
            assert 0.2 < one.error < 0.99
        elif one.name.endswith("embedder.mlp.0.bias"):
            assert (one.error, "always 1" in one.reason) == (0.0, True)
        elif one.name in ADDED_UP:
            assert "a direction of its input" in one.reason
            assert one.error < 1e-3
        else:
            assert (one.error, one.reason) == (1.0, "a bias, which a LoRA cannot carry")


def test_at_full_rank_the_folded_lora_is_the_run_but_for_the_biases_it_cannot_carry(model, tmp_path, close):
    adapter = trained(model)
    lost = [name for name in adapter.full if name.endswith(".bias") and "embedder.mlp" not in name]
    lost.remove(f"{VISION_GEN}.dense_embedding.bias")
    for name in lost:
        adapter.full[name] = model.source.read(name).float()
    result, folded = fold_full(adapter, model.source.read, rank=10_000)
    assert max(one.error for one in folded) < 2e-6
    write_lora(tmp_path / "folded.safetensors", result)
    read = read_lora(tmp_path / "folded.safetensors").adapter
    read.check(model.config)
    assert close(predict(model, read), predict(model, adapter), 2e-5)
    base = predict(model, Adapter({}))
    assert (predict(model, read) - base).norm() > 0.05 * base.norm()


def test_a_module_with_both_gets_one_term_for_their_sum(tiny):
    model = tiny("u1")
    adapter = trained(model, "fm_head=r2")
    path = "fm_modules.fm_head.0"
    result, _ = fold_full(adapter, model.source.read, rank=10_000)
    change = adapter.full[f"{path}.weight"] - model.source.read(f"{path}.weight") + adapter.modules[path].delta()
    torch.testing.assert_close(result.modules[path].delta(), change, rtol=1e-4, atol=1e-5)


def test_convolutions_have_the_shapes_that_stock_comfyui_takes_and_may_be_left_out(model, tmp_path):
    adapter = trained(model)
    result, _ = fold_full(adapter, model.source.read, rank=3)
    write_lora(tmp_path / "all.safetensors", result)
    read = read_lora(tmp_path / "all.safetensors")
    path = f"{VISION_GEN}.patch_embedding"
    width, patch = model.config.vision_width, model.config.patch_size
    assert read.adapter.modules[path].kernel == (patch, patch)
    with safe_open(str(tmp_path / "all.safetensors"), "pt") as file:
        shapes = [tuple(file.get_tensor(f"diffusion_model.{path}.lora_{side}.weight").shape) for side in ("down", "up")]
    assert shapes == [(3, 3, patch, patch), (width, 3, 1, 1)]
    official = inspect_lora(tmp_path / "all.safetensors").loads[0]
    assert (official.loads, "they fail on terms of convolutions" in official.reason) == (False, True)
    linear, folded = fold_full(adapter, model.source.read, rank=3, convolutions=False)
    assert not any(module.kernel for module in linear.modules.values())
    reasons = {one.name: one.reason for one in folded}
    assert reasons[f"{path}.weight"] == "a convolution, and only linear terms are wanted"
    write_lora(tmp_path / "linear.safetensors", linear)
    assert inspect_lora(tmp_path / "linear.safetensors").loads[0].loads


def test_the_input_that_is_always_one_is():
    values = torch.linspace(0, 1, 1001)
    assert torch.equal(sinusoid(values)[:, CONSTANT_INPUT], torch.ones(1001))


def test_what_cannot_be_folded_is_refused(tiny):
    model = tiny("u1")
    with pytest.raises(U1Error, match="LoRA: has no tensors that were trained whole"):
        fold_full(Adapter({}), model.source.read, 4)
    with pytest.raises(U1Error, match="rank 0: expected"):
        fold_full(trained(model), model.source.read, 0)


def test_a_kernel_of_another_shape_does_not_fit(tiny):
    config = tiny("u1").config
    path = f"{VISION_GEN}.patch_embedding"
    patch, width = config.patch_size, config.vision_width
    down, up = torch.ones(1, 3 * patch * patch), torch.ones(width, 1)
    Adapter({path: LoraModule(down, up, 1.0, (patch, patch))}).check(config)
    with pytest.raises(U1Error, match=r"has a kernel of \(\d+, \d+\), in the model"):
        Adapter({path: LoraModule(down, up, 1.0, (2 * patch, patch // 2))}).check(config)
