import random
import weakref

import pytest
import torch

from u1_core.errors import U1Error
from u1_core.model.config import GENERATION, UNDERSTANDING
from u1_core.model.views import LayerWeights
from u1_core.weights.layout import layer_slices
from u1_core.weights.on_disk import LayersOnDisk
from u1_core.weights.snapshot import Snapshot
from u1_core.weights.tiny import KINDS


class Reads:
    """A snapshot, and which layers were read from it, in order."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.config, self._snapshot, self.layers, self.fails_at = snapshot.config, snapshot, [], None

    def read_into(self, name: str, place: torch.Tensor) -> None:
        index = int(name.split(".")[3])
        if not self.layers or self.layers[-1] != index:
            self.layers.append(index)
        if index == self.fails_at:
            self.fails_at = None
            raise U1Error("the disk is gone")
        self._snapshot.read_into(name, place)


@pytest.fixture
def reads(models) -> Reads:
    return Reads(Snapshot.open(models["u1"]))


def right(snapshot: Snapshot, tower: str, index: int, layer: LayerWeights) -> bool:
    slices = layer_slices(snapshot.config, tower, index, layer)
    return all(torch.equal(found, snapshot.read(name).to(found.dtype)) for name, found in slices)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tower", [UNDERSTANDING, GENERATION])
@pytest.mark.parametrize("kind", KINDS)
def test_layers_in_any_order_are_the_checkpoints(models, kind, tower, dtype):
    snapshot = Snapshot.open(models[kind])
    layers, choose = LayersOnDisk(snapshot, tower, "cpu", dtype), random.Random(0)
    kept = []
    for index in [0, 1, 2, 0, 1, 2, *(choose.randrange(3) for _ in range(20))]:
        kept.append((index, layers[index]))
    assert all(right(snapshot, tower, index, layer) for index, layer in kept)  # each has memory of its own


def test_the_next_layer_is_read_ahead_and_each_once(reads):
    layers = LayersOnDisk(reads, UNDERSTANDING, "cpu", torch.float32)
    layers[0]
    layers._next[1].result()
    assert reads.layers == [0, 1]
    layers[1], layers[2]
    assert reads.layers == [0, 1, 2]
    layers[0]
    layers[2]
    assert [index for index in reads.layers[3:] if index != 1] == [0, 2]


def test_nothing_is_kept_or_read_ahead_after_the_last_layer(reads):
    layers = LayersOnDisk(reads, UNDERSTANDING, "cpu", torch.float32)
    held = [weakref.ref(layer.qkv) for layer in layers]
    assert layers._next is None
    assert [layer() for layer in held] == [None] * 3


def test_another_source_is_read_from_at_once(reads, models):
    """Also where the layer that is due was read ahead from the one before."""
    layers = LayersOnDisk(reads, UNDERSTANDING, "cpu", torch.float32)
    layers[0]
    layers._next[1].result()
    other = Snapshot.open(models["u1.5"])
    layers.rewrite(other, set())
    assert right(other, UNDERSTANDING, 1, layers[1])


def test_a_failure_is_told_when_its_layer_is_due_and_not_for_good(reads):
    layers = LayersOnDisk(reads, UNDERSTANDING, "cpu", torch.float32)
    reads.fails_at = 1
    layers[0]
    with pytest.raises(U1Error, match="the disk is gone"):
        layers[1]
    assert right(reads._snapshot, UNDERSTANDING, 1, layers[1])
    reads.fails_at = 1
    layers[0]
    assert right(reads._snapshot, UNDERSTANDING, 2, layers[2])


def test_read_under_inference_mode_and_used_outside(models):
    """With rounding on the way: the host memory that takes turns must not become inference tensors."""
    snapshot = Snapshot.open(models["u1"])
    layers = LayersOnDisk(snapshot, GENERATION, "cpu", torch.bfloat16)
    with torch.inference_mode():
        layers[0]
    assert right(snapshot, GENERATION, 1, layers[1])
    assert not layers[2].qkv.is_inference()


def test_layers_stay_on_the_device_as_far_as_there_is_memory_for_them(reads):
    layers = LayersOnDisk(reads, UNDERSTANDING, "cpu", torch.float32)
    layers[0], layers[1]
    layer_bytes = layers[2].input_norm.untyped_storage().nbytes()
    reads.layers.clear()
    layers.hold(2 * layer_bytes + 1)
    for _ in range(3):
        assert all(right(reads._snapshot, UNDERSTANDING, index, layers[index]) for index in range(3))
    assert layers.held_bytes == 2 * layer_bytes
    assert reads.layers == [0, 1, 2]  # only the last is read every time
    layers.hold(layer_bytes)
    assert layers.held_bytes == layer_bytes
    reads.layers.clear()
    assert all(right(reads._snapshot, UNDERSTANDING, index, layers[index]) for index in range(3))
    assert reads.layers == [1, 2]


def test_what_stays_is_read_anew_when_it_has_changed(reads, models):
    layers = LayersOnDisk(reads, UNDERSTANDING, "cpu", torch.float32)
    layers.hold(2**30)
    before = layers[0].qkv.clone()

    class Doubled(Reads):
        def read_into(self, name, place):
            super().read_into(name, place)
            place.mul_(2)

    layers.rewrite(Doubled(Snapshot.open(models["u1"])), ["any"])
    assert torch.equal(layers[0].qkv, 2 * before)
