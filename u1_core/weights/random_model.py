"""Random weights of any config: tiny snapshots for tests, and full-size models made on a GPU for benchmarks."""

import json
import math
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from u1_core.model.config import Shape, U1Config, tensor_shapes
from u1_core.weights.store import Device
from u1_core.weights.write import SHARD_BYTES, SafetensorsWriter


class RandomWeights:
    """Stands where a `Snapshot` does, with random tensors made on `device` when they are read.

    A tensor depends on the seed and its name alone (and on the device's generator), so any part can be made apart.
    """

    def __init__(self, config: U1Config, seed: int = 0, device: Device = "cpu") -> None:
        self.config, self._seed, self._device = config, seed, device
        self._shapes = tensor_shapes(config)

    def read(self, name: str) -> Tensor:
        """One tensor in fp32: a map normal with variance 1 / inputs, a norm near 1, a bias near 0."""
        shape = self._shapes[name]
        generator = torch.Generator(self._device).manual_seed(zlib.crc32(f"{self._seed} {name}".encode()))
        normal = torch.randn(shape, generator=generator, device=self._device)
        scale, mean = _spread(name, shape)
        return normal.mul_(scale).add_(mean)

    def read_into(self, name: str, place: Tensor) -> None:
        """One tensor, rounded once to the dtype of `place`, wherever that is."""
        place.copy_(self.read(name))


def random_tensors(
    config: U1Config, seed: int = 0, dtype: torch.dtype = torch.bfloat16, device: Device = "cpu"
) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of a checkpoint, one at a time."""
    source = RandomWeights(config, seed, device)
    for name in tensor_shapes(config):
        yield name, source.read(name).to(dtype)


def write_random_snapshot(
    folder: Path,
    config: Mapping[str, Any],
    seed: int = 0,
    dtype: torch.dtype = torch.bfloat16,
    shard_bytes: int = SHARD_BYTES,
    head_width: int | None = None,
    device: Device = "cpu",
) -> None:
    """A snapshot folder: `config` as config.json, and random weights. Raises U1Error if the folder is not empty.

    `head_width` makes the head narrower than the released code's, which tiny models are the faster for; numbers are
    made on `device`, which is another generator's.
    """
    parsed = U1Config.from_dict(config)
    if head_width:
        parsed = replace(parsed, head_width=head_width)
    specs = {name: (dtype, shape) for name, shape in tensor_shapes(parsed).items()}
    with SafetensorsWriter(folder, specs, {"format": "pt"}, shard_bytes) as writer:
        (writer.folder / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
        for name, tensor in random_tensors(parsed, seed, dtype, device):
            writer.write(name, tensor.cpu())


def _spread(name: str, shape: Shape) -> tuple[float, float]:
    """Standard deviation and mean of a tensor's numbers."""
    if name.endswith(".bias"):
        return 0.02, 0.0
    if len(shape) == 1:
        return 0.1, 1.0
    return 1 / math.sqrt(math.prod(shape[1:])), 0.0
