"""Layers that stay in the checkpoint's files: each is read when it is asked for, the next one while it is used.

Where there is memory to spare on the device, some of them stay there once they have come."""

from collections.abc import Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch

from u1_core.model.views import LayerWeights
from u1_core.weights.layout import LayerBuffer, allocate_layer, layer_slices
from u1_core.weights.reading import read_places
from u1_core.weights.source import TensorSource


class LayersOnDisk(Sequence[LayerWeights]):
    """A tower's layers, each read straight into memory of its own on the device that nobody keeps but as `hold` allows.

    Beside those, two are there at a time if the one in use is let go before another is asked for: it, and the next.
    After the last layer none is read ahead. One thread at a time.
    """

    def __init__(self, source: TensorSource, tower: str, device: str | torch.device, dtype: torch.dtype) -> None:
        self._source, self._tower, self._device, self._dtype = source, tower, torch.device(device), dtype
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="u1-reading-ahead")
        self._next: tuple[int, Future[LayerBuffer]] | None = None
        self._held: dict[int, LayerBuffer] = {}
        self._hold_bytes = 0

    def __len__(self) -> int:
        return self._source.config.layers

    def __getitem__(self, index: int) -> LayerWeights:
        index = range(len(self))[index]
        layer = self._held.get(index) or self._read_now(index)
        if index not in self._held and self.held_bytes + layer.flat.nbytes <= self._hold_bytes:
            self._held[index] = layer
        self._read_ahead(index)
        return layer.weights

    @property
    def held_bytes(self) -> int:
        """Device memory of the layers that stay."""
        return sum(layer.flat.nbytes for layer in self._held.values())

    def hold(self, n_bytes: int) -> None:
        """Layers that come stay on the device up to this much in all; those that are beyond it go."""
        self._hold_bytes = n_bytes
        while self.held_bytes > n_bytes:
            self._held.popitem()

    def rewrite(self, source: TensorSource, names: Collection[str]) -> None:
        """Read from `source` from now on, of whose tensors those of these names have changed."""
        self._source, self._next = source, None
        self._held.clear()

    def _read_now(self, index: int) -> LayerBuffer:
        """The layer, from what was read ahead if that was this one."""
        ahead, self._next = self._next, None
        return (ahead[1] if ahead and ahead[0] == index else self._begin(index)).result()

    def _read_ahead(self, index: int) -> None:
        """Begin to read the next layer after this one that is not on the device, if there is one."""
        following = next((i for i in range(index + 1, len(self)) if i not in self._held), None)
        if following is not None and self._next is None:
            self._next = following, self._begin(following)

    def _begin(self, index: int) -> Future[LayerBuffer]:
        # Memory belongs to the stream that it is taken on: this must be the one that computes with the layer.
        stream = torch.cuda.current_stream(self._device) if self._device.type == "cuda" else None
        return self._reader.submit(self._read, self._source, index, stream)

    def _read(self, source: TensorSource, index: int, stream: torch.cuda.Stream | None) -> LayerBuffer:
        with torch.cuda.stream(stream):
            layer = allocate_layer(source.config, self._tower, index, self._dtype, self._device)
            read_places(source, layer_slices(source.config, self._tower, index, layer.weights))
        return layer
