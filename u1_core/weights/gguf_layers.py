"""A tower's layers kept quantised, and dequantised where they are used each time one is asked for."""

from collections.abc import Sequence

import torch
from torch import Tensor

from u1_core.model.config import layer_tensor_shapes
from u1_core.model.views import LayerWeights
from u1_core.weights.dequantise import dequantise_into
from u1_core.weights.gguf_file import GgufSource
from u1_core.weights.layout import allocate_layer, layer_slices


class QuantisedLayers(Sequence[LayerWeights]):
    """One layer's memory beside the blocks, which stay in the mapped file and cross the bus as they are.

    After `hold` the blocks are on the device themselves, and nothing crosses the bus any more.
    """

    def __init__(self, source: GgufSource, tower: str, device: str | torch.device, dtype: torch.dtype) -> None:
        self._source, self._tower, self._device, self._dtype = source, tower, torch.device(device), dtype
        self.held = False
        self._raw: dict[str, Tensor] = {
            name: source.raw(name)
            for index in range(source.config.layers)
            for name, _ in layer_tensor_shapes(source.config, tower, index)
        }

    def __len__(self) -> int:
        return self._source.config.layers

    def __getitem__(self, index: int) -> LayerWeights:
        index, config = range(len(self))[index], self._source.config
        layer = allocate_layer(config, self._tower, index, self._dtype, self._device)
        for name, place in layer_slices(config, self._tower, index, layer.weights):
            dequantise_into(place, self._raw[name], self._source.tensors[name].type)
        return layer.weights

    @property
    def n_bytes(self) -> int:
        """Bytes of the tower's blocks: what `hold` takes on the device."""
        return sum(raw.nbytes for raw in self._raw.values())

    def hold(self) -> None:
        """Copy the blocks to the device and keep them there."""
        self._raw = {name: raw.to(self._device, copy=True) for name, raw in self._raw.items()}
        self.held = True
