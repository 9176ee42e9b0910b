import importlib.util
import itertools
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from u1_core.errors import U1Error
from u1_core.jobs import Job
from u1_core.train import loop
from u1_core.train.checkpoint import State, step_of
from u1_core.train.control import Control, alive, ask, read_status
from u1_core.train.loop import train
from u1_core.train.recipe import Lora, Previews, Recipe, Train
from u1_core.train.recipe_file import dump_recipe, load_recipe
from u1_core.train.resume import About, refuse_changes
from u1_core.weights.write import NoRoomError


def stopped_after(session, recipe, step):
    job = Job(lambda job: train(job, session, recipe))
    job.subscribe(lambda event: job.stop() if event.data.get("step") == step and event.kind == "step" else None)
    job.start()
    assert job.wait(60)
    return job


def go_on(session, recipe, resume="checked"):
    job = Job(lambda job: train(job, session, recipe, resume)).start()
    assert job.wait(60)
    return job


@pytest.mark.parametrize("optimizer", ["adamw", "adafactor", "schedule_free", "prodigy"])
def test_a_run_that_was_stopped_goes_on_to_the_same_bytes(session, recipe, with_train, optimizer):
    recipe = with_train(recipe, steps=7, optimizer=optimizer, lr=1.0 if optimizer == "prodigy" else 1e-3)
    whole = replace(recipe, runtime=replace(recipe.runtime, out_dir=recipe.runtime.out_dir + "_whole"))
    expected = go_on(session, whole, "").result
    assert stopped_after(session, recipe, 3).result.steps == 3
    job = go_on(session, recipe)
    assert (job.state, job.error, job.result.steps) == ("finished", None, 7)
    for name in ("tiny.safetensors", "tiny.full.safetensors"):
        assert (job.result.folder / name).read_bytes() == (expected.folder / name).read_bytes()
    records = [json.loads(line) for line in (job.result.folder / "log.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records if "event" not in record] == [1, 2, 3, 4, 5, 6, 7]


def test_what_has_changed_is_named_and_can_be_overruled(session, recipe, with_train):
    recipe = with_train(recipe, steps=6)
    stopped_after(session, recipe, 2)
    (Path(recipe.data.data_dir) / "0.txt").write_text("another caption", encoding="utf-8")
    changed = replace(with_train(recipe, lr=5e-4, steps=8, checkpoint_every=2), lora=Lora(dropout=0.5))
    job = go_on(session, changed)
    assert str(job.error).endswith(
        "tiny: lora.dropout was 0.0 and is 0.5; train.lr was 0.001 and is 0.0005; pictures or captions are not what "
        "they were; undo that, or say --resume-anyway to go on all the same"
    )
    assert go_on(session, changed, "anyway").result.steps == 8


def test_a_setting_that_came_with_an_update_does_not_keep_a_run_from_going_on():
    now = dump_recipe(Recipe())
    before = "".join(line for line in now.splitlines(keepends=True) if "huber_delta" not in line)
    assert before != now
    state = State(2, True, 0, before, "data", "model", {}, {}, {}, {})
    refuse_changes(Path("run"), state, About(now, "data", "model"))
    changed = replace(state, recipe=dump_recipe(Recipe(train=Train(lr=0.1))))
    with pytest.raises(U1Error, match=r"run: train\.lr was 0\.1 and is 5e-05; undo that"):
        refuse_changes(Path("run"), changed, About(now, "data", "model"))


def test_an_error_in_the_middle_leaves_a_checkpoint(session, recipe, with_train, monkeypatch):
    recipe = with_train(recipe, steps=6)
    with monkeypatch.context() as patch:
        from u1_core.train.step import Trainer

        step = Trainer.step
        patch.setattr(Trainer, "step", lambda self, n: step(self, n) if n < 4 else 1 / 0)
        job = go_on(session, recipe, "")
    assert isinstance(job.error, ZeroDivisionError)
    folder = Path(recipe.runtime.out_dir) / "tiny"
    assert (folder / "checkpoints" / "state_000003.safetensors").is_file()
    assert read_status(folder)["state"] == "failed"
    assert go_on(session, recipe).result.steps == 6


def warnings_of(job):
    return [event.data["message"] for event in job.events() if event.kind == "warning"]


def records_of(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("file", ["step_", "state_"])
def test_a_disk_that_takes_no_checkpoint_does_not_end_the_run(session, recipe, with_train, full_disk, file):
    job = Job(lambda job: train(job, session, with_train(recipe, steps=7, checkpoint_every=2)))
    disk = full_disk(file, 100)
    job.subscribe(lambda event: disk.close() if event.kind == "step" and event.data["step"] == 5 else None)
    assert job.start().wait(60)
    told = warnings_of(job)
    assert job.state == "finished"
    assert [words.split(": ")[0] for words in told] == ["no checkpoint at step 2", "no checkpoint at step 4"]
    assert told[0].endswith("cannot be written (No space left on device)")
    assert {step_of(path) for path in (job.result.folder / "checkpoints").iterdir()} == {6, 7}
    assert [one["message"] for one in records_of(job.result.folder) if one.get("event") == "warning"] == told


def test_a_full_disk_keeps_neither_log_nor_report_nor_preview_from_a_run(session, recipe, with_train, full_disk):
    """All of it is told, and what can be made up for is when there is room again."""
    recipe = replace(with_train(recipe, steps=6, checkpoint_every=2), previews=Previews(every=3, steps=1, cfg=1.0))
    job = Job(lambda job: train(job, session, recipe))
    disk = [full_disk(name, 10) for name in ("log.jsonl", "state_", "report.html", "step_000003_1.png", "status.json")]
    job.subscribe(
        lambda event: [one.close() for one in disk] if event.kind == "step" and event.data["step"] == 5 else None
    )
    assert job.start().wait(60)
    assert (job.state, job.error) == ("finished", None)
    assert [words.partition(": ")[0] for words in warnings_of(job)[1:]] == [
        f"no checkpoint at step {step}" for step in (2, 3, 4)
    ]
    assert "log's lines are kept in memory" in warnings_of(job)[0]
    folder, records = job.result.folder, records_of(job.result.folder)
    assert [record["step"] for record in records if "event" not in record] == [1, 2, 3, 4, 5, 6]
    (failed, drawn) = [record for record in records if record.get("event") == "preview"]
    assert "No space left on device" in failed["failed"]
    assert drawn["files"] == ["step_000006_1.png", "step_000006_2.png"]
    assert sorted(path.name for path in (folder / "previews").glob("step*")) == drawn["files"]
    assert "Worth knowing" in (folder / "report.html").read_text(encoding="utf-8")
    assert not list(folder.rglob("*.part"))


@pytest.mark.parametrize("file", ["tiny.safetensors", "state_"])
def test_results_wait_for_room(session, recipe, full_disk, monkeypatch, file):
    monkeypatch.setattr("u1_core.train.loop.ROOM_POLL_S", 0.05)
    job, disk = Job(lambda job: train(job, session, recipe)), full_disk(file)
    job.subscribe(lambda event: disk.close() if event.kind == "warning" else None)
    assert job.start().wait(60)
    assert job.state == "finished"
    (words,) = warnings_of(job)
    assert words.endswith("(No space left on device); make room: the results wait in memory until there is")
    assert (job.result.folder / "tiny.safetensors").is_file()


def test_results_that_wait_for_room_can_be_given_up(session, recipe, full_disk, monkeypatch):
    monkeypatch.setattr("u1_core.train.loop.ROOM_POLL_S", 0.05)
    job = Job(lambda job: train(job, session, recipe))
    full_disk("tiny.safetensors")
    job.subscribe(lambda event: job.stop() if event.kind == "warning" else None)
    assert job.start().wait(60)
    assert (job.state, type(job.error)) == ("failed", NoRoomError)


def test_a_disk_without_room_is_told_before_the_start(session, recipe, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 10_000_000}))
    job = go_on(session, recipe, "")
    assert "0.0 GB are free, and a checkpoint and the results of this run take 0.1 GB" in str(job.error)
    assert not Path(recipe.runtime.out_dir).exists()


def test_a_run_obeys_words_in_its_folder(session, recipe, with_train):
    folder = Path(recipe.runtime.out_dir) / "tiny"
    job = Job(lambda job: train(job, session, with_train(recipe, steps=10**6))).start()
    next(event for event in job.follow() if event.kind == "step")
    assert alive(folder)
    ask(folder, "pause")
    next(event for event in job.follow() if event.kind == "paused")
    ask(folder, "resume")
    next(event for event in job.follow() if event.kind == "resumed")
    ask(folder, "stop")
    assert job.wait(30)
    assert read_status(folder)["state"] == "stopped"
    with pytest.raises(U1Error, match="the run is stopped, so it cannot pause"):
        ask(folder, "pause")


def test_killed_three_times_it_ends_with_the_same_bytes(tmp_path):
    script = Path(__file__).resolve().parents[1] / "kill_and_resume.py"
    spec = importlib.util.spec_from_file_location("kill_and_resume", script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.kill_and_resume(tmp_path, kills=2, steps=24, every=4, seed=1) >= 1


def test_more_steps_are_kept_with_the_run_and_fewer_than_it_has_are_refused(session, recipe, with_train):
    stopped_after(session, with_train(recipe, steps=6), 3)
    assert go_on(session, with_train(recipe, steps=8)).result.steps == 8
    folder = Path(recipe.runtime.out_dir) / "tiny"
    assert load_recipe(folder / "recipe.yaml").train.steps == 8
    for resume in ("checked", "anyway"):
        told = str(go_on(session, with_train(recipe, steps=6), resume).error)
        assert told == f"{folder}: the run is at step 8 already and train.steps is 6; give it more"


@pytest.mark.parametrize("changes", [{"every": 100}, {"pictures": 1}])
def test_what_decides_which_pictures_are_held_out_is_part_of_the_run(session, recipe, changes):
    stopped_after(session, recipe, 3)
    changed = replace(recipe, validation=replace(recipe.validation, **changes))
    assert f"validation.{next(iter(changes))} was " in str(go_on(session, changed).error)


def test_two_cannot_go_on_with_the_same_run(session, recipe, with_train):
    """The second may have looked whether anyone was at it while the first was still preparing."""
    stopped_after(session, with_train(recipe, steps=1000), 2)
    told = []

    def begun(trainer, folder):
        with pytest.raises(U1Error) as refused, Control(folder, Job(print)):
            pass
        told.append(str(refused.value))

    job = Job(lambda job: train(job, session, with_train(recipe, steps=1000), "checked", begun))
    job.subscribe(lambda event: job.stop() if event.kind == "step" else None)
    assert job.start().wait(60)
    assert (job.state, job.error) == ("stopped", None)
    assert told == [f"{job.result.folder}: the run is still going; `u1 runs stop` ends it"]
    assert read_status(job.result.folder)["step"] == 3


def test_a_full_disk_is_tried_each_so_many_minutes_and_not_at_every_step(
    session, recipe, with_train, full_disk, monkeypatch
):
    clock = itertools.count(0, 45)
    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    with full_disk("state_"):
        job = stopped_after(session, with_train(recipe, steps=20, checkpoint_minutes=4), 15)
    tried = [int(words.split()[4].rstrip(":")) for words in warnings_of(job) if words.startswith("no checkpoint at")]
    assert tried[-1] == 15  # as it is stopped
    assert len(tried) >= 3
    assert min(later - before for before, later in itertools.pairwise(tried[:-1])) >= 4
