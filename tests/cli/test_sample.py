import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from u1_core.cli.main import main
from u1_core.lora.files import read_lora
from u1_core.sample.guidance import Guidance
from u1_core.sample.settings import SampleSettings
from u1_core.sample.text_to_image import text_to_image
from u1_core.session import Session
from u1_core.weights.snapshot import Snapshot

SMALL = ("--size", "48x32", "--steps", "2", "--device", "cpu")


def run(*arguments: str | Path) -> None:
    assert main(["sample", *map(str, arguments)]) == 0


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.array(image)


def facts(path: Path) -> dict:
    """What a PNG says of how it was made."""
    with Image.open(path) as image:
        return json.loads(image.text["u1"])


def test_the_library_draws_the_same(kind, models, tmp_path, capsys):
    out = tmp_path / "fox.png"
    run("a fox", "--model", models[kind], "--size", "64x32", "--steps", "2", "--seed", "7", "--cfg", "3", "--out", out)
    assert capsys.readouterr().out == f"{out}\n"
    session = Session.open(models[kind], device="cpu")
    settings = SampleSettings(64, 32, 2, seed=7, guidance=Guidance(3.0))
    expected = text_to_image(session, "a fox", settings).pictures[0] * 0.5 + 0.5
    levels = (expected.clamp(0, 1) * 255).round().permute(1, 2, 0).numpy()
    assert np.array_equal(pixels(out), levels.astype(np.uint8))


def test_a_png_says_how_to_make_it_again(models, lora, tmp_path):
    out, again = tmp_path / "fox.png", tmp_path / "again.png"
    run(
        *("a fox", "--model", models["u1"], *SMALL, "--seed", "9", "--cfg", "2.5", "--norm", "global"),
        *("--interval", "0.1", "0.9", "--shift", "2", "--lora", f"{lora(1)}:0.5", "--out", out),
    )
    told = facts(out)
    settings, guidance = told["settings"], told["settings"]["guidance"]
    run(
        *(told["prompt"], "--model", told["model"]["path"], "--device", told["device"], "--dtype", "fp32"),
        *("--size", f"{settings['width']}x{settings['height']}", "--steps", settings["steps"]),
        *("--seed", settings["seed"], "--cfg", guidance["cfg_scale"], "--norm", guidance["norm"]),
        *(
            "--interval",
            *guidance["interval"],
            "--shift",
            settings["shift"],
            "--lora",
            told["loras"][0],
            "--out",
            again,
        ),
    )
    assert out.read_bytes() == again.read_bytes()
    assert (settings["seed"], guidance["cfg_scale"], told["dtype"]) == (9, 2.5, "float32")
    assert told["model"]["kind"] == "u1"
    with Image.open(out) as image:
        assert "settings.guidance.cfg_scale: 2.5" in image.text["parameters"].splitlines()


def test_json_and_a_batch(models, tmp_path, capsys):
    run("a fox", "--model", models["u1"], *SMALL, "--batch", "2", "--json", "--out", tmp_path / "fox.png")
    told = json.loads(capsys.readouterr().out)
    assert told["files"] == [str(tmp_path / "fox.png"), str(tmp_path / "fox-1.png")]
    assert told["settings"]["batch"] == 2
    assert (told["settings"]["width"], told["settings"]["height"]) == (48, 32)
    assert (told["command"], told["prompt"], told["think"], told["device"]) == ("sample", "a fox", "", "cpu")
    assert told["seconds"] > 0
    first, second = map(pixels, map(Path, told["files"]))
    assert first.shape == second.shape == (32, 48, 3)
    assert not np.array_equal(first, second)


def test_nothing_is_overwritten(models, tmp_path, capsys):
    out = tmp_path / "fox.png"
    out.write_bytes(b"mine")
    run("a fox", "--model", models["u1"], *SMALL, "--out", out)
    assert out.read_bytes() == b"mine"
    assert capsys.readouterr().out == f"{tmp_path / 'fox-1.png'}\n"


def test_folded_into_the_weights_they_draw_what_the_merged_model_does(models, lora, tmp_path):
    loras = ("--lora", f"{lora(1)}:0.5", "--lora", lora(2))
    run("a fox", "--model", models["u1"], *SMALL, *loras, "--fold", "--out", tmp_path / "folded.png")
    merge = ("lora", "merge", "--model", models["u1"], *loras, "--out", tmp_path / "m")
    assert main(list(map(str, merge))) == 0
    run("a fox", "--model", tmp_path / "m", *SMALL, "--out", tmp_path / "merged.png")
    assert np.array_equal(pixels(tmp_path / "folded.png"), pixels(tmp_path / "merged.png"))
    assert (facts(tmp_path / "folded.png")["folded"], facts(tmp_path / "merged.png")["folded"]) == (True, False)


def test_two_loras_with_strengths(models, lora, tmp_path):
    """In any order, and as the library adds them up; strength 0 is none."""
    one, two = lora(1), lora(2)

    def draw(name: str, *loras: str) -> np.ndarray:
        options = [part for argument in loras for part in ("--lora", argument)]
        run("a fox", "--model", models["u1"], *SMALL, "--cfg", "1", *options, "--out", tmp_path / f"{name}.png")
        return pixels(tmp_path / f"{name}.png")

    both = draw("both", f"{one}:0.5", f"{two}:-0.25")
    session = Session.open(models["u1"], device="cpu")
    adapters = [read_lora(path).adapter for path in (one, two)]
    adapters[0].strength, adapters[1].strength = 0.5, -0.25
    session.use(adapters)
    settings = SampleSettings(48, 32, 2, guidance=Guidance(1.0))
    expected = text_to_image(session, "a fox", settings).pictures[0].clamp(-1, 1).permute(1, 2, 0).numpy()
    assert np.abs(both / 255 - (expected + 1) / 2).max() < 0.5 / 255 + 1e-6
    plain, half = draw("plain"), draw("half", f"{one}:0.5")
    assert np.array_equal(draw("none", f"{one}:0", f"{two}:0"), plain)
    assert not np.array_equal(half, plain)
    assert not np.array_equal(both, half)


def test_the_size_without_one_is_the_models_own(models, tmp_path):
    """64 tokens of 8 x 8 pixels; ratios are at that budget too."""
    run("a fox", "--model", models["u1"], "--steps", "1", "--cfg", "1", "--device", "cpu", "--out", tmp_path / "a.png")
    assert pixels(tmp_path / "a.png").shape == (64, 64, 3)
    options = ("--size", "2:1", "--steps", "1", "--cfg", "1", "--device", "cpu", "--out", tmp_path / "b.png")
    run("a fox", "--model", models["u1"], *options)
    assert pixels(tmp_path / "b.png").shape == (40, 88, 3)


def test_thinking_is_told_and_kept(models, tmp_path, capsys, session, scripted, monkeypatch):
    model = session()
    scripted(model, model.tokenizer.encode("red fur</think>"))
    monkeypatch.setattr(Session, "open", lambda *arguments, **budget: model)
    run("a fox", "--model", models["u1"], *SMALL, "--think", "--out", tmp_path / "fox.png")
    assert capsys.readouterr().out == f"red fur\n{tmp_path / 'fox.png'}\n"
    assert facts(tmp_path / "fox.png")["think"] == "red fur</think>"


@pytest.fixture
def sample(models, refused, tmp_path):
    """(*options) -> the line that `u1 sample` refuses them with."""
    options = ("--device", "cpu", "--steps", "1", "--out", tmp_path / "x.png")
    return lambda *more: refused("sample", "a fox", "--model", models["u1"], *options, *more)


def test_refused(sample, tmp_path):
    assert sample("--size", "50x32") == "size 50x32: both sides must be multiples of 8; the nearest is 48x32"
    assert sample("--size", "7:5").startswith(
        "size '7:5' is neither WIDTHxHEIGHT nor a ratio the model knows (1:1, 16:9"
    )
    assert sample("--steps", "0") == "steps 0 must be above 0"
    assert sample("--norm", "globl").endswith("did you mean 'global'?")
    assert sample("--interval", "0.9", "0.1").startswith("guidance interval (0.9, 0.1) must be two times from 0 to 1")
    assert sample("--device", "gpu") == "device 'gpu' is none of auto, cpu, cuda, cuda:N"
    assert sample("--dtype", "fp16") == "dtype 'fp16' is none of auto, bf16, fp32"
    missing = tmp_path / "missing"
    assert sample("--out", missing / "x.png") == f"--out {missing / 'x.png'}: there is no folder {missing}"
    assert sample("--out", "x.jpg").startswith("--out x.jpg: pictures are written as PNG")
    assert sorted(tmp_path.iterdir()) == []


def test_refused_models(refused, tmp_path, models):
    absent = tmp_path / "absent"
    assert refused("sample", "x", "--model", absent).startswith(f"{absent}: there is no such folder or file")
    assert "`u1 download some/model`" in refused("sample", "x", "--model", "some/model")
    (tmp_path / "empty").mkdir()
    assert refused("sample", "x", "--model", tmp_path / "empty").startswith(str(tmp_path / "empty"))


def test_refused_loras(sample, lora, tmp_path, models, refused):
    path = lora(1)
    missing = tmp_path / "missing.safetensors"
    assert sample("--lora", missing) == f"{missing}: there is no such LoRA file"
    assert sample("--lora", f"{path}:strong").endswith("is 'strong', expected a number such as 0.8")
    (tmp_path / "old.pt").write_bytes(b"")
    assert ".pt files are not read" in sample("--lora", tmp_path / "old.pt")
    kind = Snapshot.open(models["u1.5"]).config.kind
    other = refused("sample", "x", "--model", models["u1.5"], "--device", "cpu", "--lora", path)
    assert other.startswith("style1.safetensors: this LoRA is for U1 (")
    assert f"the model is {kind.upper()}" in other
