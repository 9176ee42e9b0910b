import gc
import mmap
import sys
import threading
from pathlib import Path

import pytest
import torch

from u1_core.model.config import GENERATION, U1Config
from u1_core.weights.arena import Arena
from u1_core.weights.layout import layer_bytes
from u1_core.weights.random_model import RandomWeights
from u1_core.weights.snapshot import Snapshot
from u1_core.weights.store import load_layer
from u1_core.weights.tiny import KINDS, tiny_config


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_layers_are_those_of_the_checkpoint_in_one_piece_each(models, kind, dtype):
    snapshot = Snapshot.open(models[kind])
    arena = Arena(snapshot.config, GENERATION, [2, 0], dtype)
    seen = []
    arena.fill(snapshot, on_layer=seen.append)
    assert arena.layers == [2, 0]
    assert seen == [layer_bytes(snapshot.config, GENERATION, index, dtype) for index in (2, 0)]
    for index in (0, 2):
        expected = load_layer(snapshot, GENERATION, index, "cpu", dtype).weights
        flat = arena.layer(index)
        assert flat.data_ptr() % mmap.PAGESIZE == 0
        elements = expected.qkv.numel()
        start = 256 // dtype.itemsize  # the first norm, 64 numbers, takes one step of the alignment
        assert torch.equal(flat[start : start + elements].view_as(expected.qkv), expected.qkv)


def test_it_takes_no_more_than_its_layers_and_a_page_each(models):
    snapshot = Snapshot.open(models["u1"])
    arena = Arena(snapshot.config, GENERATION, range(3), torch.float32)
    needed = sum(layer_bytes(snapshot.config, GENERATION, index, torch.float32) for index in range(3))
    assert needed <= arena.n_bytes < needed + 3 * mmap.PAGESIZE
    assert arena.pinned == frozenset()
    arena.close()
    assert arena.n_bytes == 0


def wide_config(kind: str = "u1") -> U1Config:
    """Layers of 51 MB in fp32."""
    raw = tiny_config(kind)
    raw["llm_config"] |= {"hidden_size": 256, "intermediate_size": 16384}
    raw["vision_config"] |= {"llm_hidden_size": 256}
    return U1Config.from_dict(raw)


def resident_bytes() -> int:
    """Memory of this process that is really in use."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * mmap.PAGESIZE


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_is_held_once_and_given_back():
    config = wide_config()
    source = RandomWeights(config)
    before = resident_bytes()
    arena = Arena(config, GENERATION, range(3), torch.float32)
    assert arena.n_bytes > 150e6
    assert resident_bytes() - before < 5e6  # nothing is touched before it is filled
    for index in range(3):
        arena.layer(index).zero_()
    filled = resident_bytes()
    assert filled - before == pytest.approx(arena.n_bytes, rel=0.05)
    source.read_into(
        "language_model.model.layers.0.mlp_mot_gen.down_proj.weight", arena.layer(0)[: 256 * 16384].view(256, -1)
    )
    arena.close()
    gc.collect()
    assert resident_bytes() - before < 25e6


class OnCard:
    """Stands in for `torch.cuda.device`."""

    current = threading.local()

    def __init__(self, device: torch.device | None) -> None:
        self._device = device

    def __enter__(self) -> None:
        self.current.device = self._device

    def __exit__(self, *_: object) -> None:
        del self.current.device


class Cudart:
    """Stands in for CUDA's own: says yes to so many bytes, and notes the card that is current whenever it is asked."""

    def __init__(self, allowed: int) -> None:
        self.allowed, self.registered, self.cards = allowed, {}, []

    def cudaHostRegister(self, address: int, n_bytes: int, flags: int) -> int:
        assert address % mmap.PAGESIZE == 0
        self.cards.append(OnCard.current.device)
        if sum(self.registered.values()) + n_bytes > self.allowed:
            return 2
        self.registered[address] = n_bytes
        return 0

    def cudaHostUnregister(self, address: int) -> int:
        self.cards.append(OnCard.current.device)
        del self.registered[address]
        return 0


@pytest.fixture
def cudart(monkeypatch, models):
    """CUDA that page-locks two layers and no more."""
    config = Snapshot.open(models["u1"]).config
    fake = Cudart(2 * layer_bytes(config, GENERATION, 0, torch.float32))
    monkeypatch.setattr(torch.cuda, "init", lambda: None)
    monkeypatch.setattr(torch.cuda, "cudart", lambda: fake)
    monkeypatch.setattr(torch.cuda, "device", OnCard)
    monkeypatch.setattr("u1_core.weights.arena._forget_error", lambda: None)
    return fake


def test_what_the_system_refuses_stays_pageable(models, cudart):
    snapshot = Snapshot.open(models["u1"])
    arena = Arena(snapshot.config, GENERATION, range(3), torch.float32)
    arena.fill(snapshot, pin=True)
    assert arena.pinned == {0, 1}
    assert set(cudart.registered) == {arena.layer(0).data_ptr(), arena.layer(1).data_ptr()}
    arena.close()
    assert cudart.registered == {}
    assert arena.pinned == frozenset()


def test_a_limit_is_kept(models, cudart):
    snapshot = Snapshot.open(models["u1"])
    arena = Arena(snapshot.config, GENERATION, range(3), torch.float32)
    arena.fill(snapshot, pin=True, pin_limit_bytes=arena.layer_bytes(0) + 1)
    assert arena.pinned == {0}
    arena.close()


@pytest.mark.parametrize("closed_by_hand", [True, False])
def test_memory_is_page_locked_and_unlocked_for_its_own_card(models, cudart, closed_by_hand):
    """A thread's current card is the first one until it is told otherwise: a context would be opened there."""
    snapshot, card = Snapshot.open(models["u1"]), torch.device("cuda", 1)
    arena = Arena(snapshot.config, GENERATION, range(3), torch.float32, card)
    arena.fill(snapshot, pin=True)
    if closed_by_hand:
        arena.close()
    del arena
    gc.collect()
    assert cudart.cards == [card] * 5  # the third is refused


def test_an_arena_that_nobody_holds_unlocks_its_memory(models, cudart):
    snapshot = Snapshot.open(models["u1"])
    arena = Arena(snapshot.config, GENERATION, [1], torch.float32)
    arena.fill(snapshot, pin=True)
    assert len(cudart.registered) == 1
    del arena
    gc.collect()
    assert cudart.registered == {}
