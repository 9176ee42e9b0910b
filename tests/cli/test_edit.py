import json
from pathlib import Path

import numpy as np
from PIL import Image

from u1_core.cli.main import main
from u1_core.sample.edit import edit
from u1_core.sample.guidance import Guidance
from u1_core.sample.settings import SampleSettings
from u1_core.session import Session

FAST = ("--steps", "1", "--device", "cpu")


def run(*arguments: str | Path) -> None:
    assert main(["edit", *map(str, arguments)]) == 0


def test_the_library_draws_the_same(models, picture, tmp_path, capsys):
    out = tmp_path / "out.png"
    options = ("--size", "48x32", *FAST, "--cfg", "3", "--image-cfg", "2", "--seed", "4", "--json", "--out", out)
    run("make it blue", picture, picture, "--model", models["u1"], *options)
    told = json.loads(capsys.readouterr().out)
    assert told["files"] == [str(out)]
    assert told["pictures"] == [str(picture)] * 2
    assert told["settings"]["guidance"]["image_cfg_scale"] == 2.0
    settings = SampleSettings(48, 32, 1, seed=4, guidance=Guidance(3.0, 2.0))
    session = Session.open(models["u1"], device="cpu")
    expected = edit(session, "make it blue", [Image.open(picture)] * 2, settings).pictures[0].clamp(-1, 1)
    drawn = np.array(Image.open(out)) / 255
    assert np.abs(drawn - (expected.permute(1, 2, 0).numpy() + 1) / 2).max() < 0.5 / 255 + 1e-6


def test_without_a_size_the_first_pictures_ratio(models, picture, tmp_path):
    """32 x 16 pixels at about 64 tokens of 8 x 8, whatever the others are."""
    Image.new("RGB", (16, 16)).save(tmp_path / "square.png")
    run(
        "make it blue",
        picture,
        tmp_path / "square.png",
        "--model",
        models["u1"],
        *FAST,
        "--cfg",
        "1",
        "--out",
        tmp_path / "out.png",
    )
    assert Image.open(tmp_path / "out.png").size == (96, 48)


def test_refused(models, picture, refused, tmp_path):
    model = ("--model", models["u1"], *FAST)
    missing, broken = tmp_path / "missing.png", tmp_path / "broken.png"
    assert refused("edit", "x", missing, *model) == f"{missing}: there is no such file"
    broken.write_bytes(picture.read_bytes()[:200])
    assert refused("edit", "x", broken, *model).startswith(
        f"{broken}: cannot be read as a picture, it is broken or cut"
    )
    assert refused("edit", "x", *[picture] * 11, *model) == "edit takes 1 to 10 pictures, not 11"
    marks = refused("edit", "<image> and <image>", picture, *model)
    assert marks == "the prompt marks 2 pictures with <image>, but 1 are given"
    assert "cfg_zero_star" in refused("edit", "x", picture, *model, "--norm", "cfg_zero_star")
