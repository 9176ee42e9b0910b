import gc
import random
import weakref
from dataclasses import replace

import pytest
import torch

from u1_core.model.config import GENERATION
from u1_core.model.views import LayerWeights
from u1_core.weights.arena import Arena
from u1_core.weights.copies import PlainCopies
from u1_core.weights.layout import layer_slices, layer_views
from u1_core.weights.placement import Placement
from u1_core.weights.random_model import RandomWeights
from u1_core.weights.ring import StreamedLayers
from u1_core.weights.snapshot import Snapshot
from u1_core.weights.store import load_generation
from u1_core.weights.tiny import KINDS

LAYERS = 8


class LateCopies(PlainCopies):
    """A device at its worst: a slot holds nonsense from the start of a copy until it is waited for."""

    def __init__(self):
        self.started, self.under_way, self.lent = [], {}, set()

    def start(self, slot, host, pinned):
        assert slot not in self.lent, "overwritten while it is computed with"
        self.started.append(int(host[0]))
        slot.flat.fill_(float("nan"))
        self.under_way[slot] = host

    def wait(self, slot):
        self.lent.add(slot)
        if slot in self.under_way:
            super().start(slot, self.under_way.pop(slot), False)

    def release(self, slot):
        self.lent.discard(slot)


class PoisonedCopies(LateCopies):
    """A slot that is released is nonsense at once: whoever still uses it shows."""

    def release(self, slot):
        super().release(slot)
        slot.flat.fill_(float("nan"))
        slot.layer = None


class Numbered(Arena):
    """Small layers, each full of its own number."""

    def __init__(self, config, layers):
        super().__init__(config, GENERATION, layers, torch.float32)
        for index in layers:
            self.layer(index).fill_(index)


@pytest.fixture
def ring(tiny):
    """(slots, resident=(), copies=LateCopies) -> a ring of numbered layers, and what moves them."""

    def make(slots: int, resident=(), copies=LateCopies) -> tuple[StreamedLayers, LateCopies]:
        config = replace(tiny("u1").config, layers=LAYERS)
        arena = Numbered(config, [index for index in range(LAYERS) if index not in resident])
        there = {index: numbered_layer(config, index) for index in resident}
        moves = copies()
        return StreamedLayers(arena, there, slots, torch.device("cpu"), lambda _: moves), moves

    return make


def numbered_layer(config, index: int) -> LayerWeights:
    return layer_views(config, GENERATION, index, Numbered(config, [index]).layer(index))


def holds(layer: LayerWeights, index: int) -> bool:
    tensors = (layer.input_norm, layer.qkv, layer.q_norm, layer.k_norm, layer.o, layer.post_norm, layer.mlp.down)
    return all(bool((tensor == index).all()) for tensor in tensors)


@pytest.mark.parametrize("copies", [LateCopies, PoisonedCopies])
@pytest.mark.parametrize("resident", [(), (0, 5), (7,), tuple(range(LAYERS))])
@pytest.mark.parametrize("slots", [1, 2, 3, 10])
def test_the_layer_asked_for_is_there_in_any_order(ring, slots, resident, copies):
    layers, _ = ring(slots, resident, copies)
    choose = random.Random(slots)
    assert len(layers) == LAYERS
    forward, backward = list(range(LAYERS)), list(reversed(range(LAYERS)))
    anyhow = [choose.randrange(LAYERS) for _ in range(50)]
    for order in (forward, forward, forward + backward, anyhow, backward, anyhow, forward):
        if choose.random() < 0.5:
            layers.expect(order if choose.random() < 0.5 else backward)
        for index in order:
            assert holds(layers[index], index)
            assert holds(layers[index - LAYERS], index)


def test_a_sampling_step_copies_each_layer_once_and_goes_on_to_the_next(ring):
    layers, copies = ring(3)
    for _ in range(3):
        for index in range(LAYERS):
            layers[index]
    rounds = [index % LAYERS for index in range(3 * LAYERS + 2)]
    assert sorted(copies.started[:3]) == [0, 1, 2]
    assert sorted(copies.started) == sorted(rounds)  # two of the next step are on their way


def test_a_copy_is_under_way_before_its_layer_is_due(ring):
    layers, copies = ring(3)
    layers[0]
    for index in range(1, 3 * LAYERS):
        slot = next(slot for slot in layers._slots if slot.layer == index % LAYERS)
        assert slot in copies.under_way
        layers[index % LAYERS]


def test_backward_uses_what_forward_left(ring):
    """At the turn the last layers are still there: of 15 visits, 3 slots save 2 copies and the first of next step."""
    layers, copies = ring(3)
    order = [*range(LAYERS), *reversed(range(LAYERS - 1))]
    for step in range(3):
        layers.expect(order)
        for index in order:
            assert holds(layers[index], index)
        assert len(copies.started) == LAYERS + (step + 1) * (LAYERS - 3) + step * (LAYERS - 3)


def test_resident_layers_are_never_copied(ring):
    layers, copies = ring(2, resident=(1, 3, 5, 7))
    for _ in range(2):
        for index in range(LAYERS):
            assert holds(layers[index], index)
    assert set(copies.started) == {0, 2, 4, 6}
    assert layers.resident == {1, 3, 5, 7}


def test_slots_are_all_the_device_memory_it_takes(ring):
    layers, _ = ring(3)
    assert layers.slot_bytes == 3 * layers._arena.layer_bytes(0)
    addresses = {slot.flat.data_ptr() for slot in layers._slots}
    assert {layers[index].input_norm.data_ptr() for index in range(LAYERS)} == addresses
    layers.close()
    assert layers.slot_bytes == 0
    assert layers._arena.n_bytes == 0


@pytest.mark.parametrize("stage", ["start", "wait"])
def test_a_copy_that_fails_leaves_nothing_wrong_behind(ring, stage):
    """An out-of-memory in the middle of a step: the step is repeated, with the weights it should have."""

    class Failing(LateCopies):
        countdown = 11

        def fail(self, slot, when):
            self.countdown -= when == stage
            if when == stage and self.countdown == 0:
                slot.flat.fill_(float("nan"))
                slot.layer = None
                raise MemoryError

        def start(self, slot, host, pinned):
            self.under_way.pop(slot, None)
            self.fail(slot, "start")
            super().start(slot, host, pinned)

        def wait(self, slot):
            super().wait(slot)
            self.fail(slot, "wait")

    layers, _ = ring(3, copies=Failing)
    failures = 0
    for _ in range(3):
        for index in range(LAYERS):
            try:
                layers[index]
            except MemoryError:
                failures += 1
            assert holds(layers[index], index)
    assert failures == 1


@pytest.mark.parametrize("closed_by_hand", [True, False])
def test_copies_under_way_are_waited_for_before_the_memory_goes(ring, closed_by_hand):
    class Watched(LateCopies):
        def close(self):
            closed.append(arena() is not None and arena().n_bytes > 0)

    closed = []
    layers, _ = ring(3, copies=Watched)
    arena = weakref.ref(layers._arena)
    layers[0]
    if closed_by_hand:
        layers.close()
    del layers
    gc.collect()
    assert closed == [True]
    assert arena() is None


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("resident", [0, 2, 3])
def test_a_placed_tower_is_the_resident_one(models, kind, resident):
    snapshot, seen = Snapshot.open(models[kind]), []
    plain = load_generation(snapshot, "cpu", torch.bfloat16)
    placement = Placement.spread(snapshot.config.layers, resident, slots=2)
    placed = load_generation(snapshot, "cpu", torch.bfloat16, placement, lambda *step: seen.append(step))
    assert seen[-1][0] == seen[-1][1]
    for index, layer in enumerate(plain.layers):
        slices = (layer_slices(snapshot.config, GENERATION, index, each) for each in (layer, placed.layers[index]))
        for (name, expected), (_, found) in zip(*slices, strict=True):
            assert torch.equal(found, expected), name
    assert set(placed.modules) == set(plain.modules)


def test_random_weights_can_be_streamed(tiny):
    model = tiny("u1")
    placed = load_generation(RandomWeights(model.config), "cpu", torch.float32, Placement(frozenset({1}), slots=1))
    for index, layer in enumerate(model.generation.layers):
        assert torch.equal(placed.layers[index].qkv, layer.qkv)
