"""A plan: where a tower's layers are, what is kept of each for backward, and what that is predicted to cost."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

from u1_core.model.stack import Keep
from u1_core.weights.placement import Placement

RUNGS = tuple(Keep)
"""The ladder, from least memory to most."""


@dataclass(frozen=True)
class Cost:
    """What a step is predicted to take."""

    peak_bytes: int
    """Device memory reserved by the allocator at its highest."""
    seconds: float
    """Of one step: all the pictures of an update, or all the branches of a sampling step."""
    host_lacks_bytes: int = 0
    """What the host's memory is short of for the layers that are streamed."""


Predict = Callable[[Placement, tuple[Keep, ...], int], Cost]
"""(placement, kept, together) -> what a step so planned would cost."""


@dataclass(frozen=True)
class Plan:
    """How a step is run. It changes what a step costs, and never what it computes."""

    placement: Placement
    kept: tuple[Keep, ...]
    """A rung for each layer; see `run_layers`. In sampling, which keeps nothing, all are Keep.INPUT."""
    together: int
    """Most micro-batches (pictures of an update) that are taken through a layer together."""
    cost: Cost
    predict: Predict = field(repr=False, compare=False)

    @classmethod
    def of(cls, placement: Placement, kept: tuple[Keep, ...], together: int, predict: Predict) -> "Plan":
        """The plan with what `predict` says it costs."""
        return cls(placement, kept, together, predict(placement, kept, together), predict)

    @property
    def layers(self) -> int:
        return len(self.kept)

    @property
    def peak_bytes(self) -> int:
        return self.cost.peak_bytes

    @property
    def seconds(self) -> float:
        return self.cost.seconds

    def step_back(self) -> "Plan | None":
        """The next plan that is predicted to take less of the card's memory, and no more of the host's than it has;
        None when nothing is left to give up.

        First less is kept for backward, then fewer micro-batches go together, then there are fewer slots, then fewer
        layers stay on the device: a quarter of what there is at a time.
        """
        for smaller in self._smaller():
            fits_host = smaller.cost.host_lacks_bytes <= self.cost.host_lacks_bytes
            if fits_host and smaller.peak_bytes < self.peak_bytes:
                return smaller
        return None

    def _smaller(self) -> Iterator["Plan"]:
        kept, slots = self.kept, self.placement.slots
        while any(keep is not Keep.INPUT for keep in kept):
            kept = _lowered(kept)
            yield self._with(kept=kept)
        for together in range(self.together // 2, 0, -1):
            yield self._with(kept=kept, together=together)
        yield from (self._with(kept=kept, together=1, placement=each) for each in self._smaller_placements(slots))

    def _smaller_placements(self, slots: int) -> Iterator[Placement]:
        for fewer in range(slots - 1, 0, -1):
            yield replace(self.placement, slots=fewer)
        resident = len(self.placement.resident)
        while resident:
            resident -= math.ceil(resident / 4)
            yield Placement.spread(self.layers, resident, slots=1)

    def _with(self, kept: tuple[Keep, ...], together: int | None = None, placement: Placement | None = None) -> "Plan":
        return Plan.of(placement or self.placement, kept, together or self.together, self.predict)


def _lowered(kept: tuple[Keep, ...]) -> tuple[Keep, ...]:
    """The first quarter of the layers on the highest rung in use, one rung lower."""
    highest = max(RUNGS.index(keep) for keep in kept)
    there = [index for index, keep in enumerate(kept) if keep is RUNGS[highest]]
    moved = set(there[: math.ceil(len(there) / 4)])
    return tuple(RUNGS[highest - 1] if index in moved else keep for index, keep in enumerate(kept))
