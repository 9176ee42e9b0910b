import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from u1_core.errors import U1Error
from u1_core.jobs import Job
from u1_core.lora.files import read_lora
from u1_core.train.hooks import standard_hooks
from u1_core.train.prepare import prepare
from u1_core.train.recipe import Previews, Validation


def read_log(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]


def test_what_looks_at_a_run_is_logged_and_changes_nothing(session, recipe, run, with_train):
    recipe = with_train(recipe, steps=5)
    plain = run(session, replace(recipe, run_name="plain", validation=replace(recipe.validation, split=0.2))).result
    looked_at = replace(
        recipe,
        validation=Validation(every=2, pictures=1, timesteps=4, split=0.2),
        previews=Previews(every=3, steps=1, cfg=1.0, prompts=("a red house",)),
    )
    job = run(session, looked_at)
    folder = job.result.folder
    records = read_log(folder)
    events = [(record["event"], record["step"]) for record in records if "event" in record]
    assert events == [("validation", 0), ("validation", 2), ("preview", 3), ("validation", 4)]
    assert [event.kind for event in job.events()].count("validation") == 3
    first, *_, last = [record for record in records if record.get("event") == "validation"]
    assert first["held_out"]["x0"]["percent"] == first["training"]["x0"]["percent"] == 100.0
    assert last["held_out"]["x0"]["percent"] != 100.0
    assert len({record["sample"] for record in records if "sample" in record}) == 4
    assert sorted(path.name for path in (folder / "previews").iterdir()) == ["base_1.png", "step_000003_1.png"]
    assert (folder / "report.html").stat().st_size > 10_000
    ours, theirs = (read_lora(outcome.saved.lora) for outcome in (job.result, plain))
    assert all(torch.equal(module.up, theirs.adapter.modules[path].up) for path, module in ours.adapter.modules.items())
    assert ours.metadata["modelspec.thumbnail"].startswith("data:image/jpeg;base64,")
    assert (ours.metadata["ss_num_train_images"], ours.metadata["ss_steps"]) == ("4", "5")


def test_a_report_that_cannot_be_written_ends_no_run(session, recipe, run, monkeypatch):
    monkeypatch.setattr("u1_core.train.loop.write_report", lambda folder: 1 / 0)
    job = run(session, recipe)
    assert job.state == "finished"
    told = [event.data["message"] for event in job.events() if event.kind == "warning"]
    assert "the report could not be written: division by zero" in told


def test_what_is_drawn_by_default_is_what_was_trained_with_the_trigger(session, recipe):
    style = replace(recipe.style, untriggered=("0.png", "2.png"))
    recipe = replace(recipe, style=style, previews=Previews(every=2, steps=1, cfg=1.0))
    trainer = prepare(Job(lambda job: None), session, recipe)
    _, previewer = standard_hooks(session, recipe, trainer, Path("previews"))
    assert previewer._prompts == ("sty, blocks of colour, number 1", "sty, blocks of colour, number 3")


def test_no_caption_at_all_is_told_before_the_pattern_of_untriggered_ones(session, recipe):
    for path in Path(recipe.data.data_dir).glob("*.txt"):
        path.unlink()
    recipe = replace(recipe, style=replace(recipe.style, untriggered=("0.png",)))
    with pytest.raises(U1Error, match="cannot train on 5 pictures"):
        prepare(Job(lambda job: None), session, recipe)
