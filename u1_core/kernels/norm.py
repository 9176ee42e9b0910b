"""Root-mean-square norm, forward and backward, one row to a program."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable


class RmsNorm(torch.autograd.Function):
    """What `u1_core.model.rope.rms_norm` computes, with the same roundings; the weight gets no gradient.

    apply(x (…, width), weight (width,), eps) -> like x.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        width = x.shape[-1]
        x = x.contiguous()
        y = torch.empty_like(x)
        block = triton.next_power_of_2(width)
        with torch.cuda.device_of(x):  # Triton launches on the current card
            _forward[(x.numel() // width,)](x, weight, y, eps, width, BLOCK=block, num_warps=8)
        ctx.save_for_backward(x, weight)
        ctx.eps = eps
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None]:
        x, weight = ctx.saved_tensors
        width = x.shape[-1]
        dx = torch.empty_like(x)
        block = triton.next_power_of_2(width)
        with torch.cuda.device_of(x):
            _backward[(x.numel() // width,)](dy.contiguous(), x, weight, dx, ctx.eps, width, BLOCK=block, num_warps=8)
        return dx, None, None


@triton.jit
def _forward(x_at, weight_at, y_at, eps, width, BLOCK: tl.constexpr):
    column = tl.arange(0, BLOCK)
    inside = column < width
    place = tl.program_id(0).to(tl.int64) * width + column
    x = tl.load(x_at + place, mask=inside, other=0.0).to(tl.float32)
    weight = tl.load(weight_at + column, mask=inside, other=0.0).to(tl.float32)
    normed = x * tl.rsqrt(tl.sum(x * x) / width + eps)
    # To the activations' dtype and back: the norm is rounded before it is weighed.
    normed = normed.to(y_at.dtype.element_ty).to(tl.float32)
    tl.store(y_at + place, (normed * weight).to(y_at.dtype.element_ty), mask=inside)


@triton.jit
def _backward(dy_at, x_at, weight_at, dx_at, eps, width, BLOCK: tl.constexpr):
    column = tl.arange(0, BLOCK)
    inside = column < width
    place = tl.program_id(0).to(tl.int64) * width + column
    x = tl.load(x_at + place, mask=inside, other=0.0).to(tl.float32)
    dy = tl.load(dy_at + place, mask=inside, other=0.0).to(tl.float32)
    weight = tl.load(weight_at + column, mask=inside, other=0.0).to(tl.float32)
    d_normed = (dy * weight).to(dx_at.dtype.element_ty).to(tl.float32)
    scale = tl.rsqrt(tl.sum(x * x) / width + eps)
    normed = x * scale
    dx = scale * (d_normed - normed * (tl.sum(d_normed * normed) / width))
    tl.store(dx_at + place, dx.to(dx_at.dtype.element_ty), mask=inside)
