"""Layers that do not all fit on the device: some stay there, the others take turns in a few slots."""

import weakref
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

import torch

from u1_core.model.views import LayerWeights
from u1_core.weights.arena import Arena
from u1_core.weights.copies import Copies, CudaCopies, PlainCopies, Slot
from u1_core.weights.layout import layer_slices
from u1_core.weights.reading import read_places
from u1_core.weights.source import TensorSource


class StreamedLayers(Sequence[LayerWeights]):
    """A tower's layers, by number, in any order. **A layer is valid until another one is asked for.**

    While one is being computed with, the slots fill with those that come next: as `expect` was told, and after that
    upwards from the last one, beginning again at layer 0. Asking in another order is slower, not wrong. One thread at
    a time, as the session's lease has it.
    """

    def __init__(
        self,
        arena: Arena,
        resident: Mapping[int, LayerWeights],
        slots: int,
        device: torch.device,
        copies: Callable[[Sequence[Slot]], Copies] | None = None,
    ) -> None:
        """Layers in `resident` are on the device for good; the others, from `arena`, are streamed. The slots' memory
        is taken now, once. `copies` makes what moves the bytes; by default it is what the device asks for.
        """
        self.resident = frozenset(resident)
        self._streamed = [index for index in range(arena.config.layers) if index not in resident]
        self._arena, self._resident = arena, dict(resident)
        slot_bytes = max((arena.layer_bytes(index) for index in self._streamed), default=0)
        elements = slot_bytes // arena.dtype.itemsize
        self._slots = [Slot(torch.empty(elements, dtype=arena.dtype, device=device)) for _ in range(slots)]
        if copies:
            self._copies = copies(self._slots)
        else:
            self._copies = CudaCopies(device, self._slots) if device.type == "cuda" else PlainCopies()
        # Before the memory goes, by `close` or with the last reference, nothing may be on its way from or into it.
        self._finish = weakref.finalize(self, self._copies.close)
        self._order: deque[int] = deque()
        self._current: int | None = None
        self._lent: Slot | None = None
        self._weights: LayerWeights | None = None

    def __len__(self) -> int:
        return self._arena.config.layers

    def __getitem__(self, index: int) -> LayerWeights:
        index = range(len(self))[index]
        if index != self._current or (self._lent is not None and self._lent.layer != index):
            self._move_to(index)
        if self._lent is not None:
            self._copies.wait(self._lent)
        return self._weights

    @property
    def slot_bytes(self) -> int:
        """Device memory of the slots together."""
        return sum(slot.flat.nbytes for slot in self._slots)

    @property
    def pinned(self) -> frozenset[int]:
        """The streamed layers that are page-locked."""
        return self._arena.pinned & set(self._streamed)

    def expect(self, order: Sequence[int]) -> None:
        """The layers are going to be asked for in this order. A number that follows itself may be left out."""
        self._order = deque(order)

    def rewrite(self, source: TensorSource, names: Collection[str]) -> None:
        """Read the tensors of these names anew, in host memory and on the device; what is in the slots is let go."""
        self._copies.close()
        if self._lent is not None:
            self._copies.release(self._lent)
        self._lent = self._weights = self._current = None
        for slot in self._slots:
            slot.layer = None
        self._arena.rewrite(source, names)
        layers = (layer_slices(self._arena.config, self._arena.tower, *each) for each in self._resident.items())
        read_places(source, (each for layer in layers for each in layer if each[0] in names))

    def close(self) -> None:
        """Give back the slots and the host memory. The layers cannot be asked for any more."""
        self._finish()
        self._slots, self._lent, self._weights, self._current = [], None, None, None
        self._arena.close()

    def _move_to(self, index: int) -> None:
        if self._lent is not None:
            self._copies.release(self._lent)
        self._lent = self._current = None  # and so it stays if bringing the layer in goes wrong
        if index in self._order:
            while self._order.popleft() != index:
                pass
        else:
            self._order.clear()
        self._fill_slots(index)
        if index in self._resident:
            self._weights = self._resident[index]
        else:
            self._lent = next(slot for slot in self._slots if slot.layer == index)
            self._copies.wait(self._lent)
            self._weights = self._arena.weights(index, self._lent.flat)
        self._current = index

    def _fill_slots(self, index: int) -> None:
        """Begin to bring in this layer and those that come after it, as many as there are slots."""
        wanted: list[int] = []
        for layer in self._from(index):
            if layer not in self._resident and layer not in wanted:
                wanted.append(layer)
            if len(wanted) == len(self._slots):
                break
        there = {slot.layer for slot in self._slots}
        idle = [slot for slot in self._slots if slot.layer not in wanted]
        for layer in wanted:
            if layer not in there:
                slot = idle.pop()
                slot.layer = None
                self._copies.start(slot, self._arena.layer(layer), layer in self._arena.pinned)
                slot.layer = layer

    def _from(self, index: int) -> Iterator[int]:
        """This layer, those that were announced to come after it, and a whole round from there."""
        yield index
        yield from self._order
        last = self._order[-1] if self._order else index
        for step in range(1, len(self)):
            yield (last + step) % len(self)
