"""What a step has to do, as far as its cost depends on it; and what it holds on the card whatever the plan."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from u1_core.lora.adapter import layer_place
from u1_core.lora.plan import PlannedModule
from u1_core.model.config import GENERATION, U1Config, tensor_shapes
from u1_core.weights.layout import layer_bytes

MakeOptimizer = Callable[[Sequence[Tensor]], torch.optim.Optimizer]
"""fp32 parameters -> what updates them."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """One step: a training step's update over `micro_batches` passes, or a sampling step's single pass."""

    config: U1Config
    dtype: torch.dtype
    width: int
    height: int
    """Of the largest picture, in pixels."""
    batch: int = 1
    """Pictures in a pass."""
    branches: int = 1
    """Prefixes that each picture is seen with."""
    prefix_tokens: int
    """Of the longest prefix."""
    modules: tuple[PlannedModule, ...] = ()
    """Those with low-rank terms."""
    whole: tuple[str, ...] = ()
    """Tensors trained whole."""
    dropout: float = 0.0
    """Share of the low-rank terms' inputs that is dropped."""
    held_bytes: int = 0
    """Held on the card for this work, whatever the plan: prefix K/V, other LoRAs."""
    copied_bytes: int = 0
    """Of a layer across the bus, if that is not a layer at `dtype`: quantised blocks."""

    @property
    def picture_bytes(self) -> int:
        """A pass's pictures in fp32."""
        return self.batch * 3 * self.width * self.height * 4

    @property
    def layer_bytes(self) -> int:
        """The largest layer of the tower."""
        return max(layer_bytes(self.config, GENERATION, index, self.dtype) for index in range(self.config.layers))


@dataclass(frozen=True, kw_only=True)
class SamplingWork(Work):
    """A step of the sampler, without gradients. Its low-rank terms are somebody else's to hold."""

    @property
    def still_bytes(self) -> int:
        """On the card whatever the plan."""
        return ends_bytes(self.config, self.dtype) + self.held_bytes


@dataclass(frozen=True, kw_only=True)
class TrainingWork(Work):
    """An update: gradients of several passes, and the optimizer's step. What is trained is fp32."""

    micro_batches: int = 1
    """Passes whose gradients make up an update."""
    optimizer: str
    """What tells `make_optimizer` from others."""
    averaged: bool = False
    """Whether a running mean is held of all that is trained."""
    make_optimizer: MakeOptimizer = field(repr=False, compare=False)

    @property
    def still_bytes(self) -> int:
        """On the card whatever the plan, without the optimizer's state."""
        return ends_bytes(self.config, self.dtype) + self.held_bytes + (1 + self.averaged) * 4 * self.trained

    @property
    def trained(self) -> int:
        """Numbers that are trained."""
        return parameters(self.modules) + self._whole_parameters

    @property
    def layer_gradient_bytes(self) -> int:
        """Gradients of one layer's terms."""
        return 4 * parameters(in_layers(self.modules)) // self.config.layers

    @property
    def ends_gradient_bytes(self) -> int:
        """Gradients of all that is trained outside the layers."""
        return 4 * self.trained - self.config.layers * self.layer_gradient_bytes

    @property
    def _whole_parameters(self) -> int:
        shapes = tensor_shapes(self.config)
        return sum(math.prod(shapes[name]) for name in self.whole)


def parameters(modules: Sequence[PlannedModule]) -> int:
    return sum(module.parameters for module in modules)


def in_layers(modules: Sequence[PlannedModule]) -> list[PlannedModule]:
    """The modules that are inside layers."""
    return [module for module in modules if layer_place(module.path)[0] is not None]


def ends_bytes(config: U1Config, dtype: torch.dtype) -> int:
    """The generation tower's tensors that are in no layer."""
    names = (name for name in tensor_shapes(config) if name.startswith("fm_modules."))
    return dtype.itemsize * (config.width + sum(math.prod(tensor_shapes(config)[name]) for name in names))
