"""The demo's own parts: its photographs, its figures, its pictures. The chain that it runs has tests of its own."""

import importlib.util
import json
from pathlib import Path

import pytest
from PIL import Image

from u1_core.data.buckets import bucket_for
from u1_core.train.recipe_file import parse_recipe

FILE = Path(__file__).resolve().parents[2] / "tools" / "demo.py"


@pytest.fixture(scope="module")
def demo():
    spec = importlib.util.spec_from_file_location("demo", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_photographs_are_at_least_eight_of_several_shapes_and_captioned(demo, tmp_path):
    paths = demo.write_photographs(tmp_path / "photographs")
    assert len(paths) >= 8
    sizes = [Image.open(path).size for path in paths]
    assert len({bucket_for(*size, demo.PIXELS, 8) for size in sizes}) >= 3
    for path in paths:
        assert path.with_suffix(".txt").read_text(encoding="utf-8").strip() == demo.PHOTOGRAPHS[path.name]


def test_recipe_is_one_that_train_takes(demo):
    recipe = parse_recipe(demo.RECIPE.format(photographs="p", pixels=demo.PIXELS, trigger=demo.TRIGGER, runs="r"), "it")
    assert (recipe.run_name, recipe.data.cap_max_pixels, recipe.style.trigger) == ("demo", 4096, "demo photograph")


def test_each_run_gets_a_folder_of_its_own(demo, tmp_path):
    assert [demo.new_folder(tmp_path / "demo").name for _ in range(3)] == ["1", "2", "3"]


def test_tenths_are_means_over_the_ends_of_the_log(demo, tmp_path):
    log = tmp_path / "log.jsonl"
    log.write_text("".join(json.dumps({"step": n, "loss": 40 - n}) + "\n" for n in range(40)), encoding="utf-8")
    losses = demo.read_losses(log)
    assert len(losses) == 40
    assert demo.first_and_last_tenth(losses) == ((40 + 39 + 38 + 37) / 4, (4 + 3 + 2 + 1) / 4)


def test_loss_plot_and_contact_sheet_are_pictures(demo, tmp_path):
    demo.plot_losses([1 / n for n in range(1, 31)], tmp_path / "loss.png")
    rows = {"wide": [Image.new("RGB", (64, 32), "red")] * 2, "square": [Image.new("RGB", (48, 48), "blue")] * 2}
    demo.contact_sheet(rows, tmp_path / "sheet.png")
    assert Image.open(tmp_path / "loss.png").size == (1200, 675)
    sheet = Image.open(tmp_path / "sheet.png").convert("RGB")
    assert sheet.size == (540, 570)
    colours = {colour for _, colour in sheet.getcolors(sheet.width * sheet.height)}
    assert {(255, 0, 0), (0, 0, 255)} <= colours
