"""A LoRA in memory: low-rank terms by module, tensors trained whole, and a strength that may change at any time."""

import hashlib
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from u1_core.errors import U1Error
from u1_core.lora.kinds import KIND_NAMES, KINDS, kinds_in_words
from u1_core.lora.plan import FINAL_NORM, LoraPlan
from u1_core.model.config import (
    EMBED_TOKENS,
    FM_HEAD,
    GENERATION,
    LAYERS,
    LM_HEAD,
    UNDERSTANDING,
    U1Config,
    tensor_shapes,
)
from u1_core.model.linear import LowRank, TowerTerms

_LAYER_MODULE = re.compile(
    re.escape(LAYERS) + r"\.(?P<layer>\d+)\.(?P<block>self_attn\.[qkvo]_proj|mlp)(?:_mot_gen)?(?P<rest>\..+)?"
)
HEAD_LINEARS = (f"{FM_HEAD}.0", f"{FM_HEAD}.2")


@dataclass
class LoraModule:
    """The terms of one module: down (rank, in_features), up (out_features, rank).

    A convolution's in_features are its input channels times the kernel's places, in the order of its flattened weight.
    """

    down: Tensor
    up: Tensor
    alpha: float
    kernel: tuple[int, ...] = ()
    """A convolution's (height, width); files shape its terms by it."""

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    @property
    def scale(self) -> float:
        """alpha / rank: what the product up @ down is multiplied by at strength 1."""
        return self.alpha / self.rank

    def delta(self) -> Tensor:
        """alpha / rank * up @ down, in fp32: (out_features, in_features)."""
        return (self.up.float() @ self.down.float()).mul_(self.scale)


@dataclass
class Adapter:
    """Low-rank terms by module path, with full tensors by checkpoint name beside them.

    A full tensor stands for what its base tensor became in training: it is applied as base + strength * (full - base).
    """

    modules: dict[str, LoraModule]
    full: dict[str, Tensor] = field(default_factory=dict)
    strength: float = 1.0
    dropout: float = 0.0
    """Share of each module's inputs that training zeroes; see `tower_terms`."""
    kinds: frozenset[str] = KINDS
    """The kinds of model it may have been trained for: one where that is known."""
    kind_reason: str = ""
    """How `kinds` is known, for messages."""
    name: str = "LoRA"
    """Where it came from, for messages."""
    full_source: Path | None = None
    """The file that the full tensors are from."""

    @classmethod
    def create(cls, plan: LoraPlan, seed: int, device: str | torch.device = "cpu") -> "Adapter":
        """Terms to be trained, fp32: down is Kaiming-uniform with a = sqrt(5), up is zero, so that nothing changes yet.

        Each module draws from its own generator on the CPU, seeded by (seed, path): neither the device nor what else
        is in the plan matters.
        """
        modules = {}
        for module in plan.modules:
            generator = torch.Generator().manual_seed(_seed_of(seed, module.path))
            # Kaiming-uniform with a = sqrt(5) is uniform within ±sqrt(6 / ((1 + 5) * fan_in)).
            bound = math.sqrt(1.0 / module.in_features)
            down = torch.empty(module.rank, module.in_features).uniform_(-bound, bound, generator=generator)
            up = torch.zeros(module.out_features, module.rank, device=device)
            modules[module.path] = LoraModule(down.to(device).requires_grad_(), up.requires_grad_(), module.alpha)
        return cls(modules, dropout=plan.dropout, kinds=frozenset({plan.kind}), kind_reason="it was made for one")

    def parameters(self) -> list[Tensor]:
        """down and up of every module, in order."""
        return [tensor for module in self.modules.values() for tensor in (module.down, module.up)]

    def to(self, device: str | torch.device, dtype: torch.dtype | None = None) -> "Adapter":
        """A copy elsewhere or in another dtype, which hands gradients back. Full tensors keep their dtype."""
        modules = {
            path: replace(module, down=module.down.to(device, dtype), up=module.up.to(device, dtype))
            for path, module in self.modules.items()
        }
        return replace(self, modules=modules, full={name: tensor.to(device) for name, tensor in self.full.items()})

    def touches(self, tower: str) -> bool:
        """Whether anything of `tower` changes. If UNDERSTANDING does, prefixes built without it are not valid."""
        return any(tower_of(name) == tower for name in (*self.modules, *self.full))

    def check(self, config: U1Config, live: bool = True) -> None:
        """Raise U1Error unless every module and full tensor has its place in a model of this config.

        `live` asks for more: that they can be applied beside the base. What cannot can still be merged into it.
        """
        if config.kind not in self.kinds:
            raise U1Error(
                f"{self.name}: this LoRA is for {kinds_in_words(self.kinds)} ({self.kind_reason}) and the model is "
                f"{KIND_NAMES[config.kind]}; their weights were trained apart, so it cannot be used on it"
            )
        if problems := _misfits(config, self):
            shown = "; ".join(problems[:3]) + (f"; and {len(problems) - 3} more" if len(problems) > 3 else "")
            raise U1Error(f"{self.name}: this LoRA does not fit the {KIND_NAMES[config.kind]} model: {shown}")
        if live:
            self.check_live()

    def check_live(self) -> None:
        """Raise U1Error if something in it can only be merged into the weights, not applied beside them."""
        unreachable = [path for path in self.modules if not _live_module(path)]
        unreachable += [name for name in self.full if not _live_full(name)]
        if unreachable:
            raise U1Error(
                f"{self.name}: {unreachable[0]} cannot be changed beside the base model ({len(unreachable)} such "
                "in all); write a merged model with `u1 lora merge` and use that"
            )


def same_adapters(ours: Sequence[Adapter], theirs: Sequence[Adapter]) -> bool:
    """Whether these are the same tensors at the same strengths, in the same order; contents are not looked at."""
    return [_identity(adapter) for adapter in ours] == [_identity(adapter) for adapter in theirs]


def tower_terms(config: U1Config, adapters: Sequence[Adapter], tower: str, step_seed: int | None = None) -> TowerTerms:
    """The low-rank terms of one tower from several checked adapters, each at its present strength.

    An adapter at strength 0 adds no terms. Modules that take none are left to `with_full_tensors`. With `step_seed`,
    inputs are dropped as each adapter's `dropout` says, in every module from its own seed; without it nothing is
    dropped.
    """
    layers: list[dict[str, tuple[LowRank, ...]]] = [{} for _ in range(config.layers)]
    modules: dict[str, tuple[LowRank, ...]] = {}
    for index, adapter in enumerate(adapters):
        if adapter.strength == 0:
            continue
        for path, module in adapter.modules.items():
            if tower_of(path) != tower or not takes_terms(path):
                continue
            term = LowRank(module.down, module.up, adapter.strength * module.scale)
            if adapter.dropout and step_seed is not None:
                term = replace(term, dropout=adapter.dropout, seed=_seed_of(step_seed, index, path))
            layer, local = layer_place(path)
            place = modules if layer is None else layers[layer]
            place[local] = (*place.get(local, ()), term)
    return TowerTerms(layers, modules)


@cache
def takes_terms(path: str) -> bool:
    """Whether the model adds this module's term to what its weight makes of the activations, as it does in its layers
    and in U1's head. For the small modules around them the change is added to the weight itself."""
    return layer_place(path)[0] is not None or path in HEAD_LINEARS


@cache
def layer_place(path: str) -> tuple[int | None, str]:
    """(layer, name inside it without the tower's suffix); (None, path) for a module outside the layers.

    "…layers.3.mlp_mot_gen.gate_proj" -> (3, "mlp.gate_proj"): the inverse of `module_name`.
    """
    found = _LAYER_MODULE.fullmatch(path)
    if not found:
        return None, path
    return int(found["layer"]), found["block"] + (found["rest"] or "")


def tower_of(name: str) -> str:
    """The tower that a module or tensor belongs to: GENERATION or UNDERSTANDING."""
    return GENERATION if GENERATION in name or name.startswith("fm_modules.") else UNDERSTANDING


def _identity(adapter: Adapter) -> tuple:
    modules = [(path, id(module.down), id(module.up), module.alpha) for path, module in adapter.modules.items()]
    return adapter.strength, modules, [(name, id(tensor)) for name, tensor in adapter.full.items()]


def _misfits(config: U1Config, adapter: Adapter) -> list[str]:
    shapes = tensor_shapes(config)
    problems = []
    for path, module in adapter.modules.items():
        here = (module.up.shape[0], module.down.shape[1])
        weight = shapes.get(f"{path}.weight", ())
        if len(weight) < 2 or f"{path}.weight" in (EMBED_TOKENS, LM_HEAD):
            problems.append(f"the model has no linear module {path}")
            continue
        there = (weight[0], math.prod(weight[1:]))
        if here != there:
            problems.append(f"{path} is {here[0]} x {here[1]}, in the model {there[0]} x {there[1]}")
        elif module.kernel and module.kernel != weight[2:]:
            problems.append(f"{path} has a kernel of {module.kernel}, in the model {weight[2:]}")
    for name, tensor in adapter.full.items():
        if name not in shapes:
            problems.append(f"the model has no tensor {name}")
        elif tuple(tensor.shape) != shapes[name]:
            problems.append(f"{name} is {tuple(tensor.shape)}, in the model {shapes[name]}")
    return problems


def _live_module(path: str) -> bool:
    return layer_place(path)[0] is not None or path.startswith("fm_modules.")


def _live_full(name: str) -> bool:
    return name.startswith("fm_modules.") or name == FINAL_NORM


def _seed_of(*parts: int | str) -> int:
    """A 63-bit seed that depends on every part and on nothing else, in any process."""
    digest = hashlib.blake2b("|".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
