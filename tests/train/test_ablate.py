import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from u1_core.errors import U1Error
from u1_core.train.ablate import grid, parse_settings, write_ablation_report
from u1_core.train.recipe import Recipe, Train
from u1_core.train.recipe_file import dump_recipe


def test_the_grid_is_every_combination(tmp_path):
    settings = parse_settings(["train.loss_type=x0,v", "train.lr=1e-4, 5e-5", "lora.spec=null"])
    assert settings == {"train.loss_type": ["x0", "v"], "train.lr": ["1e-4", "5e-5"], "lora.spec": [None]}
    base = Recipe(run_name="base", train=Train(steps=7, seed=3))
    cells = grid(base, settings, tmp_path)
    assert [cell.name for cell in cells] == [
        "loss_type=x0, lr=1e-4, spec=none",
        "loss_type=x0, lr=5e-5, spec=none",
        "loss_type=v, lr=1e-4, spec=none",
        "loss_type=v, lr=5e-5, spec=none",
    ]
    assert [(cell.recipe.train.loss_type, cell.recipe.train.lr) for cell in cells] == [
        ("x0", 1e-4),
        ("x0", 5e-5),
        ("v", 1e-4),
        ("v", 5e-5),
    ]
    for cell in cells:
        assert cell.recipe.run_name == cell.name
        assert cell.folder == tmp_path / cell.name
        same = replace(cell.recipe, run_name="base", runtime=base.runtime, train=base.train)
        assert same == base
        assert (cell.recipe.train.steps, cell.recipe.train.seed) == (7, 3)


def test_a_cell_is_finished_when_its_results_are_there(tmp_path):
    (cell,) = grid(Recipe(), {"train.seed": [1]}, tmp_path)
    assert not cell.finished
    cell.folder.mkdir()
    assert not cell.finished
    (cell.folder / "seed=1.safetensors").touch()
    assert cell.finished


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["train.losstype=x0"],
            r"--set 'train\.losstype=x0': a recipe has no field 'train\.losstype'; did you mean 't",
        ),
        (["train.loss_type"], r"--set 'train\.loss_type': expected KEY=VALUE"),
        (["train.lr=1,2", "train.lr=3"], r"train\.lr is set twice; give all its values at once"),
        (["run_name=a,b"], r"run_name is each run's own"),
        (["style.trigger=a: b: c"], r"the values cannot be read; put quotes around special signs"),
        (["train.loss_type=x0,w"], r"^--set train\.loss_type=w: train\.loss_type is 'w'; allowed: one of x0, v"),
        (["train.seed=1,1"], r"--set gives 'seed=1' twice"),
    ],
)
def test_mistakes_are_one_line(tmp_path, arguments, message):
    with pytest.raises(U1Error, match=message) as caught:
        grid(Recipe(), parse_settings(arguments), tmp_path)
    assert "\n" not in str(caught.value)


def test_the_report_needs_a_run(tmp_path):
    with pytest.raises(U1Error, match="none of the 2 runs has begun"):
        write_ablation_report(tmp_path, grid(Recipe(), {"train.seed": [1, 2]}, Path(tmp_path)))


def share(percent):
    return {"percent": percent, "low": percent - 1, "high": percent + 1, "mean": percent, "base_mean": 100.0}


def write_run(cell, percent):
    """A run of 20 steps whose validation ends at `percent` of the base model's error."""
    cell.folder.mkdir(parents=True)
    (cell.folder / "recipe.yaml").write_text(dump_recipe(cell.recipe), encoding="utf-8")
    records = [
        {"step": step, "loss": percent / 100, "x0_mse": percent / 100, "v_mse": 1.0, "seconds": 0.5}
        for step in range(1, 21)
    ]
    for step, value in ((0, 100.0), (20, percent)):
        asked = {"x0": share(value), "v": share(2 * value)}
        records.append({"event": "validation", "step": step, "held_out": asked, "training": asked, "gap": value - 50})
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (cell.folder / "log.jsonl").write_text(lines, encoding="utf-8")


def rows_of(html):
    rows = re.findall(r"<tr>(<td>.*?)</tr>", html)
    return [re.findall(r"<td>(.*?)</td>", row) for row in rows]


def test_runs_that_differ_in_the_seed_alone_are_one_row_with_their_spread(tmp_path):
    cells = grid(Recipe(), parse_settings(["train.seed=1,2", "train.loss_type=x0,v"]), tmp_path)
    assert [cell.setting for cell in cells] == ["loss_type=x0", "loss_type=v"] * 2
    for cell, percent in zip(cells, (60.0, 40.0, 64.0, 40.0), strict=True):
        write_run(cell, percent)
    html = write_ablation_report(tmp_path, cells).read_text(encoding="utf-8")
    assert rows_of(html) == [
        ["loss_type=v", "20", "2", "40.0 ± 0.0", "80.0 ± 0.0", "–", "-10.0 ± 0.0", "0.5"],
        ["loss_type=x0", "20", "2", "62.0 ± 2.8", "124.0 ± 5.7", "–", "+12.0 ± 2.8", "0.5"],
    ]
    assert "mean ± standard deviation over the seeds" in html
    assert "62 at 20" in html  # the point of the mean line in the validation chart
    assert "64 at 20" not in html


def test_a_grid_of_one_seed_tells_the_band_and_of_seeds_alone_is_one_row(tmp_path):
    one = grid(Recipe(), parse_settings(["train.loss_type=x0,v"]), tmp_path / "one")
    for cell, percent in zip(one, (60.0, 70.0), strict=True):
        write_run(cell, percent)
    html = write_ablation_report(tmp_path / "one", one).read_text(encoding="utf-8")
    assert rows_of(html)[0] == ["loss_type=x0", "20", "1", "60.0", "120.0", "59.0 to 61.0", "+10.0", "0.5"]
    assert "standard deviation" not in html
    seeds = grid(Recipe(), parse_settings(["train.seed=1,2,3"]), tmp_path / "seeds")
    for cell in seeds[:2]:
        write_run(cell, 50.0)
    html = write_ablation_report(tmp_path / "seeds", seeds).read_text(encoding="utf-8")
    assert rows_of(html)[0][:4] == ["all seeds", "20", "2", "50.0 ± 0.0"]
