"""Every workflow of the pack, run in a real ComfyUI on the built-in model; and the same bytes without ComfyUI."""

import hashlib
import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from u1_core.lora.adapter import Adapter
from u1_core.lora.files import write_lora
from u1_core.lora.plan import plan_lora
from u1_core.model.config import U1Config
from u1_core.weights.tiny import TINY_HEAD_WIDTH, tiny_config

PACK = Path(__file__).resolve().parents[2]
WORKFLOWS = {
    path.stem: json.loads(path.read_text(encoding="utf-8")) for path in (PACK / "workflows/api").glob("*.json")
}
SMALL = {"steps": 2, "max_tokens": 6, "width": 64, "height": 64}
"""What the workflows' large numbers are brought down to, so that the tiny model is done in seconds."""


@pytest.fixture(scope="module")
def filled(server, base) -> None:
    """The files that the workflows' default inputs name: a style's pictures, two LoRAs, a picture to edit."""
    pictures = base / "input" / "my_style"
    pictures.mkdir(parents=True)
    for number, colour in enumerate(("red", "navy")):
        Image.new("RGB", (160, 120), colour).save(pictures / f"{number}.png")
        (pictures / f"{number}.txt").write_text(f"a plain wall painted {colour}\n", encoding="utf-8")
    Image.new("RGB", (96, 64), "teal").save(pictures / "uncaptioned.png")
    Image.new("RGB", (96, 64), "gold").save(base / "input" / "example.png")
    raw = tiny_config("u1")
    config = U1Config.from_dict(raw).with_head_width_of({"fm_modules.fm_head.0.weight": (TINY_HEAD_WIDTH,)})
    for name in ("my_style", "8_step"):
        adapter = Adapter.create(plan_lora(config, "attn=r4"), seed=1)
        for module in adapter.modules.values():
            module.up.requires_grad_(False).normal_(std=0.05, generator=torch.Generator().manual_seed(2))
        write_lora(base / "models" / "loras" / "u1" / f"{name}.safetensors", adapter)


def on_tiny(workflow: dict) -> dict:
    """The workflow with the tiny model in place of nano."""
    text = json.dumps(workflow).replace("built-in nano 8-step", "u1/8_step.safetensors")
    return json.loads(text.replace("built-in nano", "built-in tiny U1"))


def brought_down(workflow: dict) -> dict:
    """The workflow at small numbers, on the tiny model."""
    workflow = on_tiny(workflow)
    for node in workflow.values():
        inputs = node["inputs"]
        for name, value in SMALL.items():
            if isinstance(inputs.get(name), int):
                inputs[name] = min(inputs[name], value) if node["class_type"] != "TrainStyleLoRA" else 4
        if node["class_type"] == "U1CompareGrid":
            inputs["steps"] = "2"
            inputs["other_steps"] = "2"
    return workflow


def test_there_is_a_workflow_for_every_task():
    assert sorted(WORKFLOWS) == [
        "ask_and_caption",
        "compare_50_vs_8",
        "demo_builtin",
        "edit",
        "interleave",
        "sample_with_lora",
        "stack_8step",
        "train_style_lora",
    ]


@pytest.mark.parametrize("name", ["edit", "sample_with_lora", "stack_8step", "compare_50_vs_8", "interleave"])
def test_a_workflow_gives_its_pictures(server, filled, base, name):
    result = server.run(brought_down(WORKFLOWS[name]))
    assert result["status"]["status_str"] == "success", result["status"]
    (saved,) = [output for number, output in result["outputs"].items() if _kind(name, number) == "SaveImage"]
    path = base / "output" / saved["images"][0]["subfolder"] / saved["images"][0]["filename"]
    assert np.asarray(Image.open(path)).std() > 1 or name == "interleave"


def test_captions_are_written_only_where_there_is_none(server, filled, base):
    folder = base / "input" / "my_style"
    before = (folder / "0.txt").read_bytes()
    result = server.run(brought_down(WORKFLOWS["ask_and_caption"]))
    assert result["status"]["status_str"] == "success", result["status"]
    assert result["outputs"]["4"]["text"][0].startswith("3 pictures, 1 without a caption\nuncaptioned.png: ")
    assert (folder / "0.txt").read_bytes() == before


def test_training_returns_at_once_and_lands_its_lora(server, filled, base):
    for path in (base / "input" / "my_style").glob("uncaptioned*"):
        path.unlink()
    result = server.run(brought_down(WORKFLOWS["train_style_lora"]))
    assert result["status"]["status_str"] == "success", result["status"]
    assert result["outputs"]["5"]["u1"] == [{"run": "my_style"}]
    follow = {"1": {"class_type": "U1TrainingRun", "inputs": {"name": "my_style", "step": 0, "wait": True}}}
    follow["1"]["inputs"]["strength"] = 1.0
    done = server.run(follow)
    assert done["outputs"]["1"]["text"][0] == "my_style: finished, step 4 of 4, my_style.safetensors"
    # There was a LoRA of that name: it is still there, and the new one has a number.
    assert (base / "models/loras/u1/my_style-2.safetensors").is_file()


def test_u1_run_and_comfyui_give_the_same_bytes(comfyui, server, base, tmp_path):
    """The demo with ComfyUI and, in ComfyUI's Python, without: the same LoRA to the byte, the same pixels."""
    workflow = on_tiny(WORKFLOWS["demo_builtin"])
    result = server.run(workflow)
    assert result["status"]["status_str"] == "success", result["status"]
    picture = result["outputs"]["9"]["images"][0]
    file = tmp_path / "demo.json"
    file.write_text(json.dumps(workflow), encoding="utf-8")
    pack = base / "custom_nodes" / "u1-style-studio"
    code = f"import sys; sys.path.insert(0, {str(pack)!r}); from u1_core.cli.main import main; sys.exit(main())"
    done = subprocess.run(comfyui.command("-c", code, "run", file), cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for name in ("demo.safetensors", "demo.full.safetensors"):
        ours, theirs = tmp_path / "loras" / "u1" / name, base / "models" / "loras" / "u1" / name
        assert _digest(ours) == _digest(theirs), name
    with (
        Image.open(tmp_path / "output/u1/demo_00001_.png") as ours,
        Image.open(base / "output" / picture["subfolder"] / picture["filename"]) as theirs,
    ):
        assert ours.tobytes() == theirs.tobytes()
    with safe_open(str(tmp_path / "loras/u1/demo.safetensors"), framework="pt") as lora:
        assert json.loads(lora.metadata()["u1.workflow"]) == workflow
    shutil.rmtree(tmp_path / "output")


def _kind(name: str, number: str) -> str:
    return WORKFLOWS[name][number]["class_type"]


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
