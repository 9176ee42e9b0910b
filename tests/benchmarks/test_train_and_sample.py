"""The benchmark of prompting beside a run, on a tiny model and the CPU: it draws, trains, and its figures add up."""

import json
import os
import subprocess
import sys
from pathlib import Path

from u1_core.weights.tiny import write_tiny_model

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "train_and_sample.py"


def test_pictures_beside_a_run_and_what_the_run_loses_by_them(tmp_path):
    model, out = tmp_path / "model", tmp_path / "figures.json"
    write_tiny_model(model)
    small = ["--width", 64, "--height", 64, "--steps", 10, "--warmup", 1, "--repeats", 4, "--pictures", 2]
    command = [sys.executable, SCRIPT, "--device", "cpu", "--model", model, "--json", out, *small]
    # More threads would only wait for each other.
    alone = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([str(part) for part in command], cwd=tmp_path, env=alone, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text(encoding="utf-8"))
    assert found["steps"] >= 1 + 4 + 2 * 2
    assert len(found["picture_beside_s"]) == len(found["run_lost_s"]) == 2
    # The run stands still for the picture, but for the step that it was in.
    for picture, lost in zip(found["picture_beside_s"], found["run_lost_s"], strict=True):
        assert picture - 2 * found["step_s"] <= lost <= picture + 1
