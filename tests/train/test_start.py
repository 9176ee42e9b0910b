"""What a run reads and holds before its first step, with towers that do not fit on the device."""

import sys
import threading
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from u1_core.jobs import Job
from u1_core.model.config import EMBED_TOKENS, GENERATION, LM_HEAD
from u1_core.session import Session
from u1_core.train.prepare import prepare, prepared
from u1_core.train.recipe import Lora, Train
from u1_core.weights.layout import layer_bytes
from u1_core.weights.placement import Placement
from u1_core.weights.random_model import write_random_snapshot
from u1_core.weights.snapshot import Snapshot
from u1_core.weights.tiny import TINY_HEAD_WIDTH, tiny_config


@pytest.fixture
def opened(monkeypatch):
    """Folder -> its session, on a device that has room for two slots of the generation tower and nothing else."""

    def open_session(folder: Path, layers: int) -> Session:
        session = Session.open(folder, "cpu", "bf16", placement=Placement.spread(layers, 0, slots=2))
        monkeypatch.setattr(session, "_room_bytes", lambda: 0)
        return session

    return open_session


@pytest.fixture
def dropping(recipe, tmp_path):
    """A recipe that needs the empty prompt too, with nothing kept from earlier runs."""
    kept = replace(recipe.runtime, prefix_dir=str(tmp_path / "kv"))
    return replace(
        recipe, train=Train(steps=1, cond_dropout_text=0.1), runtime=kept, unfreeze=(), lora=Lora(None, "attn=r2")
    )


def test_every_tensor_is_read_once_and_lm_head_never(models, opened, dropping, monkeypatch):
    reads, read_into = Counter(), Snapshot.read_into
    monkeypatch.setattr(Snapshot, "read_into", lambda *arguments: (reads.update([arguments[1]]), read_into(*arguments)))
    session = opened(models["u1"], 3)
    prepare(Job(print), session, dropping)
    assert set(reads) == set(session.snapshot.tensors) - {EMBED_TOKENS, LM_HEAD}
    assert set(reads.values()) == {1}


@pytest.fixture(scope="module")
def wide(tmp_path_factory) -> Path:
    """A model of four layers of 38 MB in bf16 in each tower, which the C library gives back when they are freed."""
    folder, config = tmp_path_factory.mktemp("wide") / "model", tiny_config()
    config["llm_config"] |= {"hidden_size": 256, "intermediate_size": 24576, "num_hidden_layers": 4}
    config["vision_config"] |= {"llm_hidden_size": 256}
    write_random_snapshot(folder, config, dtype=torch.bfloat16, head_width=TINY_HEAD_WIDTH)
    return folder


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_the_host_holds_the_generation_tower_once_and_of_the_other_a_few_layers(wide, opened):
    session = opened(wide, 4)
    layer = layer_bytes(session.config, GENERATION, 0, torch.bfloat16)
    before = begin_peak()
    for weights in session.understanding.layers:
        assert weights.qkv.any()
    held, peak = resident_bytes("VmRSS") - before, resident_bytes("VmHWM") - before
    # Two are being read or copied from and two are where the device's would be; after the last layer, that one alone.
    assert held < 1.2 * layer
    assert peak < 4.2 * layer
    del weights
    before = begin_peak()
    layers = session.base_generation.layers
    held, peak = resident_bytes("VmRSS") - before, resident_bytes("VmHWM") - before
    # The slots have not been touched yet.
    assert 3.8 * layer < held < 4.2 * layer
    assert peak < 4.2 * layer
    layers.close()
    assert abs(resident_bytes("VmRSS") - before) < 0.2 * layer


def begin_peak() -> int:
    """Have the process's peak of memory begin anew, at what it holds now."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return resident_bytes("VmRSS")


def resident_bytes(kind: str) -> int:
    """Memory of this process that is in use now (VmRSS) or was at most (VmHWM)."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(kind))


def test_who_draws_between_preparing_and_the_first_step_finds_the_tower_taken(session, recipe):
    """Or it might place the tower anew, and close what the trainer has of it."""
    found = []

    def draw():
        with session.lease:
            found.append(session._kept_unfolded)

    sampler = threading.Thread(target=draw)
    job = Job(lambda job: None)
    job.subscribe(lambda event: sampler.start() if event.kind == "prepared" else None)
    with prepared(job, session, recipe):
        sampler.join(10)
    assert found == [1]
