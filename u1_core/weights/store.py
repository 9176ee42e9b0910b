"""From a checkpoint to the towers the model's functions take: resident on a device, or read layer by layer."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from u1_core.model.config import EMBED_TOKENS, GENERATION, LM_HEAD, UNDERSTANDING, Shape, tensor_shapes
from u1_core.model.views import Generation, LayerWeights, Understanding
from u1_core.weights.arena import Arena
from u1_core.weights.gguf_file import GgufSource
from u1_core.weights.gguf_layers import BlockArena, QuantisedLayers
from u1_core.weights.host_memory import pin_limit_bytes
from u1_core.weights.layout import LayerBuffer, allocate_layer, layer_bytes, layer_slices
from u1_core.weights.on_disk import LayersOnDisk
from u1_core.weights.placement import Placement
from u1_core.weights.reading import read_places
from u1_core.weights.ring import StreamedLayers
from u1_core.weights.source import TensorSource

Device = str | torch.device
Progress = Callable[[int, int], None]
"""Called with (bytes done, bytes in all), as they are on the device."""


def load_understanding(
    source: TensorSource, device: Device, dtype: torch.dtype, resident: bool = True, progress: Progress | None = None
) -> Understanding:
    """The understanding tower. Not resident: layers come when asked for, and embed_tokens stays on the CPU.

    So does lm_head of a tower that is read from its file: who only builds prompts does not need it.
    """
    names = [name for name in tensor_shapes(source.config) if name.startswith("vision_model.")]
    loader = _Loader(source, torch.device(device), dtype, progress)
    ends = ["language_model.model.norm.weight", *names]
    head_here = resident or isinstance(source, GgufSource)
    loader.expect(UNDERSTANDING, resident, ends + [EMBED_TOKENS] * resident + [LM_HEAD] * head_here)
    return Understanding(
        layers=loader.layers(UNDERSTANDING, resident),
        norm=loader.tensor("language_model.model.norm.weight"),
        embed_tokens=loader.tensor(EMBED_TOKENS) if resident else loader.mapped(EMBED_TOKENS),
        lm_head=loader.tensor(LM_HEAD) if head_here else loader.mapped(LM_HEAD),
        vision={name: loader.tensor(name) for name in names},
    )


def load_generation(
    source: TensorSource,
    device: Device,
    dtype: torch.dtype,
    resident: bool | Placement = True,
    progress: Progress | None = None,
) -> Generation:
    """The generation tower; all but its layers is on the device.

    Its layers are on the device too, or (`resident` False) read each time they are asked for, or, with a `Placement`,
    `StreamedLayers`: some on the device, the others in page-locked host memory and on the device in turns; those of a
    GGUF file are kept and copied as blocks, and dequantised on the device.
    """
    names = [name for name in tensor_shapes(source.config) if name.startswith("fm_modules.")]
    loader = _Loader(source, torch.device(device), dtype, progress)
    loader.expect(GENERATION, bool(resident), ["language_model.model.norm_mot_gen.weight", *names])
    if isinstance(resident, Placement):
        layers = loader.placed_layers(GENERATION, resident)
    else:
        layers = loader.layers(GENERATION, resident)
    return Generation(
        layers=layers,
        norm=loader.tensor("language_model.model.norm_mot_gen.weight"),
        modules={name: loader.tensor(name) for name in names},
    )


def load_layer(source: TensorSource, tower: str, index: int, device: Device, dtype: torch.dtype) -> LayerBuffer:
    """One layer, in a buffer of its own. Every tensor is rounded to `dtype` once, on its way into its place."""
    layer = allocate_layer(source.config, tower, index, dtype, device)
    read_places(source, layer_slices(source.config, tower, index, layer.weights))
    return layer


@dataclass
class _Loader:
    """Reads tensors and layers onto a device, counting bytes."""

    source: TensorSource
    device: torch.device
    dtype: torch.dtype
    progress: Progress | None
    done_bytes: int = 0
    total_bytes: int = 0

    @cached_property
    def _shapes(self) -> dict[str, Shape]:
        return tensor_shapes(self.source.config)

    def expect(self, tower: str, resident: bool, names: Sequence[str]) -> None:
        """Say what is going to be loaded, so that progress knows the whole."""
        config = self.source.config
        self.total_bytes = sum(math.prod(self._shapes[name]) for name in names) * self.dtype.itemsize
        if resident:
            self.total_bytes += sum(layer_bytes(config, tower, i, self.dtype) for i in range(config.layers))

    def tensor(self, name: str) -> Tensor:
        tensor = torch.empty(self._shapes[name], dtype=self.dtype, device=self.device)
        self.source.read_into(name, tensor)
        self._count(tensor.nbytes)
        return tensor

    def mapped(self, name: str) -> Tensor:
        """A tensor on the CPU, of which only what is touched is read, if the file has it in our dtype."""
        return self.source.read(name).to(self.dtype)

    def layers(self, tower: str, resident: bool) -> Sequence[LayerWeights]:
        if not resident and isinstance(self.source, GgufSource):
            return QuantisedLayers(self.source, tower, self.device, self.dtype)
        if not resident:
            return LayersOnDisk(self.source, tower, self.device, self.dtype)
        return [self._resident_layer(tower, index) for index in range(self.source.config.layers)]

    def placed_layers(self, tower: str, placement: Placement) -> StreamedLayers:
        streamed = [index for index in range(self.source.config.layers) if index not in placement.resident]
        if isinstance(self.source, GgufSource):
            arena = BlockArena(self.source, tower, streamed, self.dtype, self.device)
            dequantised = sum(layer_bytes(self.source.config, tower, index, self.dtype) for index in streamed)
            self.total_bytes -= dequantised - sum(arena.layer_bytes(index) for index in streamed)
        else:
            arena = Arena(self.source.config, tower, streamed, self.dtype, self.device)
        arena.fill(self.source, self.device.type == "cuda", pin_limit_bytes(), self._count)
        resident = {index: self._resident_layer(tower, index) for index in sorted(placement.resident)}
        return StreamedLayers(arena, resident, placement.slots, self.device)

    def _resident_layer(self, tower: str, index: int) -> LayerWeights:
        buffer = load_layer(self.source, tower, index, self.device, self.dtype)
        self._count(buffer.flat.nbytes)
        return buffer.weights

    def _count(self, n_bytes: int) -> None:
        self.done_bytes += n_bytes
        if self.progress:
            self.progress(self.done_bytes, self.total_bytes)
