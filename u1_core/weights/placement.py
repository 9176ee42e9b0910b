"""Where a tower's layers are: which stay on the device, and how many slots the others pass through."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Placement:
    """Layers by number. Those not in `resident` are kept in host memory and streamed through `slots` slots."""

    resident: frozenset[int]
    slots: int = 3

    @classmethod
    def spread(cls, layers: int, resident: int, slots: int = 3) -> "Placement":
        """`resident` of a tower's `layers` stay, evenly spread, so that every copy has time before it is due."""
        chosen = (i for i in range(layers) if (i + 1) * resident // layers > i * resident // layers)
        return cls(frozenset(chosen), slots)
