"""From the stacked product of q, k and v to what attention takes: q and k normed by half heads and turned, v as it is.

One pass forward, one backward; the gradient comes out stacked as the product was.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

_ROWS = 16
"""Heads of tokens to a program."""


class NormAndRotate(torch.autograd.Function):
    """What `u1_core.model.rope.norm_and_rotate` makes of q and of k, with the same roundings; the norms get no
    gradient.

    apply(qkv (N, (heads + 2 * kv_heads) * head_dim), q_norm and k_norm (2, head_dim / 2), eps, cos and sin from
    `rope_table`, kv_heads) -> q (N, heads, head_dim), k and v (N, kv_heads, head_dim).
    """

    @staticmethod
    def forward(
        ctx: Any, qkv: Tensor, q_norm: Tensor, k_norm: Tensor, eps: float, cos: Tensor, sin: Tensor, kv_heads: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        tokens, dim = len(qkv), cos.shape[-1]
        heads = qkv.shape[1] // dim - 2 * kv_heads
        qkv = qkv.contiguous()
        q, k = (qkv.new_empty(tokens, count, dim) for count in (heads, kv_heads))
        v = qkv[:, (heads + kv_heads) * dim :].contiguous().view(tokens, kv_heads, dim)
        for out, first, norm in ((q, 0, q_norm), (k, heads, k_norm)):
            _launch(_forward, qkv, out, first, norm, eps, cos, sin)
        ctx.save_for_backward(qkv, q_norm, k_norm, cos, sin)
        ctx.eps = eps
        return q, k, v

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dq: Tensor, dk: Tensor, dv: Tensor) -> tuple[Tensor | None, ...]:
        qkv, q_norm, k_norm, cos, sin = ctx.saved_tensors
        d_qkv = torch.empty_like(qkv)
        for d_out, first, norm in ((dq, 0, q_norm), (dk, dq.shape[1], k_norm)):
            _launch(_backward, qkv, d_out.contiguous(), first, norm, ctx.eps, cos, sin, d_qkv)
        d_qkv[:, -dv[0].numel() :] = dv.flatten(1)
        return d_qkv, None, None, None, None, None, None


def _launch(
    kernel: Any,
    qkv: Tensor,
    rotated: Tensor,
    first: int,
    norm: Tensor,
    eps: float,
    cos: Tensor,
    sin: Tensor,
    *more: Tensor,
) -> None:
    """Run a kernel over all heads of `rotated` (N, heads, head_dim), which are the heads from `first` on in `qkv`."""
    tokens, heads, dim = rotated.shape
    rows = tokens * heads
    with torch.cuda.device_of(qkv):  # Triton launches on the current card
        kernel[(triton.cdiv(rows, _ROWS),)](
            qkv, rotated, norm, cos, sin, *more, eps, rows, heads, first, qkv.shape[1],
            DIM=dim, BLOCK=triton.next_power_of_2(dim), ROWS=_ROWS,
        )  # fmt: skip


@triton.jit
def _partner(column, DIM: tl.constexpr):
    """For each place of a head the one that it is turned with, as `u1_core.model.rope.partners` has them."""
    part = tl.where(column < DIM // 2, DIM // 2, DIM // 4)
    return tl.where((column % part) < part // 2, column + part // 2, column - part // 2)


@triton.jit
def _scale_by_half(x, column, eps, DIM: tl.constexpr):
    """1 / rms of each row's halves, at every place of that half."""
    t = (column < DIM // 2)[None, :]
    squares = x * x
    half = DIM // 2
    scale_t = tl.rsqrt(tl.sum(tl.where(t, squares, 0.0), axis=1) / half + eps)
    scale_hw = tl.rsqrt(tl.sum(tl.where(t, 0.0, squares), axis=1) / half + eps)
    return tl.where(t, scale_t[:, None], scale_hw[:, None])


@triton.jit
def _forward(
    qkv_at, out_at, norm_at, cos_at, sin_at, eps, rows, heads, first, stride,
    DIM: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK)
    inside = (row < rows)[:, None] & (column < DIM)[None, :]
    token, head = row // heads, row % heads
    partner = _partner(column, DIM)
    head_at = qkv_at + (token * stride + (first + head) * DIM)[:, None]
    dtype: tl.constexpr = out_at.dtype.element_ty
    x = tl.load(head_at + column[None, :], mask=inside, other=0.0).to(tl.float32)
    other = tl.load(head_at + partner[None, :], mask=inside, other=0.0).to(tl.float32)
    norm = tl.load(norm_at + column, mask=column < DIM, other=0.0).to(tl.float32)[None, :]
    other_norm = tl.load(norm_at + partner, mask=column < DIM, other=0.0).to(tl.float32)[None, :]
    # A place's partner is in its half: both have the same scale.
    scale = _scale_by_half(x, column, eps, DIM)
    x = ((x * scale).to(dtype).to(tl.float32) * norm).to(dtype).to(tl.float32)
    other = ((other * scale).to(dtype).to(tl.float32) * other_norm).to(dtype).to(tl.float32)
    angle = token[:, None] * DIM + column[None, :]
    cos = tl.load(cos_at + angle, mask=inside, other=0.0)
    sin = tl.load(sin_at + angle, mask=inside, other=0.0)
    turned = x * cos + other * sin
    tl.store(out_at + row[:, None] * DIM + column[None, :], turned.to(dtype), mask=inside)


@triton.jit
def _backward(
    qkv_at, d_out_at, norm_at, cos_at, sin_at, d_qkv_at, eps, rows, heads, first, stride,
    DIM: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK)
    inside = (row < rows)[:, None] & (column < DIM)[None, :]
    token, head = row // heads, row % heads
    partner = _partner(column, DIM)
    place = (token * stride + (first + head) * DIM)[:, None] + column[None, :]
    dtype: tl.constexpr = d_qkv_at.dtype.element_ty
    x = tl.load(qkv_at + place, mask=inside, other=0.0).to(tl.float32)
    norm = tl.load(norm_at + column, mask=column < DIM, other=0.0).to(tl.float32)[None, :]
    d_out_row = d_out_at + row[:, None] * DIM
    d_out = tl.load(d_out_row + column[None, :], mask=inside, other=0.0).to(tl.float32)
    d_other = tl.load(d_out_row + partner[None, :], mask=inside, other=0.0).to(tl.float32)
    angle = token[:, None] * DIM
    cos = tl.load(cos_at + angle + column[None, :], mask=inside, other=0.0)
    sin = tl.load(sin_at + angle + partner[None, :], mask=inside, other=0.0)
    d_turned = (d_out * cos + d_other * sin).to(dtype).to(tl.float32)
    d_normed = (d_turned * norm).to(dtype).to(tl.float32)
    scale = _scale_by_half(x, column, eps, DIM)
    normed = x * scale
    t = (column < DIM // 2)[None, :]
    along = d_normed * normed
    half = DIM // 2
    mean_t = tl.sum(tl.where(t, along, 0.0), axis=1) / half
    mean_hw = tl.sum(tl.where(t, 0.0, along), axis=1) / half
    dx = scale * (d_normed - normed * tl.where(t, mean_t[:, None], mean_hw[:, None]))
    tl.store(d_qkv_at + place, dx.to(dtype), mask=inside)
