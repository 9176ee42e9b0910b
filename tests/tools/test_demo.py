"""The demo's own parts: folders, figures, goals. What it trains on and measures has tests in tests/nano."""

import numpy as np
import pytest
from PIL import Image

from tools import demo
from tools.nano.style_measures import StyleMeasures
from u1_core.train.recipe import Recipe
from u1_core.train.run_log import RunLog


def run_with(losses, folder) -> RunLog:
    return RunLog(folder, Recipe(), [{"step": n, "loss": loss} for n, loss in enumerate(losses, 1)], [], {})


def test_each_run_gets_a_folder_of_its_own(tmp_path):
    assert [demo.new_folder(tmp_path / "demo").name for _ in range(3)] == ["1", "2", "3"]


def test_tenths_are_means_over_the_ends_of_the_log():
    assert demo.first_and_last_tenth([40.0 - n for n in range(40)]) == ((40 + 39 + 38 + 37) / 4, (4 + 3 + 2 + 1) / 4)


@pytest.mark.parametrize(
    ("last_loss", "measures", "missed"),
    [
        (0.5, StyleMeasures(0.85, 0.1, 0.9, 1.0), 0),
        (0.5, StyleMeasures(0.61, -0.05, 0.81, 0.1), 0),
        (0.7, StyleMeasures(0.85, 0.1, 0.9, 1.0), 1),
        (0.5, StyleMeasures(0.59, 0.26, 0.79, 1.0), 3),
    ],
)
def test_goals_are_told_and_judged(last_loss, measures, missed, tmp_path, capsys):
    reached = demo.tell(run_with([1.0] * 10 + [0.8] * 80 + [last_loss] * 10, tmp_path), measures)
    said = capsys.readouterr().out
    assert reached == (missed == 0)
    assert said.count("MISSED") == missed
    assert f"ratio {last_loss:.3f}, to be at most 0.6" in said
    assert f"leakage {measures.leakage:.0%}, to be at most 25%" in said


def test_pictures_are_saved_by_name_and_number(tmp_path):
    demo.save_pictures({"base_8": [np.full((8, 8, 3), level, np.uint8) for level in (1, 2)]}, tmp_path / "drawn")
    assert [path.name for path in sorted((tmp_path / "drawn").iterdir())] == ["base_8_0.png", "base_8_1.png"]
    assert np.asarray(Image.open(tmp_path / "drawn" / "base_8_1.png")).max() == 2
