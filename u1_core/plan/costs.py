"""What the parts of a step take: a layer on each rung, a pass's ends, the update, the copies."""

from collections.abc import Mapping
from dataclasses import dataclass

from u1_core.model.stack import Keep


@dataclass(frozen=True)
class LayerCost:
    """One layer and one micro-batch, on one rung of the ladder."""

    forward_s: float
    backward_s: float
    """What is computed again included; 0 in a step without gradients."""
    kept_bytes: int
    """From forward to backward."""
    work_bytes: int
    """Beside what is kept, at the worst moment: in backward, or in forward where there is none."""


@dataclass(frozen=True)
class EndsCost:
    """Everything of a micro-batch's pass but the layers: embedders, head and loss."""

    seconds: float
    held_bytes: int
    """As long as the pass lasts: what it is given, and what the embedders keep."""
    head_kept_bytes: int
    """From the head's forward to its backward, which comes before the layers'."""
    work_bytes: int
    """Beside that, at the worst moment."""


@dataclass(frozen=True)
class UpdateCost:
    """The optimizer's step."""

    seconds: float
    state_bytes: int
    """Held on the card by the allocator; a paged state is not."""
    work_bytes: int
    gradients_stay: bool = False
    """Whether the memory of gradients is kept from one step to the next."""


NO_UPDATE = UpdateCost(0.0, 0, 0)


@dataclass(frozen=True)
class Costs:
    """All parts of a step."""

    layer: Mapping[Keep, LayerCost]
    ends: EndsCost
    update: UpdateCost
    slack_bytes: int
    """What the allocator reserves beyond what is in use: it cannot fill every gap."""


@dataclass(frozen=True)
class Bus:
    """Copies from host to card, in bytes a second; memory beyond `pinned_bytes` goes at the pageable rate."""

    pinned_rate: float
    pageable_rate: float
    pinned_bytes: int

    def seconds(self, n_bytes: int, pinned: bool) -> float:
        return n_bytes / (self.pinned_rate if pinned else self.pageable_rate)
