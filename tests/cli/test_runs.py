import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from u1_core.cli.main import main
from u1_core.train.control import read_status


@pytest.fixture
def recipe(tmp_path, models) -> Path:
    (tmp_path / "pictures").mkdir()
    Image.fromarray(np.zeros((64, 64, 3), dtype=np.uint8)).save(tmp_path / "pictures" / "a.png")
    (tmp_path / "pictures" / "a.txt").write_text("black", encoding="utf-8")
    path = tmp_path / "recipe.yaml"
    path.write_text(
        f"run_name: tiny\nmodel: {models['u1']}\ndata: {{data_dir: {tmp_path / 'pictures'}, cap_max_pixels: 1024}}\n"
        f"train: {{steps: 100000, lr: 1e-4}}\nruntime: {{out_dir: {tmp_path / 'runs'}, device: cpu}}\n",
        encoding="utf-8",
    )
    return path


def until(condition) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_detached_run_is_listed_followed_stopped_and_resumed(recipe, tmp_path, capsys):
    out, folder = str(tmp_path / "runs"), tmp_path / "runs" / "tiny"
    assert main(["train", str(recipe), "--detach"]) == 0
    assert capsys.readouterr().out.startswith("started as process ")
    try:
        until(lambda: read_status(folder).get("step", 0) > 2)
        assert main(["runs", "list", "--out", out]) == 0
        assert capsys.readouterr().out.split()[:2] == ["tiny", "running"]
        assert main(["runs", "tail", "tiny", "--out", out]) == 0
        assert capsys.readouterr().out.splitlines()[-1].startswith("step ")
        assert main(["runs", "pause", "tiny", "--out", out]) == 0
        until(lambda: read_status(folder)["state"] == "paused")
    finally:
        assert main(["runs", "stop", "tiny", "--out", out]) == 0
    until(lambda: read_status(folder)["state"] == "stopped")
    stopped_at = read_status(folder)["step"]
    assert main(["runs", "resume", "tiny", "--out", out]) == 0
    until(lambda: read_status(folder)["state"] == "running" and read_status(folder)["step"] > stopped_at)
    assert main(["runs", "stop", "tiny", "--out", out]) == 0
    until(lambda: read_status(folder)["state"] == "stopped")


def test_mistakes_are_one_line(recipe, tmp_path, capsys):
    assert main(["runs", "list", "--out", str(tmp_path / "none")]) == 2
    (tmp_path / "runs" / "tiny").mkdir(parents=True)
    (tmp_path / "runs" / "tiny" / "recipe.yaml").write_text("")
    assert main(["runs", "stop", "tiyn", "--out", str(tmp_path / "runs")]) == 2
    assert main(["runs", "stop", "tiny", "--out", str(tmp_path / "runs")]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(": ", 2)[2] for line in lines] == [
        "there is no such folder of runs; give it with --out",
        "there is no run 'tiyn'; did you mean 'tiny'?; `u1 runs list` shows them",
        "the run is dead, so it cannot stop",
    ]


def test_a_detached_run_that_cannot_begin_says_why(recipe, tmp_path, capsys):
    (tmp_path / "pictures" / "a.txt").unlink()
    assert main(["train", str(recipe), "--detach"]) == 2
    assert "the run ended at once: " in capsys.readouterr().err
    assert not (tmp_path / "runs" / "tiny").exists()
