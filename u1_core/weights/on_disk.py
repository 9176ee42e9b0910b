"""Layers that stay in the checkpoint's files: each is read when it is asked for, the next one while it is used.

Where there is memory to spare on the device, some of them stay there once they have come."""

from collections.abc import Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from u1_core.model.views import LayerWeights
from u1_core.weights.layout import layer_bytes, layer_slices, layer_views
from u1_core.weights.reading import read_places
from u1_core.weights.source import TensorSource


class LayersOnDisk(Sequence[LayerWeights]):
    """A tower's layers, each a fresh copy on the device that nobody keeps but as `hold` allows.

    Two layers' worth of host memory takes turns, as memory that is new to the process is slow to write to; it is let go
    after the last layer. One thread at a time.
    """

    def __init__(self, source: TensorSource, tower: str, device: str | torch.device, dtype: torch.dtype) -> None:
        self._source, self._tower, self._device, self._dtype = source, tower, device, dtype
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="u1-reading-ahead")
        self._next: tuple[int, Future[Tensor]] | None = None
        self._spare: Tensor | None = None
        self._held: dict[int, Tensor] = {}
        self._hold_bytes = 0

    def __len__(self) -> int:
        return self._source.config.layers

    @torch.inference_mode(False)  # what stays may be used outside of it
    def __getitem__(self, index: int) -> LayerWeights:
        index = range(len(self))[index]
        if index in self._held:
            flat = self._held[index]
            self._read_ahead(index)
        else:
            host = self._read_now(index)
            more = self._read_ahead(index)
            flat = torch.empty_like(host, device=self._device).copy_(host)
            self._spare = host if more else None
            if self.held_bytes + flat.nbytes <= self._hold_bytes:
                self._held[index] = flat
        return layer_views(self._source.config, self._tower, index, flat)

    @property
    def held_bytes(self) -> int:
        """Device memory of the layers that stay."""
        return sum(flat.nbytes for flat in self._held.values())

    def hold(self, n_bytes: int) -> None:
        """Layers that come stay on the device up to this much in all; those that are beyond it go."""
        self._hold_bytes = n_bytes
        while self.held_bytes > n_bytes:
            self._held.popitem()

    def rewrite(self, source: TensorSource, names: Collection[str]) -> None:
        """Read from `source` from now on, of whose tensors those of these names have changed."""
        self._source, self._next, self._spare = source, None, None
        self._held.clear()

    def _read_now(self, index: int) -> Tensor:
        """The layer's bytes, from what was read ahead if that was this layer."""
        if self._next is not None:
            (number, reading), self._next = self._next, None
            if number == index:
                return reading.result()
            self._spare = reading.result() if reading.exception() is None else None
        return self._begin(index).result()

    def _read_ahead(self, index: int) -> bool:
        """Begin to read the next layer after this one that is not on the device; whether there is one."""
        following = next((i for i in range(index + 1, len(self)) if i not in self._held), None)
        if following is not None and self._next is None:
            self._next = following, self._begin(following)
        return following is not None

    def _begin(self, index: int) -> Future[Tensor]:
        place, self._spare = self._spare, None
        return self._reader.submit(self._read, index, place)

    def _read(self, index: int, place: Tensor | None) -> Tensor:
        """Read a layer into `place` if that is there and as long as is needed, else into new memory."""
        elements = layer_bytes(self._source.config, self._tower, index, self._dtype) // self._dtype.itemsize
        if place is None or len(place) != elements:
            place = torch.empty(elements, dtype=self._dtype)
        views = layer_views(self._source.config, self._tower, index, place)
        read_places(self._source, layer_slices(self._source.config, self._tower, index, views))
        return place
