"""Memory that runs out at any allocation of a step costs a step back in the plan: not the run, and not a bit of it."""

import json
import random
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from u1_core.jobs import Job
from u1_core.model.stack import Keep
from u1_core.plan.plan import RUNGS, Cost, Plan
from u1_core.session import Session
from u1_core.train.prepare import prepare
from u1_core.train.room import given_up, make_room
from u1_core.train.step import Trainer
from u1_core.weights.placement import Placement

LAYERS = 3
RICH = Placement.spread(LAYERS, resident=2, slots=3)


class Shortage(TorchDispatchMode):
    """Counts what allocates, and has memory run out at some of it."""

    def __init__(self, at=()):
        super().__init__()
        self.at, self.count = at, 0

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        if not (op.is_view or op._schema.is_mutable):
            self.count += 1
            if self.count in self.at:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore words.")
        return op(*args, **(kwargs or {}))


def predict(placement, kept, together):
    """More of anything takes more memory."""
    streamed = LAYERS - len(placement.resident)
    rungs = sum(RUNGS.index(keep) for keep in kept)
    return Cost(10 * rungs + 5 * together + placement.slots * bool(streamed) + 100 * len(placement.resident), 1.0)


@pytest.fixture
def rich(monkeypatch):
    """The plan that runs begin with: fifteen steps back can be taken from it."""
    plan = Plan.of(RICH, (Keep.ALL,) * LAYERS, 4, predict)
    monkeypatch.setattr("u1_core.train.prepare.first_plan", lambda *_: plan)
    return plan


@pytest.fixture
def short(monkeypatch, models, rich):
    """(recipe, name, where memory runs out) -> the ended job of a run, and how many allocations its steps made."""
    step = Trainer.step

    def run_short(recipe, name, at=(), resume=""):
        from u1_core.train.loop import train

        shortage = Shortage(at)

        def in_shortage(self, number):
            with shortage:
                return step(self, number)

        monkeypatch.setattr(Trainer, "step", in_shortage)
        runtime = replace(recipe.runtime, out_dir=f"{recipe.runtime.out_dir}/{name}")
        session = Session.open(models["u1"], "cpu", placement=RICH)
        job = Job(lambda job: train(job, session, replace(recipe, runtime=runtime), resume)).start()
        assert job.wait(120)
        return job, shortage.count

    return run_short


def results(job):
    assert (job.state, job.error) == ("finished", None)
    return {path.name: path.read_bytes() for path in job.result.folder.glob("*.safetensors")}


def events(job, kind):
    return [event.data for event in job.events() if event.kind == kind]


@pytest.mark.parametrize(("optimizer", "seed"), [("adamw", 0), ("adafactor", 1)])
def test_it_never_ends_a_run_and_changes_no_bit(recipe, with_train, short, optimizer, seed):
    """Ten times in a run, at random: in draws, forward, backward, clipping and the update."""
    recipe = with_train(
        recipe, steps=3, grad_accum=4, optimizer=optimizer, max_grad_norm=1, ema_decay=0.5, checkpoint_every=2
    )
    whole, count = short(recipe, "whole")
    at = random.Random(seed).sample(range(1, count), 10)
    job, _ = short(recipe, "short", at)
    assert results(job) == results(whole)
    told = events(job, "out_of_memory")
    assert len(told) == 10
    start = f"memory ran out in step {told[0]['step'] + 1}; it is taken again with less kept for "
    assert told[0]["message"].startswith(start)
    assert told[0]["reason"] == "CUDA out of memory. Tried to allocate 2.00 GiB."
    records = [json.loads(line) for line in (job.result.folder / "log.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records if "event" not in record] == [1] * 4 + [2] * 4 + [3] * 4


@pytest.mark.parametrize("saved", [True, False])
def test_half_an_update_is_undone(recipe, with_train, short, monkeypatch, saved):
    """From the newest checkpoint where there is one, else from the start."""
    recipe = with_train(recipe, steps=4, checkpoint_every=2 if saved else 0, ema_decay=0.5)
    whole, _ = short(recipe, "whole")
    adamw, calls = torch.optim.AdamW.step, []

    def fails_the_third_time(self, *args):
        calls.append(1)
        if len(calls) == 3:
            with torch.no_grad():
                self.param_groups[0]["params"][0].add_(1.0)
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return adamw(self, *args)

    monkeypatch.setattr(torch.optim.AdamW, "step", fails_the_third_time)
    job, _ = short(recipe, "short")
    assert results(job) == results(whole)
    (told,) = events(job, "rollback")
    assert (told["from_step"], told["step"], told["lr_scale"]) == (3, 2 if saved else 0, 1.0)
    assert [data["step"] for data in events(job, "step")] == ([1, 2, 3, 4] if saved else [1, 2, 1, 2, 3, 4])


def test_with_nothing_left_the_run_ends_saved_and_can_go_on(recipe, with_train, short):
    recipe = with_train(recipe, steps=3)
    whole, count = short(recipe, "whole")
    job, _ = short(recipe, "short", range(count // 2, 10**9))
    assert (job.state, job.traceback) == ("failed", "")
    assert str(job.error).startswith("memory ran out, and the plan has nothing left to give up: lower data.cap_max_pix")
    assert len(events(job, "out_of_memory")) == 15
    assert [data["step"] for data in events(job, "checkpoint")] == [1]
    job, _ = short(recipe, "short", resume="checked")
    assert results(job) == results(whole)


def test_predictions_and_measures_are_in_log_and_manifest(recipe, with_train, short, rich):
    recipe = with_train(recipe, steps=4)
    job, _ = short(recipe, "told")
    lines = [json.loads(line) for line in (job.result.folder / "log.jsonl").read_text().splitlines()]
    assert [(line.get("event"), line["step"]) for line in lines] == [
        ("plan", 0),
        *((None, step) for step in range(1, 5)),
        ("measured", 4),
    ]
    planned = {"resident": 2, "slots": 3, "kept": {"all": 3}, "together": 4}
    predicted = {"predicted_seconds": 1.0, "predicted_bytes": rich.peak_bytes}
    assert lines[0] == {"event": "plan", "step": 0, **planned, **predicted}
    seconds = sum(line["seconds"] for line in lines[3:5]) / 2
    measured = {**planned, **predicted, "seconds": seconds, "reserved_bytes": 0, "steps": 2}
    assert lines[-1] == {"event": "measured", "step": 4, **measured}
    manifest = json.loads((job.result.folder / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["plan"] == measured


def test_words_for_what_is_given_up(rich):
    def words(**changes):
        return given_up(rich, replace(rich, **changes))

    kept = (Keep.INPUT, Keep.ALL, Keep.INPUT)
    assert words(kept=kept) == "less kept for backward of 2 layers"
    assert words(together=1, kept=kept) == (
        "less kept for backward of 2 layers, 1 micro-batches together in place of 4"
    )
    assert words(placement=replace(RICH, slots=1)) == "1 slots in place of 3"
    assert words(placement=Placement.spread(3, 1)) == "1 layers on the device in place of 2"


def test_layers_are_placed_anew_until_there_is_room(rich, models, recipe, monkeypatch):
    session = Session.open(models["u1"], "cpu", placement=RICH)
    trainer = prepare(Job(print), session, recipe)
    trainer.plan = Plan.of(replace(RICH, slots=1), (Keep.INPUT,) * 3, 1, predict)
    place, asked = session.place, []

    def refuses_once(placement):
        asked.append(len(placement.resident))
        if len(asked) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        place(placement)

    monkeypatch.setattr(session, "place", refuses_once)
    assert make_room(session, trainer) == "0 layers on the device in place of 2"
    assert asked == [1, 0]
    assert trainer.base.layers is session.base_generation.layers
    assert trainer.base.layers.resident == frozenset()
    assert trainer.step(1)[0]["loss"] > 0
