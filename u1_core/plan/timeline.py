"""How long a pass over the layers takes when some of them arrive while others are computed with.

The order of events is the ring's own (`StreamedLayers`): when a layer's turn comes, copies begin of it and of those
next in line, as many as there are slots, each into a slot that none of these is in, once the work that needed the
slot's last layer is done. Copies go one after the other, and so does the arithmetic.
"""

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import chain


@dataclass(frozen=True)
class Visit:
    """One turn of a layer: its number, and the seconds of arithmetic with it. Number None needs no layer."""

    layer: int | None
    seconds: float


def step_seconds(
    visits: Sequence[Visit], resident: frozenset[int], slots: int, copy_s: Callable[[int], float]
) -> float:
    """Seconds of one step among many alike, copies for the next being under way at the end of each.

    `copy_s` says how long it takes to bring in a layer. A step's visits, in order; each pass is announced.
    """
    ring = _Ring(visits, resident, slots, copy_s)
    ring.step()
    first_end = ring.now
    ring.step()
    return ring.now - first_end


@dataclass
class _Slot:
    layer: int | None = None
    ready: float = 0.0
    free: float = 0.0


@dataclass
class _Ring:
    visits: Sequence[Visit]
    resident: frozenset[int]
    slots: int
    copy_s: Callable[[int], float]
    now: float = 0.0
    """When the arithmetic so far is done."""
    copied: float = 0.0
    """When the copies so far are done."""
    held: list[_Slot] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.held = [_Slot() for _ in range(self.slots)]
        self._streamed = [v.layer for v in self.visits if v.layer is not None and v.layer not in self.resident]

    def step(self) -> None:
        coming = deque(self._streamed)
        current: int | None = None
        lent: _Slot | None = None
        for visit in self.visits:
            if visit.layer is not None and visit.layer != current:
                if lent:
                    lent.free = self.now
                lent, current = None, visit.layer
                # The host is ahead of the card: copies are asked for while the layer before is still computed with.
                self._fill(chain(coming, self._streamed))
                if visit.layer not in self.resident:
                    lent = next(slot for slot in self.held if slot.layer == visit.layer)
                    self.now = max(self.now, lent.ready)
            if visit.layer is not None and visit.layer not in self.resident:
                coming.popleft()
            self.now += visit.seconds
        if lent:
            lent.free = self.now

    def _fill(self, order: Iterable[int]) -> None:
        wanted: list[int] = []
        for layer in order:
            if layer not in wanted:
                wanted.append(layer)
            if len(wanted) == self.slots:
                break
        idle = [slot for slot in self.held if slot.layer not in wanted]
        there = {slot.layer for slot in self.held}
        for layer in wanted:
            if layer not in there:
                slot = idle.pop()
                self.copied = max(self.copied, slot.free) + self.copy_s(layer)
                slot.layer, slot.ready = layer, self.copied
