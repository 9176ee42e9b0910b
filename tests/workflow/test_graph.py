"""Workflows without ComfyUI: what is refused, and the chain from pictures to a LoRA in use."""

import json
from pathlib import Path

import pytest
from PIL import Image

from u1_core.cli.main import main
from u1_core.errors import U1Error
from u1_core.workflow.graph import run_workflow
from u1_core.workflow.studio import Places, Studio

MODEL = {"class_type": "LoadU1Bf16Offload", "inputs": {"model": "built-in tiny U1"}}


@pytest.fixture(scope="module")
def studio(tmp_path_factory) -> Studio:
    root = tmp_path_factory.mktemp("studio")
    return Studio(Places((root / "models",), (root / "loras",), root / "out", root / "cache", root / "input"), "cpu")


def refusal(studio: Studio, workflow: dict) -> str:
    with pytest.raises(U1Error) as refused:
        run_workflow(studio, workflow)
    return str(refused.value)


def test_what_is_wrong_with_a_workflow_is_said_with_its_node(studio):
    assert refusal(studio, {"1": {"class_type": "U1Sampl", "inputs": {}}}) == (
        "node 1: 'U1Sampl' is not a node that runs without ComfyUI; did you mean 'U1Sample'?"
    )
    assert refusal(studio, {"1": {"class_type": "LoadU1Bf16Offload", "inputs": {}}}) == (
        "node 1 (LoadU1Bf16Offload): its input 'model' is missing"
    )
    assert refusal(studio, {"1": {"class_type": "LoadU1Bf16Offload", "inputs": {"model": "x", "dtyp": "fp32"}}}) == (
        "node 1 (LoadU1Bf16Offload): there is no input 'dtyp'; did you mean 'dtype'?"
    )
    assert "did you mean 'built-in tiny U1'?" in refusal(
        studio, {"1": {"class_type": "LoadU1Bf16Offload", "inputs": {"model": "built-in tiny U2"}}}
    )
    sample = {"class_type": "U1Sample", "inputs": {"model": ["7", 0], "prompt": ""}}
    assert refusal(studio, {"1": sample}) == "node 1 takes an input from node 7, which is not there"
    circle = {"class_type": "U1Sample", "inputs": {"model": ["1", 0], "prompt": ""}}
    assert refusal(studio, {"1": circle}) == "nodes 1 wait for each other"


def test_a_lora_outside_the_lora_folders_is_not_read(studio, tmp_path):
    (tmp_path / "secret.safetensors").touch()
    inputs = {"model": ["1", 0], "lora": f"../../{tmp_path.name}/secret.safetensors"}
    message = refusal(studio, {"1": MODEL, "2": {"class_type": "LoadU1LoRA", "inputs": inputs}})
    assert message.startswith("node 2 (LoadU1LoRA): there is no LoRA ")


def test_from_pictures_to_a_lora_in_use(studio):
    folder = studio.places.input / "walls"
    folder.mkdir(parents=True)
    for colour in ("red", "blue"):
        Image.new("RGB", (64, 64), colour).save(folder / f"{colour}.png")
        (folder / f"{colour}.txt").write_text(f"a wall painted all over in {colour}", encoding="utf-8")
    train = {
        "model": ["1", 0],
        "dataset": ["2", 0],
        "spec": ["3", 0],
        "name": "walls",
        "steps": 3,
        "train_heads": False,
    }
    train |= {"lr": 1e-2, "validate_every": 0, "preview_every": 0, "recipe": "train: {loss_type: v}"}
    drawing = {"size": "width x height", "width": 64, "height": 64, "steps": 2, "cfg": 1.0, "prompt": "a wall"}
    results = run_workflow(
        studio,
        {
            "6": {"class_type": "U1Sample", "inputs": {"model": ["5", 0], **drawing}},
            "7": {"class_type": "U1Sample", "inputs": {"model": ["1", 0], **drawing}},
            "1": MODEL,
            "2": {"class_type": "U1StyleDataset", "inputs": {"folder": "walls"}},
            "3": {"class_type": "LoRASpec", "inputs": {"preset": "custom", "spec": "attn=r4", "for_model": ["1", 0]}},
            "4": {"class_type": "TrainStyleLoRA", "inputs": train},
            "5": {"class_type": "U1TrainingRun", "inputs": {"run": ["4", 0], "model": ["1", 0]}},
            "8": {"class_type": "ExportU1LoRA", "inputs": {"model": ["5", 0], "name": "walls_exported"}},
        },
    )
    assert results["5"].text == "walls: finished, step 3 of 3, walls.safetensors"
    assert results["3"].text.startswith("built-in tiny U1: 12 modules")
    assert "loss_type: v\n" in (studio.runs.folder("walls") / "recipe.yaml").read_text(encoding="utf-8")
    with_lora, without = results["6"].values[0], results["7"].values[0]
    assert with_lora.shape == (1, 64, 64, 3)
    assert not with_lora.equal(without)
    landed = studio.places.loras[0] / "u1"
    assert sorted(path.name for path in landed.iterdir()) == ["walls.safetensors", "walls_exported.safetensors"]
    # A studio that comes later finds the run by its folder.
    later = Studio(studio.places, "cpu")
    assert [(run.id, run.state, run.step) for run in later.runs.statuses()] == [("walls", "finished", 3)]
    assert later.runs.history("walls") == studio.runs.history("walls")


def test_u1_run_wants_the_api_form(tmp_path, capsys):
    file = tmp_path / "canvas.json"
    file.write_text(json.dumps({"nodes": [], "links": []}), encoding="utf-8")
    assert main(["run", str(file)]) == 2
    assert capsys.readouterr().err == (
        f"error: {file}: is a workflow as the canvas has it; export it with File, Export (API)\n"
    )
    ready = tmp_path / "api" / "canvas.json"
    ready.parent.mkdir()
    ready.write_text("{}", encoding="utf-8")
    assert main(["run", str(file)]) == 2
    assert capsys.readouterr().err == f"error: {file}: is a workflow as the canvas has it; take {ready}\n"


def test_every_workflow_of_the_canvas_has_its_api_form_and_its_picture():
    folder = Path(__file__).resolve().parents[2] / "workflows"
    for path in (folder / "api").glob("*.json"):
        asked = json.loads(path.read_text(encoding="utf-8"))
        canvas = json.loads((folder / path.name).read_text(encoding="utf-8"))
        kinds = {str(node["id"]): node["type"] for node in canvas["nodes"]}
        assert kinds == {number: node["class_type"] for number, node in asked.items()}
        with Image.open(folder / f"{path.stem}.jpg") as picture:
            assert picture.format == "JPEG"
            assert max(picture.size) <= 640
