import json
import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from tools.ablation import measures, run, tables, world
from tools.ablation.study import PROMPT_SETTINGS, RECIPE, SETTINGS, STYLES, Run, Way, asked, runs, training_folder, ways
from tools.ablation.summary import Study, is_clear, percent_of_base, spread
from u1_core.data.dataset import open_dataset
from u1_core.data.pictures import to_images
from u1_core.nano import EIGHT_STEP, MODEL
from u1_core.sample.guidance import Guidance
from u1_core.sample.settings import SampleSettings
from u1_core.sample.text_to_image import text_to_image
from u1_core.session import Session


def test_a_setting_changes_what_it_says_and_nothing_else(tmp_path):
    settled = {"seed": 1, "steps": 7}
    for name, setting in SETTINGS.items():
        recipe = Run(name, "ink", 1).recipe(tmp_path, tmp_path / "runs", 7)
        for key, value in setting.changes.items():
            section, _, field = key.rpartition(".")
            found = getattr(getattr(recipe, section) if section else recipe, field)
            assert found == (tuple(value) if isinstance(value, list) else value), (name, key)
        changed = {key.partition(".")[2] for key in setting.changes if key.startswith("train.")}
        for field, value in vars(RECIPE.train).items():
            if field not in changed:
                assert getattr(recipe.train, field) == settled.get(field, value), (name, field)
        assert recipe.data.data_dir == str(training_folder(tmp_path, "ink", setting))
    stacked = Run("stacked", "ink", 1).recipe(tmp_path, tmp_path, 7)
    assert stacked.runtime.upstream_lora_path == str(EIGHT_STEP)


def test_seeds_come_one_after_the_other_and_each_setting_with_its_styles():
    every = runs()
    assert [run.seed for run in every] == sorted(run.seed for run in every)
    assert len({run.name for run in every}) == len(every)
    of_think = [(run.style, run.seed) for run in every if run.setting == "think"]
    assert of_think == [("ink", 0), ("ink", 1), ("ink", 2)]
    assert sum(run.setting == "official" for run in every) == 6


def test_ways_draw_as_trained_and_without_the_trigger():
    names = {name: [way.name for way in ways(name)] for name in ("v", "last", "none")}
    assert names["v"] == ["first, 50 steps", "none, 50 steps", "first, 8 steps"]
    assert names["last"] == ["first, 50 steps", "last, 50 steps", "none, 50 steps", "last, 8 steps"]
    assert names["none"][-1] == "none, 8 steps"
    assert asked("first", "a tree") == "my style, a tree"
    assert asked("last", "a tree") == "a tree, my style"
    assert Way("first", few_steps=True).settings.guidance.cfg_scale == 1


def test_the_world_has_the_trigger_where_each_setting_wants_it(tmp_path, monkeypatch):
    monkeypatch.setattr(world, "TRAINING", 2)
    monkeypatch.setattr(world, "HELD_OUT", 1)
    world.write_world(tmp_path)
    captions = {}
    for name in ("baseline", "last", "contrast"):
        setting = SETTINGS[name]
        captions[name] = [sample.caption for sample in open_dataset(training_folder(tmp_path, "ink", setting))]
        held_out = open_dataset(world.held_out_folder(tmp_path, "ink", setting))
        assert len(held_out) == 1
        assert (held_out[0].caption in captions[name]) is False
    plain = captions["baseline"]
    assert captions["last"] == [f"{caption}, my style" for caption in plain]
    assert sorted(captions["contrast"])[-2:] == sorted(f"my style, {caption}" for caption in plain)
    assert sum("my style" in caption for caption in captions["contrast"]) == 2
    assert len(captions["contrast"]) == 4
    watercolour = training_folder(tmp_path, "watercolour", SETTINGS["contrast"])
    assert not watercolour.exists()


def test_pictures_drawn_together_are_those_drawn_alone(monkeypatch):
    """The prompts' lengths differ, and so do the keys that each picture sees."""
    captions = ["a red house on the left", "two blue trees on the right, under a night sky, a lake"]
    settings = SampleSettings(192, 192, steps=2, guidance=Guidance(4.0))
    monkeypatch.setattr(measures, "captions", lambda: captions)
    monkeypatch.setattr(Way, "settings", settings)
    session = Session.open(MODEL, "cpu", "fp32")
    drawn = measures.draw(session, [], Way("last"))
    for seed, caption in enumerate(captions):
        alone = text_to_image(session, asked("last", caption), replace(settings, seed=seed))
        (picture,) = to_images(alone.pictures)
        assert np.abs(drawn[seed].astype(int) - np.asarray(picture)).max() <= 1


def test_grain_is_the_distance_from_the_neighbours():
    flat = np.full((32, 32, 3), 90, np.uint8)
    assert measures.grain([flat]) == 0
    checks = flat.copy()
    checks[(np.indices((32, 32)).sum(axis=0) % 2).astype(bool)] += 10
    assert measures.grain([checks]) == pytest.approx(10, abs=0.01)


def test_grid_is_the_step_at_tokens_borders_over_other_steps():
    rows, columns = np.indices((64, 64))
    ramp = np.repeat((rows + columns)[..., None], 3, axis=2).astype(np.uint8)
    assert measures.grid([ramp]) == pytest.approx(1)
    tiled = (ramp + (rows // 16 + columns // 16)[..., None] * 4).astype(np.uint8)
    assert measures.grid([tiled]) == pytest.approx(5)


def test_errors_as_a_share_of_the_base(monkeypatch):
    count = measures.QUESTION_PICTURES
    base = [1.0] * measures.TIMES * count
    ours = [0.5 if t < 0.5 else 0.25 for t in measures.question_times()] * count
    assert percent_of_base(ours, base, "x0") == pytest.approx(37.5)
    assert percent_of_base(ours, base, "x0", 0.5, 1) == pytest.approx(25)
    weights = [1 / (1 - t) ** 2 for t in measures.question_times()]
    by_hand = 100 * sum(w * e for w, e in zip(weights, ours, strict=False)) / sum(weights)
    assert percent_of_base(ours, base, "v") == pytest.approx(by_hand)


def test_a_difference_is_clear_if_its_interval_leaves_out_nothing():
    assert is_clear([0.2, 0.3, 0.25])
    assert not is_clear([0.1, 0.3, 0.5])  # 0.3 ± 4.303 * 0.2 / sqrt(3)
    assert is_clear([0.1, 0.3, 0.5] * 2)  # 0.3 ± 2.571 * 0.18 / sqrt(6)
    assert not is_clear([0.0, 0.0, 0.0])
    assert spread([1.0, 2.0, 3.0], 1) == "2.0 ± 1.0"


@pytest.fixture
def results(tmp_path):
    """Made-up results of every run: what is drawn is `style` = 0.5 + seed / 10, and v is 0.2 below it."""
    folder = tmp_path / "results"
    folder.mkdir()
    questions = measures.QUESTION_PICTURES * measures.TIMES
    for one in runs():
        style = 0.5 + one.seed / 10 - 0.2 * (one.setting == "v")
        found = {"style": style, "adherence": 0.9, "grain": 3.0, "grid": 1.2}
        looks = ["", *tables.EXPORTS] if one.setting == "baseline" else [""]
        facts = {
            **vars(one),
            "curve": {"x0_mse": [0.2] * 200, "v_mse": [0.4] * 200, "validation": [{"step": 0, "held_out": 100.0}]},
            "base_errors": [1.0] * questions,
            "looks": {
                look: {
                    "ways": {way.name: found for way in run.ways_of(one, look)},
                    "errors": [0.4 + 0.1 * one.seed] * questions,
                }
                for look in looks
            },
        }
        (folder / f"{one.name}.json").write_text(json.dumps(facts))
        rows = len(ways(one.setting))
        Image.new("RGB", (4 * 192, rows * 192), "teal").save(folder / f"{one.name}.jpg")
    base = {"base": {way.name: found for way in ways("baseline")}, "target": found}
    (folder / "base.json").write_text(json.dumps(dict.fromkeys(STYLES, base)))
    for name in ("base", *STYLES):
        Image.new("RGB", (4 * 192, 4 * 192), "plum").save(folder / f"{name}.jpg")
    return folder


def test_tables_give_mean_and_spread_and_tell_what_is_clear(results):
    study = Study.read(results)
    table = tables.settings_table(study, "ink").splitlines()
    assert table[0].startswith("|  | style | adherence | style, no trigger | x0-MSE, % of base |")
    assert table[2].startswith(
        "| baseline: x0 loss, uniform t, no dropout | 0.60 ± 0.10 | 0.900 ± 0.000 | 0.60 ± 0.10 |"
    )
    assert "| 50.0 ± 10.0 | 50.0 ± 10.0 |" in table[2]
    assert len(table) == 2 + len(SETTINGS) + 2
    assert len(tables.settings_table(study, "watercolour").splitlines()) == 2 + len(SETTINGS) + 2 - 5
    differences = {
        line.split(" | ")[0][2:]: line for line in tables.differences_table(study, ["v", "logit"]).splitlines()
    }
    assert differences["v loss"].startswith("| v loss | **-0.20 ± 0.00** | 0.000 ± 0.000 |")
    assert "**" not in differences["logit-normal t"]
    assert len(tables.prompt_table(study).splitlines()) == 2 + len(PROMPT_SETTINGS)
    assert tables.steps_table(study).count("0.60 ± 0.10") == 8
    assert tables.steps_table(study).count("difference | 0.00 ± 0.00") == 2
    assert "| v loss | 50 ± 10 | 50 ± 10 |" in tables.ranges_table(study)
    exports = tables.exports_table(study).splitlines()
    assert {line.count("|") for line in exports} == {8}
    assert exports[5].startswith("| ink, folded into the LoRA at rank 64 | 0.60 ± 0.10 | 0.900 ± 0.000 | 50.0 ± 10.0 |")


def test_pictures_and_figures_are_written(results, tmp_path, monkeypatch, capsys):
    docs = tmp_path / "docs"
    docs.mkdir()
    monkeypatch.setattr("sys.argv", ["tables", str(results), "--docs", str(docs)])
    tables.main()
    written = {path.name for path in docs.iterdir()}
    assert written == {
        "ablation.json",
        "ablation_curves.png",
        "ablation_steps.jpg",
        *(f"ablation_{s}.jpg" for s in STYLES),
    }
    with Image.open(docs / "ablation_ink.jpg") as sheet:
        assert sheet.size == (7 * 196 - 4, 34 + 3 * 196 - 4)
    rows = json.loads((docs / "ablation.json").read_text())
    (row,) = [r for r in rows if (r["setting"], r["style"], r["seed"], r["look"]) == ("v", "ink", 2, "")]
    assert math.isclose(row["figures"]["style"], 0.5)
    assert capsys.readouterr().out.count("\n| baseline") == 4


def test_one_run_from_training_to_its_figures(tmp_path, monkeypatch):
    monkeypatch.setattr(world, "TRAINING", 4)
    monkeypatch.setattr(world, "HELD_OUT", 1)
    monkeypatch.setattr(measures, "QUESTION_PICTURES", 1)
    monkeypatch.setattr(measures, "captions", lambda: ["a red house on the left, under a blue sky"])
    monkeypatch.setattr(run, "ways_of", lambda one, look: [Way("first", few_steps=True)] if not look else [])
    monkeypatch.setattr(run, "base_pictures", lambda plan: [np.full((192, 192, 3), 128, np.uint8)])
    monkeypatch.setattr(run.Way, "name", "first, 50 steps")
    monkeypatch.setattr(run.Way, "settings", SampleSettings(192, 192, steps=1, guidance=Guidance(1.0)))
    monkeypatch.setattr(measures, "style_space", lambda: SimpleNamespace(progress=lambda *pictures: 0.25))
    plan = run.Plan(tmp_path, 2, "cpu", "cpu", math.inf)
    world.write_world(plan.world)
    (tmp_path / "results").mkdir()
    one = Run("lora", "ink", 0)
    assert run.make(plan, one).startswith("ink-lora-0: style 0.25, ")
    facts = json.loads(plan.result(one).read_text())
    assert (facts["setting"], facts["style"], facts["seed"], facts["steps"]) == ("lora", "ink", 0, 2)
    assert len(facts["curve"]["x0_mse"]) == 2
    assert len(facts["base_errors"]) == len(facts["looks"][""]["errors"]) == measures.TIMES
    assert facts["base_errors"] != facts["looks"][""]["errors"]
    with Image.open(tmp_path / "results" / "ink-lora-0.jpg") as strip:
        assert strip.size == (192, 192)
    monkeypatch.setattr(run, "train", None)
    assert run.make(run.Plan(tmp_path, 2, "cpu", "cpu", stop_at=0), one) == ""


def test_the_baseline_is_looked_at_as_other_programs_see_it():
    session = Session.open(MODEL, "cpu", "fp32")
    name = "fm_modules.timestep_embedder.mlp.2.weight"
    changed = session.snapshot.read(name).float() + torch.randn(256, 256, generator=torch.Generator().manual_seed(0))
    adapter = run.Adapter({}, full={name: changed}, kinds=frozenset({session.config.kind}))
    looks = run.looks_of(Run("baseline", "ink", 0), adapter)
    assert set(looks) == set(tables.EXPORTS)
    assert not looks["without the tensors trained whole"].full
    assert [module.rank for module in looks["folded at rank 16"].modules.values()] == [16]
    assert list(run.looks_of(Run("v", "ink", 0), adapter)) == [""]
