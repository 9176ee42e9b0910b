import os
import re
from pathlib import Path

import pytest
import torch

from u1_core.model.config import GENERATION, UNDERSTANDING
from u1_core.session import Session
from u1_core.weights import read_ahead
from u1_core.weights.random_model import RandomWeights
from u1_core.weights.snapshot import Snapshot
from u1_core.weights.store import load_generation, load_understanding
from u1_core.weights.tiny import KINDS


def layer_bytes(snapshot: Snapshot, generation: bool) -> int:
    entries = snapshot.tensors.items()
    return sum(entry.n_bytes for name, entry in entries if ".layers." in name and (GENERATION in name) == generation)


def begin(monkeypatch, model: Path, readers: int = 0) -> "read_ahead._ReadAhead":
    """Reading ahead as `begin` starts it, with so many threads; with none, the test asks for blocks itself."""
    monkeypatch.setattr(read_ahead, "READERS", readers)
    read_ahead.begin(model)
    return read_ahead._under_way


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_are_all_bytes_of_both_towers_layer_by_layer_the_understanding_tower_first(models, kind, monkeypatch):
    monkeypatch.setattr(read_ahead, "BLOCK_BYTES", 1000)
    snapshot = Snapshot.open(models[kind])
    blocks = list(read_ahead.blocks_of(models[kind]))
    towers = [block.tower for block in blocks]
    assert towers == sorted(towers, key=[UNDERSTANDING, GENERATION].index)
    for tower in (UNDERSTANDING, GENERATION):
        n_bytes = sum(block.n_bytes for block in blocks if block.tower == tower)
        assert n_bytes == layer_bytes(snapshot, tower == GENERATION) > 0
    assert max(block.n_bytes for block in blocks) == 1000
    assert len({(block.file, block.start) for block in blocks}) == len(blocks)


def test_layers_come_in_the_order_of_their_numbers(models):
    snapshot = Snapshot.open(models["u1"])
    starts = {}
    for name, entry in snapshot.tensors.items():
        header_bytes = int.from_bytes(entry.file.open("rb").read(8), "little")
        if layer := re.search(r"\.layers\.(\d+)\.", name):
            starts[entry.file, 8 + header_bytes + entry.start] = (GENERATION in name, int(layer[1]))
    order = [starts[block.file, block.start] for block in read_ahead.blocks_of(models["u1"])]
    assert order == sorted(order)
    assert {number for _, number in order} == set(range(snapshot.config.layers))


def test_every_block_is_read_and_the_threads_end(models, monkeypatch):
    read, real = [], read_ahead._read
    monkeypatch.setattr(read_ahead, "_read", lambda block, place: (read.append(block), real(block, place)))
    for thread in begin(monkeypatch, models["u1"], readers=4).threads:
        thread.join(10)
        assert not thread.is_alive()
    assert sorted(read) == sorted(read_ahead.blocks_of(models["u1"]))


def test_no_more_is_read_than_the_share_of_memory(models, monkeypatch):
    monkeypatch.setattr(read_ahead, "BLOCK_BYTES", 1000)
    monkeypatch.setattr(read_ahead, "host_memory_bytes", lambda: 21_000)
    reading, n_bytes = begin(monkeypatch, models["u1"]), 0
    while block := reading._next():
        n_bytes += block.n_bytes
    assert 9_000 < n_bytes <= 0.5 * 21_000


def test_what_the_understanding_tower_still_lacks_is_left_when_the_generation_tower_is_loaded(models, monkeypatch):
    monkeypatch.setattr(read_ahead, "BLOCK_BYTES", 10_000)
    reading, snapshot = begin(monkeypatch, models["u1"]), Snapshot.open(models["u1"])
    load_understanding(snapshot, "cpu", torch.float32)
    assert reading._next().tower == UNDERSTANDING
    load_generation(RandomWeights(snapshot.config), "cpu", torch.float32, resident=False)  # as measuring does
    assert reading._next().tower == UNDERSTANDING
    assert Session.open(models["u1"], "cpu").base_generation
    n_bytes = 0
    while block := reading._next():
        assert block.tower == GENERATION
        n_bytes += block.n_bytes
    assert n_bytes == layer_bytes(snapshot, generation=True)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff" * 100,
        b"\x02" + bytes(7) + b"[]",
        b"\x09" + bytes(7) + b'{"a.layer',
        (200_000).to_bytes(8, "little") + b"[" * 200_000,
    ],
    ids=["empty", "no header", "a list", "cut off", "nested"],
)
def test_a_damaged_file_is_left_to_whoever_needs_it(content, tmp_path, monkeypatch):
    (tmp_path / "model.safetensors").write_bytes(content)
    for path in (tmp_path, tmp_path / "model.safetensors", tmp_path / "missing.safetensors"):
        for thread in begin(monkeypatch, path, readers=2).threads:
            thread.join(10)  # pytest fails a test in which a thread does
            assert not thread.is_alive()


@pytest.mark.skipif(not hasattr(os, "RWF_NOWAIT"), reason="only Linux tells what is in the page cache")
def test_a_block_that_is_in_memory_is_not_read_again(tmp_path):
    path = tmp_path / "weights"
    path.write_bytes(bytes(100_000))
    with path.open("rb", buffering=0) as file:
        if not read_ahead._is_cached(file, 50_000):
            pytest.skip("this file system does not tell what is in the page cache")
        assert not read_ahead._is_cached(file, 100_000)
    place = memoryview(bytearray(b"x" * 8))
    read_ahead._read(read_ahead._Block(UNDERSTANDING, path, 50_000, 8), place)
    assert bytes(place) == b"x" * 8


def test_a_block_of_which_the_system_has_read_only_the_beginning_is_read(tmp_path, monkeypatch):
    path = tmp_path / "weights"
    path.write_bytes(b"y" * 100_000)
    monkeypatch.setattr(read_ahead, "_is_cached", lambda file, at: at < 50_004)
    place = memoryview(bytearray(8))
    read_ahead._read(read_ahead._Block(UNDERSTANDING, path, 50_000, 8), place)
    assert bytes(place) == b"y" * 8
