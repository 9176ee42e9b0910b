import gc
import itertools
import weakref
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from u1_core.model.config import GENERATION, linear_modules
from u1_core.model.generation import Pass, generation_pass, generation_passes
from u1_core.model.layer import decoder_layer
from u1_core.model.linear import LowRank, TowerTerms
from u1_core.model.stack import Keep, Packed, ladder, run_layers
from u1_core.model.views import KVChunk, LayerWeights, PrefixKV
from u1_core.weights.arena import Arena
from u1_core.weights.copies import PlainCopies
from u1_core.weights.ring import StreamedLayers

MIXED = [Keep.PRODUCTS, Keep.INPUT, Keep.ALL]
LADDERS = [*([keep] * 3 for keep in Keep), MIXED]
NAMES = [*(keep.value for keep in Keep), "mixed"]


class PoisonedCopies(PlainCopies):
    """A slot is nonsense as soon as another layer is asked for."""

    def release(self, slot):
        slot.flat.fill_(float("nan"))
        slot.layer = None


def streamed(model, slots: int = 2) -> StreamedLayers:
    """The model's generation layers, all of them passing through poisoned slots."""
    arena = Arena(model.config, GENERATION, range(model.config.layers), torch.float32)
    arena.fill(model.source)
    return StreamedLayers(arena, {}, slots, torch.device("cpu"), lambda _: PoisonedCopies())


def prefix(tokens: int, seed: int) -> PrefixKV:
    k, v = torch.randn(2, 3, tokens, 2, 16, generator=torch.Generator().manual_seed(seed))
    return PrefixKV((KVChunk(k, v),), tokens)


def layer_terms(config, dropout: float = 0.3) -> tuple[TowerTerms, list[torch.Tensor]]:
    """A term on every linear map of the generation layers, and its factors, to differentiate by."""
    generator, factors = torch.Generator().manual_seed(2), []
    layers: list[dict] = [{} for _ in range(config.layers)]
    for number, (path, (rows, columns)) in enumerate(linear_modules(config).items()):
        if GENERATION not in path or not path.startswith("language_model.model.layers."):
            continue
        down = torch.randn(2, columns, generator=generator).requires_grad_(True)
        up = torch.randn(rows, 2, generator=generator).requires_grad_(True)
        factors += [down, up]
        index, local = path.removeprefix("language_model.model.layers.").split(".", 1)
        layers[int(index)][local.replace(GENERATION, "")] = (LowRank(down, up, 0.02, dropout, seed=number),)
    return TowerTerms(layers, {}), factors


def one_pass(config, seed: int = 8, rows: int = 2, columns: int = 3, terms: TowerTerms | None = None) -> Pass:
    side = config.token_pixels
    z = torch.randn(1, 3, rows * side, columns * side, generator=torch.Generator().manual_seed(seed))
    return Pass(z, torch.tensor([0.1 * seed % 1]), [prefix(3 + seed, seed)], terms)


def gradients(config, weights, passes, kept, parameters) -> list[torch.Tensor]:
    outputs = generation_passes(config, weights, passes, kept)
    found = torch.autograd.grad(sum(x.square().mean() for x in outputs), parameters, allow_unused=True)
    return [x if x is not None else torch.zeros(()) for x in found]


def same(ours: Sequence[torch.Tensor], theirs: Sequence[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("kept", LADDERS, ids=NAMES)
def test_every_rung_streamed_gives_the_bytes_of_plain_autograd(tiny, kind, kept):
    """Against a bare loop over resident layers, for the input and every low-rank factor, with dropout."""
    model = tiny(kind)
    config, layers = model.config, model.generation.layers
    terms, factors = layer_terms(config)
    h = torch.randn(7, config.width, generator=torch.Generator().manual_seed(1)).requires_grad_(True)
    rope = (torch.ones(7, 1, config.head_dim), torch.zeros(7, 1, config.head_dim))

    def attention(q, k, v):
        q, k, v = (x.transpose(0, 1).unsqueeze(0) for x in (q, k, v))
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v, enable_gqa=True)
        return out.squeeze(0).transpose(0, 1).flatten(1)

    out = h
    for index, layer in enumerate(layers):
        out = decoder_layer(config, GENERATION, layer, out, rope, attention, terms.layers[index])[0]
    expected = torch.autograd.grad(out.square().mean(), [h, *factors], allow_unused=True)
    assert sum(bool(x is not None and x.abs().sum() > 0) for x in expected) > len(factors) // 2

    for supplier in (layers, streamed(model)):
        for _ in range(2):
            batch = Packed(h, rope, lambda index: attention, terms.layers)
            ours = run_layers(config, GENERATION, supplier, [batch], kept)[0]
            assert torch.equal(ours, out)
            found = torch.autograd.grad(ours.square().mean(), [h, *factors], allow_unused=True)
            for ours, theirs in zip(found, expected, strict=True):
                assert (ours is None) == (theirs is None)
                assert ours is None or torch.equal(ours, theirs)


@pytest.mark.parametrize("slots", [1, 3])
def test_whole_tensors_and_the_head_train_through_streamed_layers(tiny, kind, slots):
    model = tiny(kind)
    terms, factors = layer_terms(model.config)
    trained = {name: tensor.clone().requires_grad_(True) for name, tensor in model.generation.modules.items()}
    plain = replace(model.generation, modules=trained)
    passes, parameters = [one_pass(model.config, terms=terms)], [*factors, *trained.values()]
    expected = gradients(model.config, plain, passes, None, parameters)
    ring = replace(plain, layers=streamed(model, slots))
    assert same(gradients(model.config, ring, passes, MIXED, parameters), expected)


class Fresh(Sequence[LayerWeights]):
    """Layers made anew each time they are asked for, of which it is known which are still alive."""

    def __init__(self, layers):
        self._layers, self.asked, self._alive = layers, [], []

    def __len__(self):
        return len(self._layers)

    def __getitem__(self, index):
        self.asked.append(index)
        layer = self._layers[index]
        mlp = replace(layer.mlp, gate_up=layer.mlp.gate_up.clone(), down=layer.mlp.down.clone())
        own = ("input_norm", "qkv", "q_norm", "k_norm", "o", "post_norm")
        fresh = replace(layer, mlp=mlp, **{name: getattr(layer, name).clone() for name in own})
        tensors = [mlp.gate_up, mlp.down, *(getattr(fresh, name) for name in own)]
        self._alive += [StorageWeakRef(tensor.untyped_storage()) for tensor in tensors]
        return fresh

    def alive(self) -> int:
        gc.collect()
        return sum(not ref.expired() for ref in self._alive)


@pytest.mark.parametrize("kept", LADDERS, ids=NAMES)
def test_weights_are_not_kept_between_forward_and_backward(tiny, kind, kept):
    model = tiny(kind)
    terms, factors = layer_terms(model.config)
    layers = Fresh(model.generation.layers)
    weights = replace(model.generation, layers=layers)
    outputs = generation_passes(model.config, weights, [one_pass(model.config, terms=terms)], kept)
    assert layers.asked == [0, 1, 2]
    assert layers.alive() == 0
    torch.autograd.grad(outputs[0].sum(), factors, allow_unused=True)
    assert [index for index, _ in itertools.groupby(layers.asked[3:])] == [2, 1, 0]
    assert layers.alive() == 0


class Counting(TorchDispatchMode):
    """Counts attention kernels and matrix products, and knows what of all they made is still there."""

    def __init__(self):
        super().__init__()
        self.attention = self.products = 0
        self._made: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = str(func)
        self.attention += "scaled_dot_product" in name and "backward" not in name
        factors = args[-2:] if name in ("aten.mm.default", "aten.addmm.default") else ()
        self.products += bool(factors) and min(factors[1].shape) > 8  # not the low-rank ones
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, tuple | list) else (out,):
            if isinstance(x, torch.Tensor):
                storage = x.untyped_storage()
                self._made[storage.data_ptr()] = (StorageWeakRef(storage), storage.nbytes())
        return out

    def alive_bytes(self) -> int:
        gc.collect()
        return sum(n_bytes for ref, n_bytes in self._made.values() if not ref.expired())


def test_each_rung_keeps_more_and_computes_less(tiny):
    model = tiny("u1")
    terms, factors = layer_terms(model.config, dropout=0.0)
    each = one_pass(model.config, rows=12, columns=12, terms=terms)
    kept_bytes, attention, products = {}, {}, {}
    for keep in Keep:
        with Counting() as forward:
            x_pred = generation_passes(model.config, model.generation, [each], [keep] * 3)[0]
        if not forward.attention:
            pytest.skip(f"PyTorch {torch.__version__} has no one kernel for grouped heads on a CPU")
        assert forward.attention == 3
        kept_bytes[keep] = forward.alive_bytes()
        with Counting() as backward:
            torch.autograd.grad(x_pred.sum(), factors)
        attention[keep], products[keep] = backward.attention, backward.products
    assert attention == {Keep.INPUT: 3, Keep.ATTENTION: 0, Keep.PRODUCTS: 0, Keep.ALL: 0}
    sizes = [kept_bytes[keep] for keep in Keep]
    assert sizes == sorted(sizes)
    # What a rung adds, for 3 layers of 144 tokens: attention 4 heads of 16 and its statistics; then q, k and v of 8
    # heads, o of 64, gate and up of 96 each, and the narrow side of the terms of rank 2 on these six.
    assert kept_bytes[Keep.ATTENTION] - kept_bytes[Keep.INPUT] == 3 * 144 * (4 * 16 + 4) * 4
    assert kept_bytes[Keep.PRODUCTS] - kept_bytes[Keep.ATTENTION] == 3 * 144 * (8 * 16 + 64 + 2 * 96 + 6 * 2) * 4
    # Of qkv, o, gate_up and down the last is never computed again: backward does not need what it gives.
    saved = {keep: products[Keep.INPUT] - products[keep] for keep in Keep}
    assert saved == {Keep.INPUT: 0, Keep.ATTENTION: 0, Keep.PRODUCTS: 9, Keep.ALL: 9}


def test_ladder():
    assert ladder(3, recompute=False) == [Keep.ALL] * 3
    assert ladder(3, recompute=True) == [Keep.INPUT] * 3
    assert ladder(3, recompute=True, keep_last=2) == [Keep.INPUT, Keep.ALL, Keep.ALL]


@pytest.mark.parametrize("kept", LADDERS, ids=NAMES)
def test_two_pictures_at_once_give_the_bytes_of_one_after_the_other(tiny, kind, kept):
    """Pictures of different sizes, each with its own dropout."""
    model = tiny(kind)
    terms, factors = layer_terms(model.config)
    other = TowerTerms(
        [{n: tuple(replace(t, seed=t.seed + 99) for t in ts) for n, ts in layer.items()} for layer in terms.layers], {}
    )
    passes = [one_pass(model.config, 1, 2, 3, terms), one_pass(model.config, 2, 4, 2, other)]
    trained = {name: tensor.clone().requires_grad_(True) for name, tensor in model.generation.modules.items()}
    plain = replace(model.generation, modules=trained)
    parameters = [*factors, *trained.values()]
    apart = [gradients(model.config, plain, [each], kept, parameters) for each in passes]
    ring = replace(plain, layers=streamed(model))
    together = gradients(model.config, ring, passes, kept, parameters)
    assert same(together, [a + b for a, b in zip(*apart, strict=True)])


def test_many_pictures_bring_each_layer_in_once_each_way(tiny, close):
    model = tiny("u1")
    terms, factors = layer_terms(model.config)
    passes = [one_pass(model.config, seed, terms=terms) for seed in range(4)]
    layers = Fresh(model.generation.layers)
    weights = replace(model.generation, layers=layers)
    apart = [gradients(model.config, model.generation, [each], None, factors) for each in passes]
    together = gradients(model.config, weights, passes, [Keep.INPUT] * 3, factors)
    for ours, theirs in zip(together, zip(*apart, strict=True), strict=True):
        assert close(ours, sum(theirs), 1e-6)
    assert [index for index, _ in itertools.groupby(layers.asked)] == [0, 1, 2, 1, 0]


def test_no_batch_goes_on_before_all_are_done_with_a_layer(tiny):
    """Even if the others' losses are far behind: layer 2 of all, then layer 1 of all, whatever autograd prefers."""
    model = tiny("u1")
    terms, factors = layer_terms(model.config)
    layers = Fresh(model.generation.layers)
    weights = replace(model.generation, layers=layers)
    passes = [one_pass(model.config, seed, terms=terms) for seed in range(3)]
    first, *rest = generation_passes(model.config, weights, passes, [Keep.INPUT] * 3)
    late = first
    for _ in range(20):  # a longer way back for one of them
        late = late * 1.0
    torch.autograd.grad(late.sum() + sum(x.sum() for x in rest), factors)
    assert layers.asked[9:] == [2, 2, 2, 1, 1, 1, 0, 0, 0]


def test_pictures_seen_together_are_predicted_as_alone(tiny, kind):
    model = tiny(kind)
    passes = [one_pass(model.config, 1, 2, 3), one_pass(model.config, 2, 4, 2)]
    with torch.no_grad():
        together = generation_passes(model.config, replace(model.generation, layers=streamed(model)), passes)
        alone = [generation_pass(model.config, model.generation, p.z, p.t, p.prefixes) for p in passes]
    assert same(together, alone)


def test_two_hundred_steps_streamed_and_resident_give_the_same_bytes(tiny):
    model = tiny("u1")

    def trained(weights, kept) -> list[torch.Tensor]:
        terms, factors = layer_terms(model.config)
        optimizer = torch.optim.AdamW(factors, lr=1e-3)
        for step in range(200):
            x_pred = generation_passes(model.config, weights, [one_pass(model.config, step, 1, 2, terms)], kept)[0]
            x_pred.square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        return factors

    before = [factor.detach() for factor in layer_terms(model.config)[1]]
    resident = trained(model.generation, None)
    assert not any(torch.equal(a, b) for a, b in zip(resident, before, strict=True))
    assert same(trained(replace(model.generation, layers=streamed(model)), MIXED), resident)


def test_layers_that_inference_mode_brought_in_can_be_trained_through(tiny):
    model = tiny("u1")
    terms, factors = layer_terms(model.config)
    passes, layers = [one_pass(model.config, terms=terms)], streamed(model)
    weights = replace(model.generation, layers=layers)
    with torch.inference_mode():
        generation_passes(model.config, weights, passes)
        layers[0]
    expected = gradients(model.config, model.generation, passes, None, factors)
    for kept in LADDERS:
        assert same(gradients(model.config, weights, passes, kept, factors), expected)


def test_streamed_layers_are_told_the_way_there_and_back(tiny):
    told = []

    class Told(Fresh):
        def expect(self, order):
            told.append(list(order))

    model = tiny("u1")
    weights = replace(model.generation, layers=Told(model.generation.layers))
    generation_passes(model.config, weights, [one_pass(model.config)])
    with torch.no_grad():
        generation_passes(model.config, weights, [one_pass(model.config)])
    assert told == [[0, 1, 2, 1, 0]]


def test_nothing_holds_the_layers_once_the_graph_is_gone(tiny):
    model = tiny("u1")
    terms, _ = layer_terms(model.config)
    layers = Fresh(model.generation.layers)
    ref = weakref.ref(layers)
    x_pred = generation_passes(
        model.config, replace(model.generation, layers=layers), [one_pass(model.config, terms=terms)]
    )
    del layers, x_pred
    gc.collect()
    assert ref() is None
