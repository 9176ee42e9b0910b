"""What commands are given: pictures and LoRA files for the tiny U1, and commands that must be refused."""

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from u1_core.cli.main import main
from u1_core.lora.adapter import Adapter
from u1_core.lora.files import write_lora
from u1_core.lora.plan import plan_lora
from u1_core.weights.snapshot import Snapshot


@pytest.fixture
def picture(tmp_path) -> Path:
    """A picture of 32 x 16 pixels."""
    pixels = np.random.default_rng(0).integers(0, 256, (16, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "input.png")
    return tmp_path / "input.png"


@pytest.fixture
def lora(tmp_path, models) -> Callable[[int], Path]:
    """Number -> a LoRA file for the tiny U1 that changes its pictures."""
    config = Snapshot.open(models["u1"]).config

    def write(number: int) -> Path:
        adapter = Adapter.create(plan_lora(config, "attn=r2a2"), seed=number)
        for module in adapter.modules.values():
            module.up.data.normal_(0, 0.2, generator=torch.Generator().manual_seed(number))
        write_lora(tmp_path / f"style{number}.safetensors", adapter)
        return tmp_path / f"style{number}.safetensors"

    return write


@pytest.fixture
def endless(tmp_path, models) -> Path:
    """A recipe for a run on one picture that does not end by itself, into tmp_path/runs/tiny."""
    (tmp_path / "pictures").mkdir()
    Image.fromarray(np.zeros((64, 64, 3), dtype=np.uint8)).save(tmp_path / "pictures" / "a.png")
    (tmp_path / "pictures" / "a.txt").write_text("black", encoding="utf-8")
    path = tmp_path / "recipe.yaml"
    path.write_text(
        f"run_name: tiny\nmodel: {models['u1']}\ndata: {{data_dir: {tmp_path / 'pictures'}, cap_max_pixels: 1024}}\n"
        "train: {steps: 100000, lr: 1e-4}\npreviews: {every: 0, steps: 2, size: 32x32}\n"
        f"runtime: {{out_dir: {tmp_path / 'runs'}, device: cpu}}\n",
        encoding="utf-8",
    )
    return path


@pytest.fixture
def until() -> Callable[[Callable[[], bool]], None]:
    """(condition): waits until it holds, three minutes at most: the machine may be busy."""

    def wait(condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 180
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.02)

    return wait


@pytest.fixture
def refused(capsys) -> Callable[..., str]:
    """(*arguments) -> the one line that a command ends with, with exit status 2 and nothing on standard output."""

    def run(*arguments: str | Path) -> str:
        assert main([str(argument) for argument in arguments]) == 2
        told = capsys.readouterr()
        assert told.out == ""
        assert told.err.startswith("error: ")
        assert told.err.endswith("\n")
        assert told.err.count("\n") == 1
        return told.err.removeprefix("error: ").rstrip()

    return run
