"""What commands are given: pictures and LoRA files for the tiny U1, and commands that must be refused."""

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
