"""Prompts' K/V held in memory: on the device, and what does not fit there in page-locked host memory.

Within each tier, what was used longest ago goes first: from the device to the host, and from the host away.
"""

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor

from u1_core.model.views import KVChunk


class Tier:
    """K/V on one device by number, up to `budget_bytes`."""

    def __init__(self, device: torch.device, budget_bytes: int, pin: bool = False) -> None:
        """`pin` takes page-locked host memory, which a GPU fetches without the host's help."""
        self.device = torch.empty(0, device=device).device  # "cuda" by its number, as tensors tell it
        self.budget_bytes, self._pin = budget_bytes, pin
        self.n_bytes = 0
        """Bytes that are held now."""
        self._held: OrderedDict[int, KVChunk] = OrderedDict()

    def get(self, number: int) -> KVChunk | None:
        """What is held under that number, which now counts as just used."""
        if number in self._held:
            self._held.move_to_end(number)
        return self._held.get(number)

    def fits(self, n_bytes: int) -> bool:
        """Whether a chunk of so many bytes can be taken without letting anything go."""
        return self.n_bytes + self._taken(n_bytes) <= self.budget_bytes

    def put(self, number: int, chunk: KVChunk) -> list[tuple[int, KVChunk]]:
        """Hold a copy here. Returns what had to go for it: itself, if it is larger than the whole tier."""
        if self._taken(chunk.n_bytes) > self.budget_bytes:
            return [(number, chunk)]
        gone = []
        while not self.fits(chunk.n_bytes):
            gone.append(self._held.popitem(last=False))
            self.n_bytes -= self._taken(gone[-1][1].n_bytes)
        self._held[number] = self._copy(chunk)
        self.n_bytes += self._taken(chunk.n_bytes)
        return gone

    def _taken(self, n_bytes: int) -> int:
        """What a chunk takes here: PyTorch rounds page-locked memory up to a power of two."""
        return 1 << (n_bytes - 1).bit_length() if self._pin else n_bytes

    def _copy(self, chunk: KVChunk) -> KVChunk:
        if chunk.k.device == self.device and not self._pin:
            return chunk
        both: Tensor = torch.empty((2, *chunk.k.shape), dtype=chunk.k.dtype, device=self.device, pin_memory=self._pin)
        both[0].copy_(chunk.k)
        both[1].copy_(chunk.v)
        return KVChunk(both[0], both[1])


class Tiers:
    """Tiers from the fastest down."""

    def __init__(self, tiers: Sequence[Tier]) -> None:
        self._tiers = list(tiers)

    @property
    def n_bytes(self) -> int:
        """Bytes that all of them hold now."""
        return sum(tier.n_bytes for tier in self._tiers)

    @property
    def budget_bytes(self) -> int:
        """Bytes that all of them may hold."""
        return sum(tier.budget_bytes for tier in self._tiers)

    def bytes_on(self, device_type: str) -> int:
        """Bytes held on this type of device ("cuda", "cpu")."""
        return sum(tier.n_bytes for tier in self._tiers if tier.device.type == device_type)

    def get(self, number: int) -> KVChunk | None:
        """What is held under that number, where it is."""
        return next((found for tier in self._tiers if (found := tier.get(number)) is not None), None)

    def fits(self, n_bytes: int) -> bool:
        """Whether one of them can take a chunk of so many bytes without letting anything go."""
        return self._with_room(n_bytes) is not None

    def device_for(self, n_bytes: int) -> torch.device:
        """Where chunks of so many bytes in all are best made: in the tier that takes them, or on the CPU."""
        tier = self._with_room(n_bytes)
        return tier.device if tier else torch.device("cpu")

    def fill(self, number: int, chunk: KVChunk) -> None:
        """Hold it in the first tier that has room, or not at all."""
        tier = self._with_room(chunk.n_bytes)
        if tier:
            tier.put(number, chunk)

    def put(self, number: int, chunk: KVChunk) -> None:
        """Hold it in the first tier; what had to go for it goes one further down, and from the last one away."""
        moving = [(number, chunk)]
        for tier in self._tiers:
            moving = [gone for each in moving for gone in tier.put(*each)]

    def _with_room(self, n_bytes: int) -> Tier | None:
        return next((tier for tier in self._tiers if tier.fits(n_bytes)), None)
