import json

import numpy as np
import pytest
from PIL import Image

from u1_core.cli.main import main
from u1_core.lora.files import read_lora

RECIPE = """\
run_name: base
data: {{data_dir: {pictures}, cap_max_pixels: 1024}}
lora: {{spec: attn=r2}}
unfreeze: []
train: {{steps: 3, lr: 1e-3, checkpoint_every: 0}}
validation: {{every: 1, pictures: 1, timesteps: 4, split: 0.3}}
previews: {{every: 3, steps: 1, cfg: 1}}
runtime: {{device: cpu, out_dir: {out}}}
"""


@pytest.fixture
def recipe(tmp_path):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    numbers = np.random.default_rng(0)
    for index in range(3):
        Image.fromarray(numbers.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(pictures / f"{index}.png")
        (pictures / f"{index}.txt").write_text(f"many small squares of colour, number {index}", encoding="utf-8")
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.format(pictures=pictures.as_posix(), out=(tmp_path / "runs").as_posix()), encoding="utf-8")
    return path


def test_a_grid_is_run_once_and_goes_on_where_it_was(models, recipe, tmp_path, capsys):
    out = tmp_path / "grid"
    command = ["ablate", str(recipe), "--model", str(models["u1"]), "--out", str(out), "--json"]
    assert main([*command, "--set", "train.loss_type=x0,v"]) == 0
    facts = json.loads(capsys.readouterr().out)
    names = ["loss_type=x0", "loss_type=v"]
    assert (facts["runs"], facts["finished"]) == (2, names)
    loras = [out / name / f"{name}.safetensors" for name in names]
    x0, v = (read_lora(path).adapter.modules for path in loras)
    assert any(not (module.up == v[path].up).all() for path, module in x0.items())
    assert all((module.down.shape == v[path].down.shape) for path, module in x0.items())
    before = [path.stat().st_mtime_ns for path in loras]
    assert main([*command, "--set", "train.loss_type=x0,v,x0_huber"]) == 0
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("[")]
    kept = ["[1/3] loss_type=x0: done already", "[2/3] loss_type=v: done already"]
    assert told == [*kept, "[3/3] loss_type=x0_huber"]
    assert [path.stat().st_mtime_ns for path in loras] == before


def test_a_run_that_was_cut_off_goes_on(models, recipe, tmp_path, monkeypatch):
    def grid(out):
        return main(["ablate", str(recipe), "--model", str(models["u1"]), "--out", str(out), "--set", "train.seed=1"])

    monkeypatch.setattr("u1_core.train.loop._Run._finish", lambda run: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        grid(tmp_path / "cut")
    assert not (tmp_path / "cut" / "seed=1" / "seed=1.safetensors").exists()
    monkeypatch.undo()
    assert grid(tmp_path / "cut") == grid(tmp_path / "whole") == 0
    ours, theirs = (tmp_path / out / "seed=1" / "seed=1.safetensors" for out in ("cut", "whole"))
    assert dict(read_lora(ours).metadata) == dict(read_lora(theirs).metadata)
    assert ours.read_bytes() == theirs.read_bytes()


def test_the_report_puts_the_runs_side_by_side(models, recipe, tmp_path, capsys):
    out = tmp_path / "grid"
    command = ["ablate", str(recipe), "--model", str(models["u1"]), "--out", str(out), "--set", "train.loss_type=x0,v"]
    assert main(command) == 0
    assert capsys.readouterr().out.strip() == f"2 of 2 runs are done: {out / 'report.html'}"
    html = (out / "report.html").read_text(encoding="utf-8")
    assert "http" not in html
    assert html.count("<svg") == 4
    assert html.count("<td>loss_type=") == 2
    for run in ("loss_type=x0", "loss_type=v"):
        previews = out / run / "previews"
        assert sorted(path.name for path in previews.iterdir())[0] == "base_1.png"
        assert f'href="{run.replace("=", "%3D")}/previews/step_000003_1.png"' in html
    assert html.count("<figure class=base>") == 2


def test_what_will_not_do_is_said_before_anything_is_written(models, recipe, tmp_path, capsys):
    out = tmp_path / "grid"
    command = ["ablate", str(recipe), "--model", str(models["u1"]), "--out", str(out)]
    assert main([*command, "--set", "train.los_type=x0"]) == 2
    assert "did you mean 'train.loss_type'?" in capsys.readouterr().err
    assert not out.exists()
