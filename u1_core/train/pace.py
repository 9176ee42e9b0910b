"""Predicted against measured: what a plan says that a step takes, and what the steps under it took."""

import statistics
from collections import Counter
from collections.abc import Sequence
from typing import Any

from u1_core.plan.plan import Plan
from u1_core.train.step import Record

WARM_UP = 2
"""Steps that are not counted: kernels are chosen and compiled in them."""


class Pace:
    """Measures the steps that are taken under one plan."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._seconds: list[float] = []
        self._reserved_bytes = 0
        self._steps = 0

    def add(self, records: Sequence[Record]) -> None:
        """Count a step, by its records."""
        self._steps += 1
        self._reserved_bytes = max(self._reserved_bytes, records[0]["reserved_bytes"] or 0)
        if self._steps > WARM_UP:
            self._seconds.append(records[0]["seconds"])

    def predicted(self) -> dict[str, Any]:
        """The plan, for the log: seconds of a step of the largest pictures, and the most memory it reserves."""
        kept = Counter(keep.value for keep in self.plan.kept)
        return {
            "resident": len(self.plan.placement.resident),
            "slots": self.plan.placement.slots,
            "kept": dict(kept),
            "together": self.plan.together,
            "predicted_seconds": self.plan.seconds,
            "predicted_bytes": self.plan.peak_bytes,
        }

    def measured(self) -> dict[str, Any]:
        """The same with what was measured: the median of the steps, of whatever pictures. Empty after too few."""
        if not self._seconds:
            return {}
        seconds = {"seconds": statistics.median(self._seconds), "reserved_bytes": self._reserved_bytes}
        return {**self.predicted(), **seconds, "steps": len(self._seconds)}
