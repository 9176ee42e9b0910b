from dataclasses import replace
from pathlib import Path

import pytest
import torch

from u1_core.errors import U1Error
from u1_core.train.checkpoint import State, newest_state, prune, read_state, state_files, write_state

STATE = State(
    step=7,
    looked=True,
    log_bytes=123,
    recipe="run_name: été",
    data="d",
    model="m",
    guard={"recent": [0.1, 1e-300], "skipped": 0, "rollbacks": 1},
    weights={"a.down": torch.randn(2, 3)},
    ema={},
    optimizer={
        "state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.randn(2, 3), "codes": torch.arange(5).byte()}},
        "param_groups": [{"lr": 1e-3, "betas": (0.9, 0.95), "fused": True, "eps": (None, 0.001), "params": [0]}],
    },
)


def test_what_is_written_reads_back_the_same(tmp_path):
    write_state(tmp_path / "state_000007.safetensors", STATE)
    found = read_state(tmp_path / "state_000007.safetensors")
    assert vars(found).keys() == vars(STATE).keys()
    for key in ("step", "looked", "log_bytes", "recipe", "data", "model", "guard", "ema"):
        assert getattr(found, key) == getattr(STATE, key)
    assert torch.equal(found.weights["a.down"], STATE.weights["a.down"])
    assert found.optimizer["param_groups"] == STATE.optimizer["param_groups"]
    for key, tensor in STATE.optimizer["state"][0].items():
        assert torch.equal(found.optimizer["state"][0][key], tensor)
        assert found.optimizer["state"][0][key].dtype == tensor.dtype


def test_the_newest_whole_one_is_taken(tmp_path):
    assert newest_state(tmp_path) is None
    for step in (5, 10, 1000000):
        write_state(tmp_path / f"state_{step:06}.safetensors", replace(STATE, step=step))
    damaged = tmp_path / "state_1000000.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    (tmp_path / "state_000011.safetensors.77.part").write_bytes(b"half")
    assert newest_state(tmp_path).step == 10
    with pytest.raises(U1Error, match="is truncated"):
        read_state(damaged)


def test_the_last_few_and_every_so_manieth_are_kept(tmp_path):
    for step in range(10, 100, 10):
        for name in (f"state_{step:06}", f"step_{step:06}", f"step_{step:06}.full"):
            (tmp_path / f"{name}.safetensors").write_bytes(b"")
    prune(tmp_path, keep_last=2, keep_every=40)
    assert [path.name for path in state_files(tmp_path)] == [f"state_{n:06}.safetensors" for n in (90, 80, 40)]
    assert len(list(tmp_path.iterdir())) == 9


def test_weights_that_a_killed_run_left_without_their_state_go_too(tmp_path):
    for name in ("step_000010", "state_000020", "step_000020", "step_000025", "state_000030", "step_000030"):
        (tmp_path / f"{name}.safetensors").write_bytes(b"")
    (tmp_path / "step_000040.safetensors").write_bytes(b"")  # its state may be about to be written
    prune(tmp_path, keep_last=2, keep_every=0)
    assert sorted({int(path.stem[-2:]) for path in tmp_path.iterdir()}) == [20, 30, 40]


def test_a_state_that_was_read_holds_on_to_no_file(tmp_path):
    path = tmp_path / "state_000007.safetensors"
    write_state(path, STATE)
    found = read_state(path)
    with path.open("rb+") as file:  # in place, as it would show in a view of the file
        file.write(bytes(path.stat().st_size))
    assert torch.equal(found.weights["a.down"], STATE.weights["a.down"])


def test_what_someone_has_open_stays_for_the_next_time(tmp_path, monkeypatch):
    """As Windows has it."""
    for step in (1, 2, 3):
        write_state(tmp_path / f"state_{step:06}.safetensors", replace(STATE, step=step))
    unlink = Path.unlink

    def refuse(path, missing_ok=False):
        if path.name == "state_000001.safetensors":
            raise PermissionError(13, "used by another process")
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", refuse)
    prune(tmp_path, keep_last=1, keep_every=0)
    assert [path.name for path in state_files(tmp_path)] == ["state_000003.safetensors", "state_000001.safetensors"]
    monkeypatch.undo()
    prune(tmp_path, keep_last=1, keep_every=0)
    assert [path.name for path in state_files(tmp_path)] == ["state_000003.safetensors"]
