"""Tensors trained whole folded into the LoRA beside them, so that one file carries (nearly) all that a run learned.

A weight's change becomes a low-rank term by a truncated SVD, the best approximation of that rank; what is cut off is
the error. Convolutions are folded as their flattened matrices. A bias has no place in a LoRA, except where something in
its module's input never changes:

- the last cosine of the embedders' sinusoid is 1 to the last digit of fp32 for every t and noise scale, so the change
  of the first layer's bias goes into that column of its weight;
- what the embedders and the vision embedding add up to is the generation tower's input, so their last biases are one
  vector, and some direction w of the timestep embedder's inner activations s(t) has w · s(t) = 1 for all t, nearly: the
  vector times w is a term of rank 1 of its second layer.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from u1_core.errors import U1Error
from u1_core.lora.adapter import Adapter, LoraModule
from u1_core.model.config import NOISE_SCALE_EMBEDDER, SINUSOID_DIM, TIMESTEP_EMBEDDER, VISION_GEN
from u1_core.model.embedders import sinusoid

CONSTANT_INPUT = SINUSOID_DIM // 2 - 1
"""The last of the cosines: its frequency is about 1e-4, and cos(1e-4) rounds to 1 in fp32."""

_WITH_CONSTANT_INPUT = tuple(f"{embedder}.mlp.0" for embedder in (TIMESTEP_EMBEDDER, NOISE_SCALE_EMBEDDER))
_INNER, _OUTER = f"{TIMESTEP_EMBEDDER}.mlp.0", f"{TIMESTEP_EMBEDDER}.mlp.2"
_ADDED_UP = (f"{_OUTER}.bias", f"{NOISE_SCALE_EMBEDDER}.mlp.2.bias", f"{VISION_GEN}.dense_embedding.bias")
"""Biases whose sum is a part of the generation tower's input."""

T_GRID = 257
"""Timesteps from 0 to 1 at which a direction is to be constant."""


@dataclass(frozen=True)
class Folded:
    """What became of one tensor that was trained whole. Changes are Frobenius norms of trained - base, in fp32."""

    name: str
    change: float
    error: float
    """Share of the change that is lost: 0 is nothing, 1 is all of it."""
    rank: int = 0
    """Of the term that carries it; 0 if there is none."""
    reason: str = ""
    """Why it could not be folded, or how it was if not by an SVD of its own."""


@torch.no_grad()
def fold_full(
    adapter: Adapter,
    read_base: Callable[[str], Tensor],
    rank: int,
    convolutions: bool = True,
    device: str | torch.device = "cpu",
) -> tuple[Adapter, list[Folded]]:
    """An adapter of low-rank terms only, and what became of each full tensor.

    `read_base` gives the base model's tensor by checkpoint name. A module that has both a term and a trained weight
    gets one new term for their sum; its error is the sum's. Without `convolutions` these are left out, for programs
    that take linear terms only. SVDs are computed on `device`. Raises U1Error if there is nothing to fold.
    """
    if rank < 1:
        raise U1Error(f"rank {rank}: expected a whole number, 1 or more")
    if not adapter.full:
        raise U1Error(f"{adapter.name}: has no tensors that were trained whole, so there is nothing to fold")
    changes = {name: full.float() - read_base(name).float() for name, full in adapter.full.items()}
    added_up = {name: changes.pop(name) for name in _ADDED_UP if name in changes and rank > 1}
    modules, folded = dict(adapter.modules), []
    for name, change in changes.items():
        if change.dim() < 2:
            folded.append(_vector(name, changes))
            continue
        path = name.removesuffix(".weight")
        if change.dim() == 4 and not convolutions:
            folded.append(_left_out(name, change, "a convolution, and only linear terms are wanted"))
            continue
        matrix = change.flatten(1).to(device)
        if _takes_bias(path, changes):
            matrix[:, CONSTANT_INPUT] += changes[f"{path}.bias"].to(device)
        if path in modules:
            matrix += modules[path].delta().to(device)
        down, up, error = truncated_svd(matrix, rank - (path == _OUTER and bool(added_up)))
        if len(down):
            modules[path] = LoraModule(down.cpu(), up.cpu(), float(len(down)), tuple(change.shape[2:]))
        folded.append(Folded(name, matrix.norm().item(), error, len(down)))
    if added_up:
        direction, miss = constant_direction(_inner_activations(modules, read_base))
        vector = sum(added_up.values())
        if vector.any():
            modules[_OUTER] = _with_constant(modules.get(_OUTER), vector, direction)
        reason = f"in {_OUTER}.weight, by a direction of its input that is always 1"
        folded += [Folded(name, change.norm().item(), miss, reason=reason) for name, change in added_up.items()]
    folded.sort(key=lambda one: list(adapter.full).index(one.name))
    return replace(adapter, modules=modules, full={}, full_source=None), folded


def truncated_svd(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor, float]:
    """The best approximation up @ down of that rank, or of the matrix's own where that is less: down (r, in), up
    (out, r), and the relative error that it leaves, |matrix - up @ down| / |matrix| (0 for a matrix of zeros).

    Singular values below fp32's resolution of the largest are taken for zeros.
    """
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    real = int((s > s[0] * torch.finfo(s.dtype).eps).sum())
    kept = min(rank, real)
    root = s[:kept].sqrt()
    tail, whole = (values.double().square().sum().item() for values in (s[kept:], s))
    return root[:, None] * vh[:kept], u[:, :kept] * root, math.sqrt(tail / whole) if whole else 0.0


def _takes_bias(path: str, changes: Mapping[str, Tensor]) -> bool:
    return path in _WITH_CONSTANT_INPUT and f"{path}.bias" in changes


def _vector(name: str, changes: Mapping[str, Tensor]) -> Folded:
    """What becomes of a bias or a norm."""
    path = name.removesuffix(".bias")
    if _takes_bias(path, changes) and f"{path}.weight" in changes:
        reason = f"in {path}.weight, by an input that is always 1"
        return Folded(name, changes[name].norm().item(), 0.0, reason=reason)
    what = "a bias" if name.endswith(".bias") else "a norm"
    return _left_out(name, changes[name], f"{what}, which a LoRA cannot carry")


def constant_direction(inputs: Tensor) -> tuple[Tensor, float]:
    """The shortest w (features,) for which inputs (N, features) @ w is 1 as nearly as can be, and its largest miss."""
    inputs = inputs.double()
    direction = torch.linalg.pinv(inputs, rtol=1e-7) @ torch.ones(len(inputs), dtype=torch.float64)
    direction = direction.float()
    return direction, (inputs @ direction.double() - 1).abs().max().item()


def _inner_activations(modules: Mapping[str, LoraModule], read_base: Callable[[str], Tensor]) -> Tensor:
    """The timestep embedder's inner activations over all t, (T_GRID, width), with the folded terms in effect."""
    weight = read_base(f"{_INNER}.weight").float()
    if _INNER in modules:
        weight = weight + modules[_INNER].delta()
    return F.silu(F.linear(sinusoid(torch.linspace(0, 1, T_GRID)), weight, read_base(f"{_INNER}.bias").float()))


def _with_constant(module: LoraModule | None, vector: Tensor, direction: Tensor) -> LoraModule:
    """The module's term and one of rank 1 that adds `vector` wherever the input's product with `direction` is 1."""
    root = (vector.norm() / direction.norm()).sqrt()
    down, up = (direction * root)[None], (vector / root)[:, None]
    if module:
        down, up = torch.cat([module.down * module.scale, down]), torch.cat([module.up, up], dim=1)
    return LoraModule(down, up, float(len(down)))


def _left_out(name: str, change: Tensor, reason: str) -> Folded:
    norm = change.norm().item()
    return Folded(name, norm, 1.0 if norm else 0.0, reason=reason)
