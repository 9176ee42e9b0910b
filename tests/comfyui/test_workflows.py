"""Every workflow of the pack, run in a real ComfyUI on the built-in model; and the same bytes without ComfyUI."""

import json
import subprocess

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open


def test_there_is_a_workflow_for_every_task(workflows):
    assert list(workflows) == [
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
def test_a_workflow_gives_its_pictures(server, filled, base, small, name):
    result = server.run(small[name])
    assert result["status"]["status_str"] == "success", result["status"]
    (saved,) = [each for node, each in result["outputs"].items() if small[name][node]["class_type"] == "SaveImage"]
    path = base / "output" / saved["images"][0]["subfolder"] / saved["images"][0]["filename"]
    assert np.asarray(Image.open(path)).std() > 1 or name == "interleave"


def test_captions_are_written_only_where_there_is_none(server, filled, base, small):
    folder = base / "input" / "my_style"
    before = (folder / "0.txt").read_bytes()
    uncaptioned = folder / "uncaptioned.png"
    Image.new("RGB", (96, 64), "teal").save(uncaptioned)
    try:
        result = server.run(small["ask_and_caption"])
    finally:
        uncaptioned.unlink()
        uncaptioned.with_suffix(".txt").unlink(missing_ok=True)
    assert result["status"]["status_str"] == "success", result["status"]
    assert result["outputs"]["4"]["text"][0].startswith("3 pictures, 1 without a caption\nuncaptioned.png: ")
    assert (folder / "0.txt").read_bytes() == before


def test_training_returns_at_once_and_lands_its_lora(server, filled, base, small):
    result = server.run(small["train_style_lora"])
    assert result["status"]["status_str"] == "success", result["status"]
    run = result["outputs"]["5"]["u1"][0]["run"]
    follow = {"1": {"class_type": "U1TrainingRun", "inputs": {"name": run, "step": 0, "wait": True, "strength": 1.0}}}
    done = server.run(follow)
    assert done["outputs"]["1"]["text"][0].startswith(f"{run}: finished, step 4 of 4, {run}.safetensors, validation ")
    # There was a LoRA of that name: it is still there, and the new one has a number.
    assert (base / "models/loras/u1/my_style-2.safetensors").is_file()


def test_u1_run_and_comfyui_give_the_same_bytes(comfyui, server, base, small, tmp_path):
    """The demo with ComfyUI and, in ComfyUI's Python, without: the same LoRA to the byte, the same pixels."""
    workflow = small["demo_builtin"]
    result = server.run(workflow)
    assert result["status"]["status_str"] == "success", result["status"]
    picture = result["outputs"]["9"]["images"][0]
    file = tmp_path / "demo.json"
    file.write_text(json.dumps(workflow), encoding="utf-8")
    pack = base / "custom_nodes" / "u1-style-studio"
    code = f"import sys; sys.path.insert(0, {str(pack)!r}); from u1_core.cli.main import main; sys.exit(main())"
    command = comfyui.command("-c", code, "run", file)
    # A temporary folder of its own: prefix K/V that another number of threads has left there differ in the last bit.
    apart = server.environment | dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(tmp_path))
    done = subprocess.run(command, cwd=tmp_path, env=apart, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for name in ("demo.safetensors", "demo.full.safetensors"):
        ours, theirs = tmp_path / "loras" / "u1" / name, base / "models" / "loras" / "u1" / name
        assert ours.read_bytes() == theirs.read_bytes(), name
    with (
        Image.open(tmp_path / "output/u1/demo_00001_.png") as ours,
        Image.open(base / "output" / picture["subfolder"] / picture["filename"]) as theirs,
    ):
        assert ours.tobytes() == theirs.tobytes()
    with safe_open(str(tmp_path / "loras/u1/demo.safetensors"), framework="pt") as lora:
        assert json.loads(lora.metadata()["u1.workflow"]) == workflow
