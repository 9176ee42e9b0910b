"""A real ComfyUI for these tests (tools/comfyui.py says which), with a copy of the pack and nothing else.

Where there is none they are skipped, and the last lines of the report say so; likewise for the browser.
"""

import importlib.util
import json
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from u1_core.lora.adapter import Adapter
from u1_core.lora.files import write_lora
from u1_core.lora.plan import plan_lora
from u1_core.model.config import U1Config
from u1_core.weights.tiny import TINY_HEAD_WIDTH, tiny_config

ROOT = str(Path(__file__).resolve().parents[2])
if ROOT not in sys.path:
    sys.path.append(ROOT)

from tools.comfyui import ComfyUI, Server, find_comfyui, furnish, serving  # noqa: E402

FOUND = find_comfyui()
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
API = Path(ROOT) / "workflows" / "api"
SMALL = {"steps": 2, "max_tokens": 6, "width": 64, "height": 64}
"""What the workflows' large numbers are brought down to, so that the tiny model is done in seconds."""
TINY = "built-in tiny U1"
TINY_SAMPLING = {"width": 64, "height": 64, "megapixels": 0.0, "cfg": 1.0, "norm": "none", "shift": 3.0}
TINY_SAMPLING |= {"size": "width x height", "interval_from": 0.0, "interval_to": 1.0, "think": False, "batch": 1}


def browser_missing() -> str:
    """Why there are no browser tests, or nothing."""
    if importlib.util.find_spec("playwright") is None:
        return "Playwright is not installed"
    return "" if CHROMIUM else "there is no Chromium on PATH"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say plainly whether these tests ran: a skip is easily overlooked."""
    terminalreporter.section("tests inside ComfyUI")
    missing = FOUND if isinstance(FOUND, str) else ""
    terminalreporter.line(f"DID NOT RUN: {missing}" if missing else f"ran in {FOUND.folder}")
    missing = missing or browser_missing()
    terminalreporter.line(f"its browser tests DID NOT RUN: {missing}" if missing else f"its browser: {CHROMIUM}")


@pytest.fixture(scope="session")
def comfyui() -> ComfyUI:
    if isinstance(FOUND, str):
        pytest.skip(FOUND)
    return FOUND


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base directory for ComfyUI whose custom_nodes holds the pack and nothing else."""
    base = tmp_path_factory.mktemp("comfyui")
    furnish(base)
    return base


@pytest.fixture(scope="session")
def server(comfyui: ComfyUI, base: Path):
    """ComfyUI on the CPU. One thread: on models this small more would wait for each other."""
    with serving(comfyui, base, threads=1) as server:
        yield server


@pytest.fixture(scope="session")
def browser():
    """A Chromium, driven by Playwright."""
    if missing := browser_missing():
        pytest.skip(missing)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def status(server: Server) -> Callable[[str], dict]:
    """Run id -> its status."""
    return lambda run: json.loads(server.get(f"/u1/runs/{run}"))["status"]


@pytest.fixture(scope="session")
def until() -> Callable:
    """(condition, limit_s=30) -> the condition's value, once it is true."""

    def wait(condition: Callable[[], Any], limit_s: float = 30) -> Any:
        for _ in range(round(limit_s / 0.02)):
            if value := condition():
                return value
            time.sleep(0.02)
        raise TimeoutError(f"not so after {limit_s} s")

    return wait


@pytest.fixture(scope="session")
def workflows() -> dict[str, dict]:
    """Every workflow of the pack in API form, by name."""
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(API.glob("*.json"))}


@pytest.fixture(scope="session")
def small(workflows: dict[str, dict]) -> dict[str, dict]:
    """The same at small numbers, on the tiny model in place of nano."""
    return {name: _brought_down(workflow) for name, workflow in workflows.items()}


@pytest.fixture(scope="session")
def filled(server: Server, base: Path) -> None:
    """The files that the workflows' default inputs name: a style's pictures, two LoRAs, a picture to edit."""
    pictures = base / "input" / "my_style"
    pictures.mkdir(parents=True)
    for number, colour in enumerate(("red", "navy")):
        Image.new("RGB", (160, 120), colour).save(pictures / f"{number}.png")
        (pictures / f"{number}.txt").write_text(f"a plain wall painted {colour}\n", encoding="utf-8")
    Image.new("RGB", (96, 64), "gold").save(base / "input" / "example.png")
    config = U1Config.from_dict(tiny_config("u1"))
    config = config.with_head_width_of({"fm_modules.fm_head.0.weight": (TINY_HEAD_WIDTH,)})
    for name in ("my_style", "8_step"):
        adapter = Adapter.create(plan_lora(config, "attn=r4"), seed=1)
        for module in adapter.modules.values():
            module.up.requires_grad_(False).normal_(std=0.05, generator=torch.Generator().manual_seed(2))
        write_lora(base / "models" / "loras" / "u1" / f"{name}.safetensors", adapter)


def _brought_down(workflow: dict) -> dict:
    text = json.dumps(workflow).replace("built-in nano 8-step", "u1/8_step.safetensors")
    workflow = json.loads(text.replace("built-in nano", TINY))
    for node in workflow.values():
        inputs = node["inputs"]
        for name, value in SMALL.items():
            if isinstance(inputs.get(name), int):
                inputs[name] = min(inputs[name], value)
        if node["class_type"] == "TrainStyleLoRA":
            inputs["steps"] = 4
        if node["class_type"] == "U1CompareGrid":
            inputs["steps"] = inputs["other_steps"] = "2"
    return workflow


@pytest.fixture(scope="session")
def training() -> Callable[..., dict]:
    """(name, steps, **inputs) -> a workflow that starts such a run on the tiny model and two pictures."""

    def make(name: str, steps: int, **inputs: Any) -> dict:
        pictures = _node("EmptyImage", width=64, height=64, batch_size=2, color=0x336699)
        captions = "one blue wall\nanother blue wall"
        data = _node("U1StyleDataset", images=["2", 0], captions=captions, folder="", trigger="")
        data["inputs"] |= {"prompt_template": "official", "megapixels": 0.0, "snap_bucket": True}
        data["inputs"] |= {"use_think_labels": False}
        spec = _node("LoRASpec", model="U1-8B", preset="custom", spec="attn=r4", dropout=0.0)
        train = _node("TrainStyleLoRA", model=["1", 0], dataset=["3", 0], spec=["4", 0], name=name, steps=steps)
        train["inputs"] |= {"lr": 1e-3, "loss": "x0", "t_distribution": "uniform", "caption_dropout": 0.0}
        train["inputs"] |= {"optimizer": "adamw", "grad_accum": 1, "checkpoint_every": 0, "seed": 0}
        train["inputs"] |= {"train_heads": False, "validate_every": 0, "preview_every": 0, "preview_prompts": ""}
        train["inputs"] |= {"preview_steps": 2, "preview_cfg": 1.0, "wait": False, **inputs}
        return {"1": _tiny_model(), "2": pictures, "3": data, "4": spec, "5": train}

    return make


@pytest.fixture(scope="session")
def sampling() -> Callable[..., dict]:
    """(seed, steps=1) -> a workflow that draws a picture with the tiny model."""

    def make(seed: int, steps: int = 1) -> dict:
        drawing = _node("U1Sample", model=["1", 0], prompt="a red house", steps=steps, seed=seed, **TINY_SAMPLING)
        return {"1": _tiny_model(), "2": drawing, "3": _node("PreviewImage", images=["2", 0])}

    return make


def _tiny_model() -> dict:
    return _node("LoadU1Bf16Offload", model=TINY, dtype="auto")


def _node(kind: str, **inputs: Any) -> dict:
    return {"class_type": kind, "inputs": inputs}
