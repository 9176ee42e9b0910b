"""Tensors trained whole folded into the LoRA beside them, so that one file carries (nearly) all that a run learned.

A weight's change becomes a low-rank term by a truncated SVD, the best approximation of that rank; what is cut off is
the error. Convolutions are folded as their flattened matrices. A bias has no place in a LoRA, except where an input of
its module never changes: the last cosine of the embedders' sinusoid is 1 to the last digit of fp32 for every t and
noise scale, so the bias's change goes into that column of the weight's.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from u1_core.errors import U1Error
from u1_core.lora.adapter import Adapter, LoraModule
from u1_core.model.config import NOISE_SCALE_EMBEDDER, SINUSOID_DIM, TIMESTEP_EMBEDDER

CONSTANT_INPUT = SINUSOID_DIM // 2 - 1
"""The last of the cosines: its frequency is about 1e-4, and cos(1e-4) rounds to 1 in fp32."""

_WITH_CONSTANT_INPUT = tuple(f"{embedder}.mlp.0" for embedder in (TIMESTEP_EMBEDDER, NOISE_SCALE_EMBEDDER))


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
    modules, folded = dict(adapter.modules), []
    for name, change in changes.items():
        if not name.endswith(".weight") or change.dim() < 2:
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
        down, up, error = truncated_svd(matrix, rank)
        if len(down):
            modules[path] = LoraModule(down.cpu(), up.cpu(), float(len(down)), tuple(change.shape[2:]))
        folded.append(Folded(name, matrix.norm().item(), error, len(down)))
    folded += _vectors(changes)
    order = list(adapter.full)
    return replace(adapter, modules=modules, full={}, full_source=None), sorted(
        folded, key=lambda f: order.index(f.name)
    )


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


def _takes_bias(path: str, changes: dict[str, Tensor]) -> bool:
    return path in _WITH_CONSTANT_INPUT and f"{path}.bias" in changes


def _vectors(changes: dict[str, Tensor]) -> Sequence[Folded]:
    """Biases and norms."""
    found = []
    for name, change in changes.items():
        if change.dim() > 1:
            continue
        path = name.removesuffix(".bias")
        if _takes_bias(path, changes) and f"{path}.weight" in changes:
            found.append(
                Folded(name, change.norm().item(), 0.0, reason=f"in {path}.weight, by an input that is always 1")
            )
        else:
            what = "a bias" if name.endswith(".bias") else "a norm"
            found.append(_left_out(name, change, f"{what}, which a LoRA cannot carry"))
    return found


def _left_out(name: str, change: Tensor, reason: str) -> Folded:
    norm = change.norm().item()
    return Folded(name, norm, 1.0 if norm else 0.0, reason=reason)
