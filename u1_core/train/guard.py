"""Watches the loss: which steps must not change the weights, and when skipping them is no longer enough."""

import math
from collections import deque
from collections.abc import Sequence
from typing import Any

from u1_core.train.recipe import Train

SEEN = 100
"""Losses that a new one is compared with."""
SEEN_AT_LEAST = 20
"""Before so many, no loss counts as a spike."""


class Guard:
    """Skips a step whose loss or gradient is no number, or whose loss is far above all recent ones.

    A single loss says little, as it depends on t; the largest of the last hundred is a measure that t does not move.
    """

    def __init__(self, train: Train) -> None:
        self._train = train
        self._recent: deque[float] = deque(maxlen=SEEN)
        self.skipped = 0
        """Steps skipped in a row."""
        self.rollbacks = 0

    @property
    def lr_scale(self) -> float:
        """Half for each time that the run went back."""
        return 0.5**self.rollbacks

    @property
    def exhausted(self) -> bool:
        """Whether more steps were skipped in a row than the recipe allows."""
        return self.skipped > self._train.max_skips

    def judge(self, records: Sequence[dict[str, Any]], grad_norm: float) -> str:
        """Why this step is to be skipped, in words; nothing if it is sound, and then it is remembered."""
        loss, spike = sum(record["loss"] for record in records) / len(records), self._train.spike
        worst = max(records, key=lambda record: record["loss"] if math.isfinite(record["loss"]) else math.inf)
        where = f"(sample {worst['sample']}, t {worst['t']:.3f})"
        reason = ""
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            reason = f"loss {loss:g}, gradient norm {grad_norm:g} {where}"
        elif spike and len(self._recent) >= SEEN_AT_LEAST and loss > spike * max(self._recent):
            reason = f"loss {loss:g}, over {spike:g} times the largest of late, {max(self._recent):g} {where}"
        if reason:
            self.skipped += 1
        else:
            self.skipped = 0
            self._recent.append(loss)
        return reason

    def state(self) -> dict[str, Any]:
        return {"recent": list(self._recent), "skipped": self.skipped, "rollbacks": self.rollbacks}

    def restore(self, state: dict[str, Any]) -> None:
        self._recent = deque(state["recent"], maxlen=SEEN)
        self.skipped, self.rollbacks = state["skipped"], state["rollbacks"]
