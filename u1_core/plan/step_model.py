"""From what the parts of a step take to what a whole step takes, for any plan."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

from u1_core.model.stack import Keep
from u1_core.plan.costs import Bus, Costs
from u1_core.plan.plan import Cost
from u1_core.plan.timeline import Visit, step_seconds
from u1_core.plan.work import TrainingWork, Work
from u1_core.weights.placement import Placement

SLACK_OF_KEPT = 0.03
"""Of what is kept of all layers, how much more is reserved: gaps between tensors of several sizes."""


@dataclass(frozen=True)
class StepModel:
    """A step whose cost can be told for any plan: `predict` is what a `Plan` asks."""

    layers: int
    layer_bytes: int
    """On the card."""
    copied_bytes: int
    """Of a layer across the bus, and in a slot: fewer than `layer_bytes` if they are quantised."""
    micro_batches: int
    """Passes that make up the step."""
    fixed_bytes: int
    """On the card whatever the plan: the tower's other tensors, what is trained, prefix K/V, running means."""
    layer_gradient_bytes: int
    ends_gradient_bytes: int
    trains: bool
    costs: Costs
    bus: Bus
    host_free_bytes: int
    """What streamed layers may take of the host's memory."""

    @classmethod
    def of(cls, work: Work, costs: Costs, bus: Bus, host_free_bytes: int, other_bytes: int = 0) -> "StepModel":
        """`other_bytes` are held on the card by something else than this work and its tower, and stay."""
        training = isinstance(work, TrainingWork)
        return cls(
            layers=work.config.layers,
            layer_bytes=work.layer_bytes,
            copied_bytes=work.copied_bytes or work.layer_bytes,
            micro_batches=work.micro_batches if training else 1,
            fixed_bytes=work.still_bytes + other_bytes,
            layer_gradient_bytes=work.layer_gradient_bytes if training else 0,
            ends_gradient_bytes=work.ends_gradient_bytes if training else 0,
            trains=training,
            costs=costs,
            bus=bus,
            host_free_bytes=host_free_bytes,
        )

    def predict(self, placement: Placement, kept: tuple[Keep, ...], together: int) -> Cost:
        return Cost(
            peak_bytes=self.peak_bytes(placement, kept, together),
            seconds=self.seconds(placement, kept, together),
            host_lacks_bytes=max(0, self.host_bytes(placement) - self.host_free_bytes),
        )

    def seconds(self, placement: Placement, kept: tuple[Keep, ...], together: int) -> float:
        streamed = [index for index in range(self.layers) if index not in placement.resident]
        pinned = set(streamed[: self.bus.pinned_bytes // self.copied_bytes])
        return step_seconds(
            list(self._visits(kept, together)),
            placement.resident,
            placement.slots,
            lambda index: self.bus.seconds(self.copied_bytes, index in pinned),
        )

    def arithmetic_s(self, kept: tuple[Keep, ...], together: int) -> float:
        """Seconds of a step that never waits for a layer."""
        return sum(visit.seconds for visit in self._visits(kept, together))

    def peak_bytes(self, placement: Placement, kept: tuple[Keep, ...], together: int) -> int:
        return sum(self.parts(placement, kept, together))

    def parts(self, placement: Placement, kept: tuple[Keep, ...], together: int) -> "Parts":
        """What the card's memory is taken by at the worst moment."""
        worst = max(self._moments(kept, together), key=sum)
        slack = self.costs.slack_bytes + int(SLACK_OF_KEPT * worst[0])
        return Parts(self.weights_bytes(placement), self.fixed_bytes, self.costs.update.state_bytes, *worst, slack)

    def weights_bytes(self, placement: Placement) -> int:
        """Resident layers, slots, and the one layer in use that quantised slots are dequantised to."""
        resident = len(placement.resident)
        slots = placement.slots if resident < self.layers else 0
        dequantised = self.layer_bytes if slots and self.copied_bytes < self.layer_bytes else 0
        return resident * self.layer_bytes + slots * self.copied_bytes + dequantised

    def host_bytes(self, placement: Placement) -> int:
        """The streamed layers in host memory."""
        return (self.layers - len(placement.resident)) * self.copied_bytes

    def _groups(self, together: int) -> list[int]:
        """Micro-batches that go together, group by group."""
        full, rest = divmod(self.micro_batches, together)
        return [together] * full + [rest] * bool(rest)

    def _visits(self, kept: tuple[Keep, ...], together: int) -> Iterator[Visit]:
        for group in self._groups(together):
            yield from self._pass(kept, group)
        yield Visit(None, self.costs.update.seconds)

    def _pass(self, kept: tuple[Keep, ...], group: int) -> Iterator[Visit]:
        costs = [self.costs.layer[keep] for keep in kept]
        for index, cost in enumerate(costs):
            yield Visit(index, group * cost.forward_s)
        yield Visit(None, group * self.costs.ends.seconds)
        if self.trains:
            for index in reversed(range(self.layers)):
                yield Visit(index, group * costs[index].backward_s)

    def _moments(self, kept: tuple[Keep, ...], together: int) -> Iterator[tuple[int, int, int]]:
        """(kept, gradients, worked with) in bytes: at the head, at each layer's backward, at the update."""
        ends, costs = self.costs.ends, [self.costs.layer[keep] for keep in kept]
        if not self.trains:
            yield 0, 0, ends.held_bytes + max(ends.work_bytes, costs[0].work_bytes)
            return
        group = max(self._groups(together))
        gradients = self.layers * self.layer_gradient_bytes + self.ends_gradient_bytes
        before = gradients if group < self.micro_batches or self.costs.update.gradients_stay else 0
        held = [group * (ends.held_bytes + total) for total in accumulate(cost.kept_bytes for cost in costs)]
        yield held[-1] + group * ends.head_kept_bytes, before, ends.work_bytes
        for index, cost in enumerate(costs):
            done = (self.layers - index) * self.layer_gradient_bytes + self.ends_gradient_bytes
            yield held[index], max(before, done), cost.work_bytes
        yield 0, gradients, self.costs.update.work_bytes


class Parts(NamedTuple):
    """Bytes of a card's memory, by what takes them."""

    weights: int
    """Layers that stay, and slots."""
    fixed: int
    """What is there whatever the plan."""
    optimizer: int
    kept: int
    """From forward to backward."""
    gradients: int
    work: int
    """Activations of the moment."""
    slack: int
    """Reserved and not in use."""
