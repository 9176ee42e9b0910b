import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from u1_core.jobs import Job
from u1_core.lora.files import read_lora
from u1_core.lora.plan import plan_lora, select_unfrozen
from u1_core.model.config import tensor_shapes
from u1_core.released import released_config
from u1_core.session import Session
from u1_core.train.guard import Guard
from u1_core.train.loop import train
from u1_core.train.recipe import Lora, Previews, Recipe, Validation


def read_log(folder: Path):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]


def kinds(job):
    return [event.kind for event in job.events() if event.kind != "checking"]


def files(folder: Path):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_the_default_recipe_trains_286_289_920_numbers_of_u1_8b():
    config, recipe, shapes = released_config("U1-8B"), Recipe(), tensor_shapes(released_config("U1-8B"))
    plan = plan_lora(config, recipe.lora.preset)
    full = sum(math.prod(shapes[name]) for name in select_unfrozen(config, recipe.unfreeze))
    assert (len(plan.modules), plan.parameters, plan.parameters + full) == (294, 203_685_888, 286_289_920)


def test_a_run_lowers_the_loss_and_leaves_what_it_learned(session, recipe, run, with_train):
    job = run(session, with_train(recipe, steps=60, lr=3e-3, checkpoint_every=25))
    assert (job.state, job.error) == ("finished", None)
    folder = job.result.folder
    losses = [record["loss"] for record in read_log(folder)]
    assert len(losses) == 60
    assert sum(losses[-20:]) < 0.6 * sum(losses[:20])
    states = [f"checkpoints/state_{step:06}.safetensors" for step in (25, 50, 60)]
    weights = [f"checkpoints/step_{step:06}{part}.safetensors" for step in (25, 50) for part in (".full", "")]
    about = ["log.jsonl", "manifest.json", "recipe.yaml", "report.html", "status.json"]
    assert files(folder) == [*states, *weights, *about, "tiny.full.safetensors", "tiny.safetensors"]
    adapter = read_lora(job.result.saved.loadable).adapter
    adapter.check(session.config)
    assert (len(adapter.modules), len(adapter.full)) == (21, 16)
    assert min(module.up.abs().max() for module in adapter.modules.values()) > 0
    assert any(not torch.equal(tensor, session.base_generation.modules[name]) for name, tensor in adapter.full.items())


def test_events_tell_what_is_trained_and_each_step(session, recipe, run, with_train):
    job = run(session, with_train(recipe, steps=3, grad_accum=2, checkpoint_every=2))
    assert kinds(job) == ["started", "checked", "prepared", "step", "step", "checkpoint", "step", "results", "finished"]
    checking = [event.data for event in job.events() if event.kind == "checking"]
    assert checking[-1] == {"done": 5, "total": 5}
    by_kind = {event.kind: event.data for event in job.events()}
    prepared = by_kind["prepared"]
    assert (prepared["samples"], prepared["modules"], prepared["device"]) == (5, 21, "cpu")
    assert prepared["optimizer"].startswith("AdamW")
    full = sum(math.prod(tensor.shape) for tensor in read_lora(job.result.saved.lora).adapter.full.values())
    assert prepared["trainable_parameters"] == prepared["lora_parameters"] + full
    records = read_log(job.result.folder)
    assert [record["step"] for record in records] == [1, 1, 2, 2, 3, 3]
    assert by_kind["step"]["loss"] == (records[4]["loss"] + records[5]["loss"]) / 2
    assert (by_kind["step"]["step"], by_kind["step"]["steps"]) == (3, 3)


def test_the_same_recipe_twice_gives_the_same_bytes(models, recipe, run, with_train):
    recipe = with_train(recipe, cond_dropout_text=0.3, steps=5)
    recipe = replace(recipe, lora=replace(recipe.lora, dropout=0.2))
    outcomes = []
    for out_dir in ("a", "b"):
        runtime = replace(recipe.runtime, out_dir=str(Path(recipe.runtime.out_dir) / out_dir))
        outcomes.append(run(Session.open(models["u1"], "cpu"), replace(recipe, runtime=runtime)).result)
    for name in ("tiny.safetensors", "tiny.full.safetensors"):
        ours, theirs = ((outcome.folder / name).read_bytes() for outcome in outcomes)
        assert ours == theirs
    other = run(Session.open(models["u1"], "cpu"), replace(with_train(recipe, seed=1), run_name="seed1")).result
    ours, theirs = (read_lora(outcome.saved.lora).adapter.modules for outcome in (outcomes[0], other))
    assert all(not torch.equal(module.up, theirs[path].up) for path, module in ours.items())


def test_pausing_changes_nothing_and_stopping_saves(session, recipe, run, with_train):
    recipe = with_train(recipe, steps=8)
    whole = run(session, recipe).result
    job = Job(lambda job: train(job, session, replace(recipe, run_name="paused")))

    def conduct(event):
        if event.kind == "step" and event.data["step"] == 3:
            job.pause()
        if event.kind == "step" and event.data["step"] == 5:
            job.stop()

    job.subscribe(conduct)
    job.start()
    for event in job.follow():
        if event.kind == "paused":
            assert len(read_log(Path(recipe.runtime.out_dir) / "paused")) == 3
            job.resume()
    assert job.state == "stopped"
    assert kinds(job)[-4:] == ["step", "step", "checkpoint", "stopped"]
    assert job.result.steps == 5
    assert job.result.saved.lora == job.result.folder / "checkpoints" / "step_000005.safetensors"
    about = ["log.jsonl", "manifest.json", "recipe.yaml", "report.html", "status.json"]
    assert files(job.result.folder)[3:] == about
    volatile = ("seconds", "data_wait_s")
    ours, theirs = ([{**r, **dict.fromkeys(volatile)} for r in read_log(o.folder)] for o in (job.result, whole))
    assert ours == theirs[:5]


def test_stopped_before_its_first_step_it_leaves_nothing(session, recipe):
    job = Job(lambda job: train(job, session, recipe))
    job.subscribe(lambda event: job.stop() if event.kind == "prepared" else None)
    job.start()
    assert job.wait(60)
    assert (job.state, job.result) == ("stopped", None)
    assert not Path(recipe.runtime.out_dir).exists()


def test_others_may_use_the_session_between_steps(session, recipe, with_train):
    job = Job(lambda job: train(job, session, with_train(recipe, steps=10**6))).start()
    next(event for event in job.follow() if event.kind == "step")
    try:
        for _ in range(3):
            with session.lease:
                before = len(job.events())
                assert not job.wait(0.1)
                # The step that was just done may still be told of; another must wait.
                assert len(job.events()) - before <= 1
    finally:
        job.stop()
        assert job.wait(60)
    assert job.state == "stopped"


def test_a_model_that_was_loaded_for_inference_trains_too(session, recipe, run):
    with torch.inference_mode():
        assert len(session.understanding.layers) == len(session.base_generation.layers) == 3
    job = run(session, recipe)
    assert (job.state, job.error) == ("finished", None)


def test_tensors_alone_can_be_trained(session, recipe, run):
    job = run(session, replace(recipe, lora=Lora(preset=None)))
    assert job.result.saved.lora is None
    adapter = read_lora(job.result.saved.full).adapter
    assert (len(adapter.modules), len(adapter.full)) == (0, 16)


def test_a_run_that_diverges_skips_goes_back_and_stops_with_the_reason(session, recipe, run, with_train, monkeypatch):
    monkeypatch.setattr("u1_core.train.step.flow_losses", exploding_after(5))
    job = run(session, with_train(recipe, steps=20, checkpoint_every=2, keep_last=2))
    assert (job.state, job.traceback) == ("failed", "")
    assert str(job.error).startswith("step 8: loss inf, gradient norm nan (sample ")
    assert "the run has diverged after 2 attempts to go back" in str(job.error)
    rollbacks = [event.data for event in job.events() if event.kind == "rollback"]
    assert [(told["from_step"], told["step"], told["lr_scale"]) for told in rollbacks] == [(8, 4, 0.5), (8, 4, 0.25)]


def exploding_after(step):
    """A loss that is infinite from that step on; a step takes it three times, once to train and twice for the log."""
    from u1_core.train.objective import flow_losses

    calls = []

    def loss(*args):
        calls.append(1)
        return flow_losses(*args) * (math.inf if len(calls) > 3 * (step - 1) else 1.0)

    return loss


def break_(recipe, **sections):
    changed = {name: replace(getattr(recipe, name), **settings) for name, settings in sections.items()}
    return replace(recipe, **changed)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (lambda r: break_(r, data={"data_dir": "nowhere"}), r"^nowhere: there is no such folder"),
        (lambda r: break_(r, lora={"spec": "gen_moe_mlp=r8"}), r"entry 'gen_moe_mlp=r8' matches no module of this u1"),
        (lambda r: break_(r, style={"untriggered": ("plain/*",)}), r"style\.untriggered has 'plain/\*', but .* has no"),
        (lambda r: break_(r, style={"untriggered": ("*",)}), r"style\.untriggered leaves no picture in .* with the tr"),
        (lambda r: replace(r, unfreeze=("^fm_modules.head",)), r"unfreeze pattern '\^fm_modules\.head' matches no"),
        (lambda r: break_(r, train={"optimizer": "paged_adamw8bit"}), r"train\.optimizer is paged_adamw8bit, but the"),
        (lambda r: break_(r, runtime={"upstream_lora_path": "no.safetensors"}), r"no\.safetensors: there is no such"),
    ],
)
def test_what_cannot_work_is_said_before_anything_is_written(session, recipe, run, broken, message):
    job = run(session, broken(recipe))
    assert (job.state, job.traceback) == ("failed", "")
    with pytest.raises(type(job.error), match=message):
        raise job.error
    assert "\n" not in str(job.error)
    assert not Path(recipe.runtime.out_dir).exists()


def test_all_bad_pictures_and_captions_are_told_together(session, recipe, run):
    pictures = Path(recipe.data.data_dir)
    (pictures / "0.txt").unlink()
    (pictures / "1.txt").write_text("a caption with <img> in it", encoding="utf-8")
    (pictures / "2.png").write_bytes((pictures / "2.png").read_bytes()[:200])
    (pictures / "3.png").write_bytes(b"not a picture")
    job = run(session, recipe)
    message = str(job.error)
    assert message.startswith(
        f"{pictures}: cannot train on 4 pictures: 0.png (has no caption 0.txt), 1.png (the prompt"
    )
    assert "2.png (" in message
    assert "3.png (is no picture in a format that can be read" in message
    assert not Path(recipe.runtime.out_dir).exists()


def test_a_name_that_is_taken_is_refused_before_the_pictures_are_looked_at(session, recipe, run):
    run(session, recipe)
    job = run(session, recipe)
    assert "there is a run of this name already" in str(job.error)
    assert kinds(job) == ["started", "failed"]
    assert len(job.events()) == 2


def test_a_run_that_is_alone_lets_the_understanding_tower_go(session, recipe):
    recipe = replace(recipe, previews=Previews(every=3, steps=1, cfg=1.0), validation=Validation(every=3))
    held = []
    job = Job(lambda job: train(job, session, recipe, alone=True))
    job.subscribe(lambda event: held.append("understanding" in vars(session)) if event.kind == "step" else None)
    assert job.start().wait(60)
    assert held == [False] * 6
    assert "understanding" not in vars(session)
    assert (job.result.folder / "previews" / "step_000006_1.png").is_file()


@pytest.mark.parametrize("t_dist", ["uniform", "logit_normal"])
def test_the_log_has_the_distributions_that_the_recipe_asks_for(session, recipe, run, with_train, t_dist):
    """Within three standard deviations; and on each picture, v loss is x0 loss / (1 - t)^2."""
    settings = {"grad_accum": 4, "t_dist": t_dist, "cond_dropout_text": 0.2, "cond_dropout_both": 0.1}
    recipe = replace(with_train(recipe, steps=75, **settings), lora=Lora(spec="attn=r1"), unfreeze=())
    folder = run(session, recipe).result.folder
    lines = map(json.loads, (folder / "log.jsonl").read_text(encoding="utf-8").splitlines())
    records = [record for record in lines if "event" not in record]
    count = len(records)
    assert count == 300
    for name, share in (("text", 0.2), ("both", 0.1), ("", 0.7)):
        logged = sum(record["dropped"] == name for record in records) / count
        assert abs(logged - share) < 3 * math.sqrt(share * (1 - share) / count)
    t = torch.tensor([record["t"] for record in records], dtype=torch.float64)
    drawn, mean, std = (t, 0.525, 0.95 / math.sqrt(12)) if t_dist == "uniform" else (t.logit(), -0.8, 0.8)
    assert abs(drawn.mean() - mean) < 3 * std / math.sqrt(count)
    assert abs(drawn.std() - std) < 3 * std / math.sqrt(2 * count)
    for record in records:
        assert record["v_mse"] == pytest.approx(record["x0_mse"] / max(1 - record["t"], 0.05) ** 2, rel=1e-5)


@pytest.mark.parametrize("wanted", [False, True])
def test_deterministic_algorithms_are_asked_for_only_where_they_are_wanted(session, recipe, run, monkeypatch, wanted):
    asked = []
    monkeypatch.setattr(torch, "use_deterministic_algorithms", asked.append)
    assert not run(session, replace(recipe, runtime=replace(recipe.runtime, deterministic=wanted))).error
    assert asked == ([True, False] if wanted else [])


def test_a_run_that_goes_wrong_before_it_has_saved_anything_begins_anew(session, recipe, run, with_train, monkeypatch):
    real, wrong = Guard.judge, iter([False] * 3 + [True] * 2 + [False] * 9)

    def judge(guard, records, grad_norm):
        if not next(wrong):
            return real(guard, records, grad_norm)
        guard.skipped += 1
        return "made up"

    monkeypatch.setattr(Guard, "judge", judge)
    job = run(session, with_train(recipe, steps=6, checkpoint_every=0, max_skips=1, max_rollbacks=1))
    assert (job.state, job.error, job.result.steps) == ("finished", None, 6)
    (told,) = [event.data for event in job.events() if event.kind == "rollback"]
    assert (told["from_step"], told["step"], told["lr_scale"]) == (5, 0, 0.5)
    assert [record["step"] for record in read_log(job.result.folder) if "event" not in record] == [1, 2, 3, 4, 5, 6]
