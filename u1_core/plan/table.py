"""A plan in words and numbers, for people."""

from collections.abc import Iterator, Sequence
from itertools import groupby

from u1_core.errors import U1Error
from u1_core.model.stack import Keep
from u1_core.plan.budget import GIB, Budget, gib
from u1_core.plan.plan import Plan
from u1_core.plan.planner import choose_plan
from u1_core.plan.step_model import StepModel

OTHER_BUDGETS = (5, 8, 12, 16, 24, 32, 48, 80)
"""GiB; what they would give is told beside the one asked for."""

_KEPT_WORDS = {
    Keep.INPUT: "input only",
    Keep.ATTENTION: "attention's result",
    Keep.PRODUCTS: "all products",
    Keep.ALL: "everything",
}


def plan_lines(model: StepModel, plan: Plan) -> Iterator[str]:
    """What goes where, and what a step takes."""
    parts = model.parts(plan.placement, plan.kept, plan.together)
    resident = len(plan.placement.resident)
    streamed = model.layers - resident
    yield f"predicted: {plan.seconds:.3f} s a step, {gib(plan.peak_bytes)} of the card at the peak"
    if streamed:
        slots = f"{plan.placement.slots} slots for {streamed} of {model.layers} layers that come and go"
        yield _row(f"{resident} layers that stay, {slots}", parts.weights)
    else:
        yield _row(f"all {model.layers} layers", parts.weights)
    yield _row("the tower's other tensors, what is trained, prefix K/V", parts.fixed)
    if model.trains:
        yield _row("optimizer's state", parts.optimizer)
        yield _row(f"kept for backward: {ladder_words(plan.kept)}", parts.kept)
        yield _row("gradients at that moment", parts.gradients)
    yield _row("activations of a layer at work", parts.work)
    yield _row("gaps between them", parts.slack)
    yield _row("in the host's memory: layers that come and go", model.host_bytes(plan.placement))
    if model.micro_batches > 1:
        yield f"  {plan.together} of {model.micro_batches} micro-batches go through a layer together"


def budget_lines(model: StepModel, budgets: Sequence[int] = OTHER_BUDGETS) -> Iterator[str]:
    """What other budgets would give: one line each, up to the first that no larger one is better than."""
    yield f"{'budget':>10}  {'at the peak':>11}  {'s a step':>8}"
    best = float("inf")
    for budget in budgets:
        try:
            plan = choose_plan(model, Budget("", budget * GIB), 0)
        except U1Error:
            yield f"{budget:>6} GiB  {'too little':>11}"
            continue
        if plan.seconds >= 0.995 * best:
            yield f"{'more':>10}  gains nothing"
            return
        best = plan.seconds
        words = f"{len(plan.placement.resident)} layers stay; kept: {ladder_words(plan.kept)}"
        yield f"{budget:>6} GiB  {gib(plan.peak_bytes):>11}  {plan.seconds:>8.3f}  {words}"


def ladder_words(kept: Sequence[Keep]) -> str:
    """ "30 x input only, 12 x attention's result"."""
    return ", ".join(f"{len(list(run))} x {_KEPT_WORDS[keep]}" for keep, run in groupby(kept))


def _row(words: str, n_bytes: int) -> str:
    return f"{gib(n_bytes):>12}  {words}"
