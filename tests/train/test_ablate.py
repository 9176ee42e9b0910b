from dataclasses import replace
from pathlib import Path

import pytest

from u1_core.errors import U1Error
from u1_core.train.ablate import grid, parse_settings, write_ablation_report
from u1_core.train.recipe import Recipe, Train


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
