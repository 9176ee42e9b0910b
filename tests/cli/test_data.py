import json

import numpy as np
import pytest
from PIL import Image

from u1_core.cli.main import main

CAPTIONS = ("a red house by a lake", "two dogs after a ball", "an old man reading")


@pytest.fixture
def folder(tmp_path):
    """Three good pictures in a folder whose name has a space."""
    path = tmp_path / "my pictures"
    path.mkdir()
    for index, caption in enumerate(CAPTIONS):
        blocks = np.random.default_rng(index).integers(0, 256, (3, 3, 3), dtype=np.uint8)
        Image.fromarray(blocks).resize((64, 64), Image.Resampling.BICUBIC).save(path / f"{index}.png")
        (path / f"{index}.txt").write_text(caption, encoding="utf-8")
    return path


@pytest.fixture
def recipe(tmp_path, folder, models):
    path = tmp_path / "recipe.yaml"
    path.write_text(
        f"model: {models['u1']}\ndata: {{data_dir: {folder}, cap_max_pixels: 4096}}\nstyle: {{trigger: dogs}}\n",
        encoding="utf-8",
    )
    return path


def test_check_tells_what_will_hurt(folder, recipe, capsys):
    assert main(["data", "check", "--recipe", str(recipe)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == [f"{folder}: 3 pictures with captions", "trained at 64x64 (3)"]
    assert lines[2].startswith("hurts: 1.png: the caption has the trigger 'dogs' already")
    assert lines[3:] == ["found: 1 hurts"]


def test_a_good_set(folder, capsys, tmp_path):
    recipe = tmp_path / "r.yaml"
    recipe.write_text("data: {cap_max_pixels: 4096}", encoding="utf-8")
    assert main(["data", "check", str(folder), "--recipe", str(recipe)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "nothing found that would hurt"


def test_check_without_a_recipe_takes_the_defaults(folder, capsys):
    (folder / "2.png").write_bytes(b"no picture")
    assert main(["data", "check", str(folder)]) == 1
    out = capsys.readouterr().out
    assert "trained at 2048x2048 (2)" in out
    assert "stops: 2.png: is no picture in a format that can be read" in out
    assert out.endswith("found: 1 stops, 1 hurts\n")


def test_many_broken_pictures_are_not_all_listed(folder, capsys):
    for index in range(30):
        (folder / f"x{index:02}.png").write_bytes(b"no picture")
    assert main(["data", "check", str(folder)]) == 1
    out = capsys.readouterr().out
    assert "stops: x19.png: has no caption x19.txt" in out
    assert "x20.png" not in out
    assert "stops: 10 more such; --json lists them all" in out


def test_check_as_json_with_a_sheet(folder, recipe, tmp_path, capsys):
    sheet = tmp_path / "sheet.png"
    assert main(["data", "check", "--recipe", str(recipe), "--json", "--sheet", str(sheet)]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["samples"], told["turns"], told["sizes"], told["sheet"]) == (3, 3, {"64x64": 3}, str(sheet))
    (finding,) = told["findings"]
    assert (finding["severity"], finding["where"]) == ("hurts", ["1.png"])
    with Image.open(sheet) as image:
        assert image.width > 1000


def test_pack_and_inspect(folder, tmp_path, capsys):
    out = tmp_path / "set.parquet"
    assert main(["data", "pack", str(folder), "--out", str(out)]) == 0
    assert capsys.readouterr().out.startswith(f"{out}: 3 rows, ")
    assert main(["data", "inspect", str(out), "--rows", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{out}: 3 samples, 3 turns an epoch"
    assert lines[1].startswith("columns sample_id (string), caption (string), think (string), image (binary)")
    assert [line.split(",")[0] for line in lines[2:]] == ["0.png: 64x64", "1.png: 64x64"]
    assert lines[2].endswith(": a red house by a lake")
    assert main(["data", "inspect", str(out), "--rows", "1", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["samples"], told["groups"], told["rows"][0]["caption"]) == (3, 1, "a red house by a lake")


def test_inspect_a_folder_names_what_cannot_be_used(folder, capsys):
    (folder / "1.txt").unlink()
    assert main(["data", "inspect", str(folder)]) == 0
    assert "unusable: 1.png: has no caption 1.txt" in capsys.readouterr().out


def test_pack_can_leave_out_what_is_bad(folder, tmp_path, capsys):
    (folder / "1.txt").unlink()
    out = tmp_path / "set.parquet"
    assert main(["data", "pack", str(folder), "--out", str(out)]) == 2
    assert "cannot train on 1 picture: 1.png (has no caption 1.txt)" in capsys.readouterr().err
    assert not out.exists()
    assert main(["data", "pack", str(folder), "--out", str(out), "--leave-out-bad", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["rows"], told["left_out"]) == (2, {"1.png": "has no caption 1.txt"})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["check"], "u1 data check: give a folder, a .parquet or .arrow file, or --recipe"),
        (["check", "nowhere"], "nowhere: there is no such folder"),
        (["check", ".", "--sheet", "sheet.jpg"], "--out sheet.jpg: pictures are written as PNG"),
        (["inspect", "nowhere.parquet"], "nowhere.parquet: there is no such folder"),
    ],
)
def test_what_cannot_be_done_is_one_line(arguments, message, capsys):
    assert main(["data", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1
