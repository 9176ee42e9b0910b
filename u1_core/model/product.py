"""The product with a stacked weight of a layer, with low-rank terms for each of the modules stacked in it.

One autograd function: the terms are added into the product as it lies, their factors are cast where they are used, and
what backward needs is kept once, whatever the number of terms.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from u1_core.model.linear import LowRank
from u1_core.model.recall import ONCE, RunOnce, Tensors

Part = tuple[int, Sequence[LowRank]]
"""A module in a stacked weight: how many rows are its own, and its terms."""


def product(
    x: Tensor,
    weight: Tensor,
    parts: Sequence[Part] = (),
    residual: Tensor | None = None,
    recall: RunOnce = ONCE,
    last: bool = False,
) -> Tensor:
    """x @ weight.T, plus each part's terms in its own columns, plus `residual`: (N, in) -> (N, out).

    `weight` (out, in) has the rows of each part in order; `parts` may be left out where there are no terms. A product
    that is the `last` of its layer is not computed when the layer is computed again. Where gradients are off, the
    result is written over the residual. Gradients flow to x, the residual, the factors (in their own dtype) and the
    weight, if it is trained.
    """
    placed = tuple(_placed(parts))
    if not torch.is_grad_enabled():
        y = _multiply(x, weight, residual, overwrite=True)
        _add_terms(y, x, placed)
        return y
    factors = [factor for place in placed for factor in (place.term.down, place.term.up)]
    return _Product.apply(x, weight, residual, placed, recall, last, *factors)


def _multiply(x: Tensor, weight: Tensor, residual: Tensor | None, overwrite: bool) -> Tensor:
    if residual is None:
        return F.linear(x, weight)
    return torch.addmm(residual, x, weight.t(), out=residual if overwrite else None)


@dataclass(frozen=True, slots=True)
class _Placed:
    """A term and the columns of the product that it is added to."""

    columns: slice
    term: LowRank


def _placed(parts: Sequence[Part]) -> Sequence[_Placed]:
    start, found = 0, []
    for rows, terms in parts:
        found += [_Placed(slice(start, start + rows), term) for term in terms]
        start += rows
    return found


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        residual: Tensor | None,
        placed: Sequence[_Placed],
        recall: RunOnce,
        last: bool,
        *factors: Tensor,
    ) -> Tensor:
        def compute() -> Tensors:
            y = _multiply(x, weight, residual, overwrite=False)
            return y, *_add_terms(y, x, placed)

        def shape() -> Tensors:
            return x.new_empty(len(x), len(weight)), *_narrowed(x, placed)

        y, *narrow = recall.last_product(compute, shape) if last else recall.product(compute)
        ctx.placed = placed
        # A frozen weight without terms needs none of its input.
        keeps_input = bool(placed) or ctx.needs_input_grad[1]
        ctx.save_for_backward(weight, x if keeps_input else None, *narrow)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
        weight, x, *narrow = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        dx = dy @ weight if wanted[0] else None
        d_weight = dy.t() @ x if wanted[1] else None
        d_factors = _backward_terms(dy, x, dx, ctx.placed, narrow, wanted[6:])
        return dx, d_weight, dy if wanted[2] else None, None, None, None, *d_factors


def _groups(placed: Sequence[_Placed]) -> list[list[int]]:
    """Numbers of the terms that see the same input: all together, or each its own where inputs are dropped."""
    if any(place.term.dropout for place in placed):
        return [[number] for number in range(len(placed))]
    return [list(range(len(placed)))] if placed else []


def _downs(placed: Sequence[_Placed], group: Sequence[int], dtype: torch.dtype) -> Tensor:
    """The group's `down` factors, one below the other."""
    downs = [placed[number].term.down.to(dtype) for number in group]
    return torch.cat(downs) if len(downs) > 1 else downs[0]


def _narrowed(x: Tensor, placed: Sequence[_Placed]) -> list[Tensor]:
    """For each group, its input times its `down` factors: (N, rank) of the group's terms side by side."""
    found = []
    for group in _groups(placed):
        first = placed[group[0]].term
        found.append(F.linear(first.dropped(x), _downs(placed, group, x.dtype)))
    return found


def _columns_in_group(placed: Sequence[_Placed], group: Sequence[int]) -> list[slice]:
    """Where each term of a group lies in what `_narrowed` gives for it."""
    start, found = 0, []
    for number in group:
        rank = len(placed[number].term.down)
        found.append(slice(start, start + rank))
        start += rank
    return found


def _add_terms(y: Tensor, x: Tensor, placed: Sequence[_Placed]) -> list[Tensor]:
    """Add every term into `y`; returns what `_narrowed` gives."""
    narrow = _narrowed(x, placed)
    for group, low in zip(_groups(placed), narrow, strict=True):
        for number, columns in zip(group, _columns_in_group(placed, group), strict=True):
            place = placed[number]
            y[:, place.columns].addmm_(low[:, columns], place.term.up.to(x.dtype).t(), alpha=place.term.scale)
    return narrow


def _backward_terms(
    dy: Tensor,
    x: Tensor | None,
    dx: Tensor | None,
    placed: Sequence[_Placed],
    narrow: Sequence[Tensor],
    wanted: Sequence[bool],
) -> list[Tensor | None]:
    """Adds what the terms give to `dx`; returns the gradients of down and up of every term, in their dtypes."""
    gradients: list[Tensor | None] = [None] * len(wanted)
    for group, low in zip(_groups(placed), narrow, strict=True):
        d_low, within = torch.empty_like(low), _columns_in_group(placed, group)
        for number, columns in zip(group, within, strict=True):
            term, d_part = placed[number].term, dy[:, placed[number].columns]
            d_low[:, columns].addmm_(d_part, term.up.to(dy.dtype), beta=0, alpha=term.scale)
            if wanted[2 * number + 1]:
                gradients[2 * number + 1] = _outer(d_part, low[:, columns], term.up.dtype).mul_(term.scale)
        first = placed[group[0]].term
        if any(wanted[2 * number] for number in group):
            d_downs = _outer(d_low, first.dropped(x), first.down.dtype)
            for number, columns in zip(group, within, strict=True):
                gradients[2 * number] = d_downs[columns] if wanted[2 * number] else None
        if dx is not None and first.dropout:
            dx += first.dropped(d_low @ _downs(placed, group, dy.dtype))
        elif dx is not None:
            dx.addmm_(d_low, _downs(placed, group, dy.dtype))
    return gradients


def _outer(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """a.T @ b, (N, m) and (N, n) -> (m, n), in `dtype`. On a card, a sum that is to be fp32 is not rounded before."""
    if a.is_cuda and dtype == torch.float32 != a.dtype:
        return torch.mm(a.t(), b, out_dtype=dtype)
    return (a.t() @ b).to(dtype)
