"""A tower's layers kept quantised, and dequantised on the device they are used on each time one is asked for."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from u1_core.model.config import layer_tensor_shapes
from u1_core.model.views import LayerWeights
from u1_core.weights.arena import Arena
from u1_core.weights.dequantise import dequantise_into
from u1_core.weights.gguf_file import GgufSource
from u1_core.weights.layout import ALIGNMENT_BYTES, allocate_layer, layer_slices
from u1_core.weights.source import TensorSource


class QuantisedLayers(Sequence[LayerWeights]):
    """One layer's memory beside the blocks, which stay in the mapped file and cross the bus as they are.

    After `hold` the blocks are on the device themselves, and nothing crosses the bus any more.
    """

    def __init__(self, source: GgufSource, tower: str, device: str | torch.device, dtype: torch.dtype) -> None:
        self._source, self._tower, self._device, self._dtype = source, tower, torch.device(device), dtype
        self.held = False
        self._raw: dict[str, Tensor] = {}
        for index in range(source.config.layers):
            self._raw |= layer_blocks(source, tower, index)

    def __len__(self) -> int:
        return self._source.config.layers

    def __getitem__(self, index: int) -> LayerWeights:
        index = range(len(self))[index]
        return dequantised_layer(self._source, self._tower, index, self._raw, self._dtype, self._device)

    @property
    def n_bytes(self) -> int:
        """Bytes of the tower's blocks: what `hold` takes on the device."""
        return sum(raw.nbytes for raw in self._raw.values())

    def hold(self) -> None:
        """Copy the blocks to the device and keep them there."""
        self._raw = {name: raw.to(self._device, copy=True) for name, raw in self._raw.items()}
        self.held = True


class BlockArena(Arena):
    """Layers in host memory as their file has them, to be copied to a device as they are and dequantised there."""

    def __init__(
        self,
        source: GgufSource,
        tower: str,
        layers: Sequence[int],
        dtype: torch.dtype,
        device: torch.device | None = None,
    ) -> None:
        """`dtype` is what they are dequantised to; the arena's own is bytes."""
        self._source, self._weights_dtype = source, dtype
        super().__init__(source.config, tower, layers, torch.uint8, device)

    def layer_bytes(self, index: int) -> int:
        """Bytes of one layer's blocks, each tensor's padded for the next."""
        return sum(_padded(len(raw)) for raw in layer_blocks(self._source, self.tower, index).values())

    def weights(self, index: int, flat: Tensor) -> LayerWeights:
        """A layer dequantised from a copy of its blocks in `flat`, in memory of its own on the same device."""
        pieces = self._pieces(index, flat)
        return dequantised_layer(self._source, self.tower, index, pieces, self._weights_dtype, flat.device)

    def _read(self, source: TensorSource, index: int, flat: Tensor) -> None:
        blocks = layer_blocks(self._source, self.tower, index)
        for name, piece in self._pieces(index, flat).items():
            piece.copy_(blocks[name])

    def _pieces(self, index: int, flat: Tensor) -> dict[str, Tensor]:
        pieces, start = {}, 0
        for name, raw in layer_blocks(self._source, self.tower, index).items():
            pieces[name] = flat[start : start + len(raw)]
            start += _padded(len(raw))
        return pieces


def layer_blocks(source: GgufSource, tower: str, index: int) -> dict[str, Tensor]:
    """The blocks of each of a layer's tensors, in the mapped file."""
    return {name: source.raw(name) for name, _ in layer_tensor_shapes(source.config, tower, index)}


def largest_layer_bytes(source: GgufSource, tower: str, dtype: torch.dtype) -> int:
    """Bytes of the blocks of a tower's largest layer, as a `BlockArena` lays them out."""
    arena = BlockArena(source, tower, (), dtype)
    return max(arena.layer_bytes(index) for index in range(source.config.layers))


def dequantised_layer(
    source: GgufSource,
    tower: str,
    index: int,
    blocks: Mapping[str, Tensor],
    dtype: torch.dtype,
    device: str | torch.device,
) -> LayerWeights:
    """A layer from its tensors' blocks, wherever these are, in memory of its own on `device`."""
    layer = allocate_layer(source.config, tower, index, dtype, device)
    for name, place in layer_slices(source.config, tower, index, layer.weights):
        dequantise_into(place, blocks[name], source.tensors[name].type)
    return layer.weights


def _padded(n_bytes: int) -> int:
    return -(-n_bytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
