"""What a chart is sent, and what is read from a run's log."""

import json
import os

from PIL import Image

from u1_core.train.recipe_file import load_recipe
from u1_core.workflow import run_history
from u1_core.workflow.drawing import comparison_sheet, from_image_tensor, images_to_tensor
from u1_core.workflow.host import Host
from u1_core.workflow.loss_chart import moving_means
from u1_core.workflow.run_history import HISTORY_POINTS, marks_of, thinned
from u1_core.workflow.runs import Runs


def test_a_long_run_is_thinned_to_means_at_the_last_step_of_each_stretch():
    points = [(step, float(step)) for step in range(1, 2 * HISTORY_POINTS + 1)]
    assert thinned(points[:HISTORY_POINTS]) == points[:HISTORY_POINTS]
    kept = thinned(points)
    assert len(kept) == HISTORY_POINTS
    assert kept[0] == (2, 1.5)
    assert kept[-1] == (2 * HISTORY_POINTS, 2 * HISTORY_POINTS - 0.5)


def test_marks_take_the_held_out_pictures_where_there_are_any():
    share = {"x0": {"percent": 71.5}}
    training = {"x0": {"percent": 60.0}}
    previews = {"step": 5, "files": ["step_000005_1.png"], "base_files": ["base_1.png"], "prompts": ["a house"]}
    records = [
        {"event": "validation", "step": 0, "held_out": share, "training": training},
        {"event": "validation", "step": 5, "training": training},
        {"event": "preview", **previews, "seconds": 2.5},
        {"event": "preview", "step": 6, "failed": "out of memory"},
    ]
    assert marks_of(records) == [
        {"step": 0, "percent": 71.5},
        {"step": 5, "percent": 60.0},
        previews,
    ]


def test_a_run_that_was_cut_off_is_interrupted_and_keeps_its_history(tmp_path):
    folder = tmp_path / "half"
    folder.mkdir()
    (folder / "recipe.yaml").write_text("train: {steps: 9}\n", encoding="utf-8")
    (folder / "log.jsonl").write_text(
        '{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.5}\n{"step": 3, "lo', encoding="utf-8"
    )
    told = folder / "status.json"  # now and then only: the log knows better
    told.write_text(json.dumps({"state": "running", "step": 1, "steps": 9, "pid": os.getpid()}), encoding="utf-8")
    os.utime(told, (0, 0))
    (status,) = Runs(tmp_path, Host()).statuses()
    assert (status.state, status.step, status.steps) == ("interrupted", 2, 9)
    assert Runs(tmp_path, Host()).history("half") == ([(1, 2.0), (2, 1.5)], [])


def test_a_list_of_runs_reads_again_only_the_recipes_that_have_changed(tmp_path, monkeypatch):
    read = []
    monkeypatch.setattr(run_history, "load_recipe", lambda path: read.append(path.parent.name) or load_recipe(path))
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "recipe.yaml").write_text("train: {steps: 9}\n", encoding="utf-8")
    found = Runs(tmp_path, Host())
    assert [status.steps for status in found.statuses()] == [9, 9]
    longer = tmp_path / "other" / "recipe.yaml"
    longer.write_text("train: {steps: 12}\n", encoding="utf-8")
    os.utime(longer, (1, 1))
    assert [(status.id, status.steps) for status in found.statuses()] == [("one", 9), ("other", 12)]
    assert sorted(read) == ["one", "other", "other"]
    longer.write_text("train: {steps: many}\n", encoding="utf-8")
    assert found.status("other").state == "failed"


def test_moving_means_run_over_a_twentieth():
    assert moving_means([float(value) for value in range(40)])[:4] == [0.0, 0.5, 1.5, 2.5]


def test_pictures_keep_their_levels_as_image_tensors():
    levels = Image.frombytes("RGB", (256, 1), bytes(value for value in range(256) for _ in range(3)))
    assert from_image_tensor(images_to_tensor([levels]))[0].tobytes() == levels.tobytes()


def test_a_sheet_has_a_column_a_head_and_a_row_a_prompt():
    cells = [Image.new("RGB", (128, 128), colour) for colour in ("red", "green", "blue", "white")]
    sheet = comparison_sheet(cells, ["first", "second"], ["one prompt", "another"])
    assert sheet.size == (256, 20 + 2 * 148)
    assert [sheet.getpixel(place) for place in ((64, 84), (192, 84), (64, 232))] == [
        (255, 0, 0),
        (0, 128, 0),
        (0, 0, 255),
    ]
