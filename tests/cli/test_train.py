import _thread
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from u1_core.cli import train as command
from u1_core.cli.main import main
from u1_core.lora.files import read_lora
from u1_core.train.recipe_file import load_recipe


@pytest.fixture
def recipe(tmp_path, models) -> Path:
    """A recipe file for a run of four steps on two pictures, in a folder whose name has a space."""
    folder = tmp_path / "my pictures"
    folder.mkdir()
    for index in range(2):
        pixels = np.full((64, 64, 3), 80 * index, dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
        (folder / f"{index}.txt").write_text(f"grey {index}", encoding="utf-8")
    path = tmp_path / "recipe.yaml"
    path.write_text(
        f"run_name: tiny\nmodel: {models['u1']}\ndata: {{data_dir: {folder}, cap_max_pixels: 1024}}\n"
        "style: {trigger: sty}\ntrain: {steps: 4, lr: 1e-3}\n"
        f"runtime: {{out_dir: {tmp_path / 'runs'}, device: cpu}}\n",
        encoding="utf-8",
    )
    return path


def test_a_run_tells_how_it_goes_and_where_its_results_are(recipe, tmp_path, models, capsys):
    assert main(["train", str(recipe)]) == 0
    run = tmp_path / "runs" / "tiny"
    out, err = capsys.readouterr()
    assert out.splitlines() == [
        f"finished after 4 of 4 steps: {run}",
        f"  LoRA: {run / 'tiny.safetensors'}",
        f"  tensors trained whole: {run / 'tiny.full.safetensors'}",
        f'  use it: u1 sample "sty, …" --model "{models["u1"]}" --lora "{run / "tiny.safetensors"}"',
    ]
    assert err.splitlines()[0] == "note: 0.png, 1.png: the caption has fewer than 3 words; say what it shows"
    assert err.splitlines()[1].startswith("tiny: 2 pictures, 262,304 trainable parameters (21 LoRA modules), prefix")
    assert [line.split("  ")[0] for line in err.splitlines()[2:]] == [f"step {i}/4" for i in (1, 2, 3, 4)]
    assert "\x1b" not in err


def test_the_command_line_overrides_the_recipe(recipe, tmp_path, capsys):
    options = ["--name", "other", "--steps", "2", "--out", str(tmp_path / "elsewhere"), "--device", "cpu", "--json"]
    assert main(["train", str(recipe), *options]) == 0
    facts = json.loads(capsys.readouterr().out)
    run = tmp_path / "elsewhere" / "other"
    assert facts == {
        "state": "finished",
        "run": str(run),
        "steps": 2,
        "lora": str(run / "other.safetensors"),
        "full": str(run / "other.full.safetensors"),
    }
    assert read_lora(run / "other.safetensors").metadata["u1.step"] == "2"
    assert load_recipe(run / "recipe.yaml").train.steps == 2


def test_a_runs_own_recipe_gives_the_same_lora_again(recipe, tmp_path):
    assert main(["train", str(recipe)]) == 0
    again = ["train", str(tmp_path / "runs" / "tiny" / "recipe.yaml"), "--out", str(tmp_path / "again")]
    assert main(again) == 0
    for name in ("tiny.safetensors", "tiny.full.safetensors"):
        assert (tmp_path / "runs" / "tiny" / name).read_bytes() == (tmp_path / "again" / "tiny" / name).read_bytes()


def test_a_run_goes_on_by_the_recipe_in_its_folder_wherever_the_command_is_given(recipe, tmp_path, capsys, monkeypatch):
    assert main(["train", str(recipe), "--steps", "2", "--name", "mine"]) == 0
    folder = (tmp_path / "runs").rename(tmp_path / "moved") / "mine"
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert main(["train", str(Path("..") / "moved" / "mine" / "recipe.yaml"), "--resume", "--steps", "3"]) == 0
    assert read_lora(folder / "mine.safetensors").metadata["u1.step"] == "3"
    assert list((tmp_path / "elsewhere").iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--steps", "0"], "error: train.steps is 0; allowed: a whole number, 1 or more"),
        (["--device", "gpu"], "error: runtime.device is 'gpu'; allowed: auto, cpu, cuda or cuda:N"),
        (["--name", "a/b"], "error: run_name is 'a/b'; allowed: a plain folder name"),
        (["--model", "nowhere/at/all"], "error: nowhere"),
    ],
)
def test_mistakes_are_one_line_and_exit_status_2(recipe, tmp_path, capsys, options, message):
    assert main(["train", str(recipe), *options]) == 2
    out, err = capsys.readouterr()
    assert err.startswith(message)
    assert (out, err.count("\n")) == ("", 1)
    assert not (tmp_path / "runs").exists()


def test_mistakes_in_the_data_too(recipe, tmp_path, capsys):
    (tmp_path / "my pictures" / "1.txt").unlink()
    assert main(["train", str(recipe)]) == 2
    expected = f"error: {tmp_path / 'my pictures'}: cannot train on 1 picture: 1.png (has no caption 1.txt); "
    assert capsys.readouterr().err.startswith(expected)


def test_a_recipe_without_a_model_asks_for_one(tmp_path, capsys):
    (tmp_path / "r.yaml").write_text("run_name: x")
    assert main(["train", str(tmp_path / "r.yaml")]) == 2
    assert "r.yaml: names no model; add a line `model: FOLDER` or give --model" in capsys.readouterr().err


def interrupting(monkeypatch, at_steps):
    """Have Ctrl-C pressed when these steps are done."""
    original = command.train

    def train(job, *more, **named):
        job.subscribe(lambda event: event.data.get("step") in at_steps and _thread.interrupt_main())
        return original(job, *more, **named)

    monkeypatch.setattr(command, "train", train)


def test_ctrl_c_stops_and_saves(recipe, tmp_path, capsys, monkeypatch):
    interrupting(monkeypatch, {2})
    assert main(["train", str(recipe), "--steps", "100000"]) == 130
    out, err = capsys.readouterr()
    assert "stopping after this step" in err
    assert out.startswith("stopped after ")
    (lora, *_) = sorted((tmp_path / "runs" / "tiny" / "checkpoints").iterdir(), reverse=True)
    assert str(lora) in out
    assert int(read_lora(lora).metadata["u1.step"]) >= 2


def test_an_error_of_ours_keeps_its_traceback(recipe, capsys, monkeypatch):
    monkeypatch.setattr(command, "train", lambda *more, **named: 1 / 0)
    assert main(["train", str(recipe)]) == 1
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_the_printed_file_is_all_that_sampling_needs(recipe, tmp_path, models):
    assert main(["train", str(recipe), "--steps", "30"]) == 0
    lora, full = (tmp_path / "runs" / "tiny" / f"tiny{part}.safetensors" for part in ("", ".full"))
    draw = ["sample", "sty, grey 1", "--model", str(models["u1"]), "--size", "32x32", "--steps", "3", "--device", "cpu"]

    def picture(name, *loras):
        options = [option for path in loras for option in ("--lora", path)]
        assert main([*draw, *options, "--out", str(tmp_path / name)]) == 0
        return np.asarray(Image.open(tmp_path / name)).astype(int)

    without, whole = picture("without.png"), picture("with.png", str(lora))
    assert np.abs(without - whole).mean() > 5
    assert np.array_equal(picture("off.png", f"{lora}:0"), without)
    alone = picture("alone.png", str(full))
    assert not np.array_equal(alone, without)
    assert not np.array_equal(alone, whole)


def test_progress_that_nobody_can_see_any_more_ends_no_run(recipe, monkeypatch):
    class Gone:
        isatty, reconfigure = (lambda self: False), (lambda self, errors: None)

        def write(self, text):
            raise OSError(5, "Input/output error")

    monkeypatch.setattr(sys, "stderr", Gone())
    assert main(["train", str(recipe)]) == 0
