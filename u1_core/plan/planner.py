"""The quickest plan within a budget: which layers stay, how many slots, what is kept of each, how many pictures go
together. Candidates' time and memory are predicted by a `StepModel`; the best is taken."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

from u1_core.errors import U1Error
from u1_core.model.stack import Keep
from u1_core.plan.budget import Budget, gib
from u1_core.plan.plan import RUNGS, Plan
from u1_core.plan.step_model import StepModel
from u1_core.weights.placement import Placement

SLOTS = (2, 3, 4)
AS_GOOD = 1.005
"""A step this much longer than the quickest is as good if it takes less memory."""
THRIFTY = 1.1
"""How much longer than the quickest a step may take in the modes "balanced" and "low"."""
RESIDENT_CHOICES = 14
"""Numbers of resident layers that are tried, evenly spaced, besides none."""
BISECTIONS = 8


def choose_plan(model: StepModel, budget: Budget, free_bytes: int, placement: Placement | None = None) -> Plan:
    """The plan for a budget; modes may take `free_bytes`. A `placement` that is given stays as it is.

    Raises U1Error where that is too little memory, or the host's is.
    """
    limit = budget.n_bytes or free_bytes
    search = _Search.of(model, budget.mode, placement)
    plan = search.quickest(limit)
    if not plan:
        raise U1Error(_too_little(model, budget, limit, search))
    return search.thriftiest(plan) if budget.mode in ("balanced", "low") else plan


def least_plan(model: StepModel) -> Plan:
    """What takes the least memory and still has copies and arithmetic side by side: all streamed, one at a time."""
    return Plan.of(Placement(frozenset(), SLOTS[0]), (Keep.INPUT,) * model.layers, 1, model.predict)


def _too_little(model: StepModel, budget: Budget, limit: int, search: "_Search") -> str:
    needed = (
        min(model.peak_bytes(placement, (Keep.INPUT,) * model.layers, 1) for placement in search.placements)
        if search.placements
        else 0
    )
    if not search.placements:
        return (
            f"budget {budget}: the layers that are not on the card do not fit in the host's memory "
            f"({gib(model.host_free_bytes)} free); close other programs, or allow the card more"
        )
    wish = "use balanced or low" if budget.mode == "full" else "make the pictures smaller or train less"
    return f"budget {budget}: {gib(limit)} may be taken on the card and at least {gib(needed)} are needed; {wish}"


@dataclass(frozen=True)
class _Search:
    """The candidates of a mode."""

    model: StepModel
    placements: Sequence[Placement]
    rungs: Sequence[Keep]

    @classmethod
    def of(cls, model: StepModel, mode: str, placement: Placement | None) -> "_Search":
        rungs = RUNGS if model.trains and mode != "low" else RUNGS[:1]
        if placement:
            return cls(model, [placement], rungs)
        layers = model.layers
        counts = {layers * number // RESIDENT_CHOICES for number in range(RESIDENT_CHOICES + 1)}
        chosen = {"full": {layers}, "low": {0}}.get(mode, counts)
        placements = [
            Placement.spread(layers, count, slots)
            for count in sorted(chosen)
            for slots in (SLOTS if count < layers else SLOTS[:1])
        ]
        fitting = [each for each in placements if model.host_bytes(each) <= model.host_free_bytes]
        return cls(model, fitting, rungs)

    def quickest(self, limit: int) -> Plan | None:
        """The quickest candidate of at most `limit` bytes, or as good a one that takes less; None if there is none."""
        plans = list(self._fitting(limit))
        if not plans:
            return None
        good = AS_GOOD * min(plan.seconds for plan in plans)
        return min((plan for plan in plans if plan.seconds <= good), key=lambda plan: plan.peak_bytes)

    def thriftiest(self, quickest: Plan) -> Plan:
        """The candidate of the least memory that is hardly slower than `quickest`."""
        best, low, high = quickest, 0, quickest.peak_bytes
        for _ in range(BISECTIONS):
            middle = (low + high) // 2
            plan = self.quickest(middle)
            if plan and plan.seconds <= THRIFTY * quickest.seconds:
                best, high = plan, plan.peak_bytes
            else:
                low = middle
        return best

    def _fitting(self, limit: int) -> Iterator[Plan]:
        """Plans that fill the limit, each as quick as can be with its placement and pictures together."""
        best = float("inf")
        for placement in self.placements:
            for together in self._together():
                for kept in self._ladders(placement, together, limit):
                    if self.model.arithmetic_s(kept, together) > AS_GOOD * best:
                        continue
                    plan = Plan.of(placement, kept, together, self.model.predict)
                    best = min(best, plan.seconds)
                    yield plan

    def _together(self) -> list[int]:
        """1, 2, 4 … and all."""
        count = self.model.micro_batches
        return sorted({2**power for power in range(count.bit_length()) if 2**power <= count} | {count})

    def _ladders(self, placement: Placement, together: int, limit: int) -> Iterator[tuple[Keep, ...]]:
        """For each two rungs: as many layers on the higher one as fit, the others on the lower.

        The last layers, since what they keep is free again when the others need room to be computed again.
        """
        layers = self.model.layers

        def fits(lower: Keep, higher: Keep, count: int) -> tuple[Keep, ...] | None:
            kept = (lower,) * (layers - count) + (higher,) * count
            return kept if self.model.peak_bytes(placement, kept, together) <= limit else None

        for lower, higher in list(combinations(self.rungs, 2)) or [(Keep.INPUT, Keep.INPUT)]:
            found, low, high = fits(lower, higher, 0), 0, layers
            while found and low < high:
                middle = (low + high + 1) // 2
                if more := fits(lower, higher, middle):
                    found, low = more, middle
                else:
                    high = middle - 1
            if found:
                yield found
