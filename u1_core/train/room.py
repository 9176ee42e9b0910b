"""The plan that a run's steps go by: the one it begins with, and a step back when memory runs out.

A plan changes what a step costs and never what it computes, so a step that ran out of memory is taken again with the
same draws and comes to the same result. An update is another matter, as it changes weights in place: what one leaves
that was cut off halfway is of no use, and the run goes on from its newest checkpoint. This is rare: AdamW and its 8-bit
kin allocate in the first update only, and by the time of an update all activations have been given back.
"""

import gc
import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

import torch

from u1_core.data.buckets import Size
from u1_core.data.check import LOOKED_AT, spread
from u1_core.data.dataset import Dataset
from u1_core.data.framing import Framing
from u1_core.errors import U1Error
from u1_core.model.stack import ladder
from u1_core.plan.plan import Cost, Plan
from u1_core.plan.work import parameters
from u1_core.session import Session
from u1_core.text.sequence import TokenSequence
from u1_core.train.recipe import Recipe, Runtime
from u1_core.train.step import Trainer
from u1_core.train.work import training_work
from u1_core.weights.placement import Placement


class Sizes:
    """The sizes at which samples are trained, by their number."""

    def __init__(self, dataset: Dataset, framing: Framing) -> None:
        self._dataset, self._framing = dataset, framing

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, number: int) -> Size:
        """Raises U1Error for what is no picture."""
        try:
            return self._framing.frame(*self._dataset.size(number)).size
        except U1Error as problem:
            raise U1Error(f"{self._dataset.place(number)}: {problem}") from None


def first_plan(session: Session, recipe: Recipe, sizes: Sizes, prompts: Sequence[TokenSequence]) -> Plan:
    """The plan for the largest picture and the longest prompt (of a very large set, of a few thousand spread over it).

    The lease is to be held: the card may have to be measured. Raises U1Error where the recipe's budget is too small.
    """
    config, device = session.config, session.device
    if device.type == "cpu":
        return unplanned(config.layers, recipe.runtime)
    looked_at = spread(len(sizes), LOOKED_AT)
    size = max((sizes[number] for number in looked_at), key=math.prod)
    tokens = max(len(prompts[number].ids) for number in looked_at)
    work = training_work(config, recipe, size, tokens, device, session.dtype)
    return session.plan_training(work, already_bytes=4 * parameters(work.modules))  # the LoRA is there, in fp32


def unplanned(layers: int, runtime: Runtime) -> Plan:
    """All layers on the device, one micro-batch at a time, and kept for backward what the recipe says."""
    kept = ladder(layers, recompute=True, keep_last=runtime.gc_skip_last)
    return Plan.of(Placement(frozenset(range(layers))), tuple(kept), 1, lambda *_: Cost(0, 0.0))


def make_room(session: Session, trainer: Trainer) -> str:
    """Take a step back in the trainer's plan, the tower's layers placed anew if need be; returns what is given up.

    Raises U1Error if nothing is left that could be.
    """
    before = trainer.plan
    while after := trainer.plan.step_back():
        trainer.plan = after
        gc.collect()
        if session.device.type == "cuda":
            torch.cuda.empty_cache()
        with suppress(torch.OutOfMemoryError):  # then one step more
            if after.placement != before.placement:
                _place(session, trainer)
            return given_up(before, after)
    raise U1Error(
        "memory ran out, and the plan has nothing left to give up: lower data.cap_max_pixels, train.batch_size or the "
        "LoRA's rank, or close what else uses the card"
    )


def _place(session: Session, trainer: Trainer) -> None:
    """Bring the tower's layers to where the plan has them. Those that are there are let go first."""
    trainer.base = replace(trainer.base, layers=())
    session.place(trainer.plan.placement)
    trainer.base = replace(trainer.base, layers=session.base_generation.layers)


def given_up(before: Plan, after: Plan) -> str:
    """The difference between two plans: "less kept of 11 layers", "4 slots in place of 6", …"""
    words = []
    if changed := sum(ours is not theirs for ours, theirs in zip(before.kept, after.kept, strict=True)):
        words.append(f"less kept for backward of {changed} layers")
    if after.together != before.together:
        words.append(f"{after.together} micro-batches together in place of {before.together}")
    if after.placement.slots != before.placement.slots:
        words.append(f"{after.placement.slots} slots in place of {before.placement.slots}")
    if (ours := len(after.placement.resident)) != (theirs := len(before.placement.resident)):
        words.append(f"{ours} layers on the device in place of {theirs}")
    return ", ".join(words)
