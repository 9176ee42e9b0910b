"""The demo's page and sheet, from a run and pictures made up."""

import re

import numpy as np
import pytest
from PIL import Image

from tools.demo_page import COLUMNS, Demo, write_page, write_sheet
from tools.nano.style_measures import StyleMeasures
from u1_core.train.recipe import Recipe, Style, Train
from u1_core.train.run_log import RunLog


@pytest.fixture
def demo(tmp_path) -> Demo:
    rng = np.random.default_rng(0)
    (tmp_path / "recipe.yaml").write_text("run_name: ink\n", encoding="utf-8")
    paths = [tmp_path / f"{name}_{n}.png" for name in (*COLUMNS, "untriggered_8", "training") for n in range(2)]
    for path in paths:
        Image.fromarray(rng.integers(0, 255, (48, 48, 3), np.uint8)).save(path)
    share = {"percent": 80.0, "low": 70.0, "high": 90.0}
    looks = [{"event": "validation", "step": step, "held_out": {"x0": share}} for step in (0, 20)]
    records = [{"step": n, "loss": 1 / n} for n in range(1, 31)]
    recipe = Recipe(run_name="ink", style=Style(trigger="ink"), train=Train(steps=30))
    return Demo(
        run=RunLog(tmp_path / "ink", recipe, records, looks, {}),
        training=paths[-2:],
        captions=["a <red> house", "two trees"],
        drawn=tmp_path,
        measures=StyleMeasures(0.854, 0.1, 0.9, 1.02),
        trained_s=101.4,
        all_s=170,
    )


def test_page_is_one_file_that_needs_no_network(demo, tmp_path):
    write_page(demo, tmp_path / "index.html")
    html = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert set(re.findall(r'(?:src|href)="([^"]{0,22})', html)) == {"data:image/jpeg;base64"}
    assert html.count("<img") == 2 + 2 + 2 * 4 + 2 + 2 * 2  # hero, set, rows, untriggered, nearest
    assert "prefers-color-scheme:dark" in html
    assert "a &lt;red&gt; house" in html
    assert "<b>85%</b>" in html
    assert html.count("<svg") == 2


def test_page_of_a_later_demo_takes_the_place_of_the_first(demo, tmp_path):
    for _ in range(2):
        write_page(demo, tmp_path / "index.html")
    assert len(list(tmp_path.glob("index*"))) == 1


def test_sheet_is_a_picture_with_everything_on_it(demo, tmp_path):
    write_sheet(demo, tmp_path / "demo.png")
    sheet = Image.open(tmp_path / "demo.png")
    assert sheet.size == (960, 984)
    assert len(sheet.convert("RGB").getcolors(sheet.width * sheet.height)) > 5000
