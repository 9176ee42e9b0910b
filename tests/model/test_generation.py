from dataclasses import replace

import pytest
import torch

from u1_core.model.config import linear_modules
from u1_core.model.generation import Pass, generation_pass, generation_passes
from u1_core.model.linear import LowRank, TowerTerms
from u1_core.model.views import KVChunk, PrefixKV

ROWS, COLUMNS = 2, 3


def prefix(tokens: int, seed: int, dtype=torch.float32) -> PrefixKV:
    """Random K/V of a prompt, in two chunks, followed by t = tokens."""
    k, v = torch.randn(2, 3, tokens, 2, 16, generator=torch.Generator().manual_seed(seed)).to(dtype)
    cut = tokens // 2
    return PrefixKV((KVChunk(k[:, :cut], v[:, :cut]), KVChunk(k[:, cut:], v[:, cut:])), tokens)


def layers_of(prefix: PrefixKV) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """K and V by layer, for the slow model."""
    k, v = (torch.cat([getattr(chunk, part) for chunk in prefix.chunks], 1).double() for part in "kv")
    return list(zip(k, v, strict=True))


def noisy(config, batch: int = 1) -> torch.Tensor:
    side = config.token_pixels
    return torch.randn(batch, 3, ROWS * side, COLUMNS * side, generator=torch.Generator().manual_seed(8))


def all_terms(config, dropout: float = 0.0, rank: int = 2) -> tuple[TowerTerms, list[torch.Tensor]]:
    """A term on every linear map of the generation tower and the head, and the factors, to differentiate by."""
    generator, factors = torch.Generator().manual_seed(2), []
    layers: list[dict] = [{} for _ in range(config.layers)]
    modules = {}
    for number, (path, (rows, columns)) in enumerate(linear_modules(config).items()):
        if "_mot_gen" not in path and not path.startswith("fm_modules.fm_head"):
            continue
        down = torch.randn(rank, columns, generator=generator).requires_grad_(True)
        up = torch.randn(rows, rank, generator=generator).requires_grad_(True)
        factors += [down, up]
        term = (LowRank(down, up, 0.02, dropout, seed=number),)
        if path.startswith("fm_modules"):
            modules[path] = term
        else:
            index, local = path.removeprefix("language_model.model.layers.").split(".", 1)
            layers[int(index)][local.replace("_mot_gen", "")] = term
    return TowerTerms(layers, modules), factors


def test_equals_the_slow_model(kind, tiny, slow, close):
    model = tiny(kind)
    z, past = noisy(model.config), prefix(9, 1)
    ours = generation_pass(model.config, model.generation, z, torch.tensor([0.3]), [past])
    assert ours.shape == z.shape
    assert ours.dtype == torch.float32
    assert close(ours[0], slow(kind).generate(z[0], 0.3, layers_of(past), 9), 3e-6)


def test_branches_and_pictures_in_one_batch_equal_each_alone(kind, tiny, close):
    """Two pictures at two times, three branches with prefixes of different lengths."""
    model = tiny(kind)
    z, t = noisy(model.config, batch=2), torch.tensor([0.2, 0.7])
    prefixes = [prefix(n, n) for n in (9, 4, 2, 12, 5, 7)]
    together = generation_pass(model.config, model.generation, z, t, prefixes)
    assert together.shape == (6, *z.shape[1:])
    for row, past in enumerate(prefixes):
        picture = slice(row % 2, row % 2 + 1)
        alone = generation_pass(model.config, model.generation, z[picture], t[picture], [past])
        assert close(together[row], alone[0])


def test_terms_equal_merged_weights(kind, tiny, slow, close):
    model, plain = tiny(kind), slow(kind)
    terms, _ = all_terms(model.config)
    z, past = noisy(model.config), prefix(9, 1)
    with torch.no_grad():
        ours = generation_pass(model.config, model.generation, z, torch.tensor([0.3]), [past], terms)
    merged = {}
    for path in linear_modules(model.config):
        index, _, local = path.removeprefix("language_model.model.layers.").partition(".")
        local = local.replace("_mot_gen", "")
        if path in terms.modules:
            found = terms.modules[path]
        elif "_mot_gen" in path:
            found = terms.layers[int(index)][local]
        else:
            continue
        weight = f"{path}.weight"
        merged[weight] = model.source.read(weight) + 0.02 * (found[0].up @ found[0].down).detach()
    changed = type(plain)(model.config, lambda name: merged[name] if name in merged else model.source.read(name))
    assert close(ours[0], changed.generate(z[0], 0.3, layers_of(past), 9), 1e-5)
    assert not close(ours[0], plain.generate(z[0], 0.3, layers_of(past), 9), 1e-2)


def test_recomputed_gradients_equal_plain_ones(kind, tiny, close):
    """With dropout, which must drop the same inputs the second time."""
    model = tiny(kind)
    terms, factors = all_terms(model.config, dropout=0.3)
    trained = {name: tensor.clone().requires_grad_(True) for name, tensor in model.generation.modules.items()}
    weights = replace(model.generation, modules=trained)
    parameters = [*factors, *trained.values()]
    z, past = noisy(model.config, batch=2), [prefix(9, 1), prefix(5, 2)]

    def gradients(recompute: bool, keep_last: int = 0) -> tuple[torch.Tensor, ...]:
        x_pred = generation_pass(model.config, weights, z, torch.tensor([0.2, 0.7]), past, terms, recompute, keep_last)
        return torch.autograd.grad(x_pred.square().mean(), parameters)

    for plain, again, partly in zip(gradients(False), gradients(True), gradients(True, keep_last=2), strict=True):
        assert plain.abs().sum() > 0
        assert close(again, plain)
        assert close(partly, plain)


def test_bf16_is_near_fp32(kind, tiny, close):
    exact, low = tiny(kind), tiny(kind, torch.bfloat16)
    z, t = noisy(exact.config), torch.tensor([0.3])
    ours = generation_pass(low.config, low.generation, z, t, [prefix(9, 1, torch.bfloat16)])
    assert ours.dtype == torch.float32
    assert close(ours, generation_pass(exact.config, exact.generation, z, t, [prefix(9, 1)]), 5e-2)


def test_bf16_tells_near_times_apart(tiny):
    """0.999 and 0.9995 are the same number in bf16; the timestep must not go through it."""
    assert torch.tensor(0.999).bfloat16() == torch.tensor(0.9995).bfloat16()
    model = tiny("u1", torch.bfloat16)
    z, past = noisy(model.config), prefix(9, 1, torch.bfloat16)
    a, b = (generation_pass(model.config, model.generation, z, torch.tensor([t]), [past]) for t in (0.999, 0.9995))
    assert not torch.equal(a, b)


@pytest.mark.parametrize(("field", "value"), [("noise_scale", 2.0), ("noise_scale_embedding", False)])
def test_the_noise_scale_is_told(tiny, close, field, value):
    model = tiny("u1")
    z, t, past = noisy(model.config), torch.tensor([0.3]), prefix(9, 1)
    told = generation_pass(model.config, model.generation, z, t, [past])
    other = generation_pass(replace(model.config, **{field: value}), model.generation, z, t, [past])
    assert not close(other, told, 1e-3)


def test_it_matters_where_the_picture_stands_after_the_prompt(tiny, close):
    model = tiny("u1")
    z, t, past = noisy(model.config), torch.tensor([0.3]), prefix(9, 1)
    here = generation_pass(model.config, model.generation, z, t, [past])
    later = generation_pass(model.config, model.generation, z, t, [replace(past, next_t=15)])
    assert not close(later, here, 1e-4)


def test_a_pass_may_have_ends_of_its_own(kind, tiny):
    model = tiny(kind)
    z, t, past = noisy(model.config), torch.tensor([0.3]), prefix(9, 1)
    other = replace(model.generation, norm=2 * model.generation.norm, layers=())
    passes = [Pass(z, t, [past]), Pass(z, t, [past], ends=other)]
    plain, own = generation_passes(model.config, model.generation, passes)
    assert torch.equal(plain, generation_pass(model.config, model.generation, z, t, [past]))
    whole = replace(other, layers=model.generation.layers)
    assert torch.equal(own, generation_pass(model.config, whole, z, t, [past]))
    assert not torch.equal(plain, own)
