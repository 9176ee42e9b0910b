"""SwiGLU's gate, forward and backward, in one pass over the stacked product of gate and up."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

_BLOCK = 2048


class GatedUp(torch.autograd.Function):
    """silu(gate) * up with the roundings of the two products: apply(gate_up (N, 2 * inner)) -> (N, inner)."""

    @staticmethod
    def forward(ctx: Any, gate_up: Tensor) -> Tensor:
        gate_up = gate_up.contiguous()
        rows, inner = len(gate_up), gate_up.shape[1] // 2
        y = gate_up.new_empty(rows, inner)
        with torch.cuda.device_of(gate_up):  # Triton launches on the current card
            _forward[(rows, triton.cdiv(inner, _BLOCK))](gate_up, y, inner, BLOCK=_BLOCK)
        ctx.save_for_backward(gate_up)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> Tensor:
        (gate_up,) = ctx.saved_tensors
        rows, inner = dy.shape
        d_gate_up = torch.empty_like(gate_up)
        with torch.cuda.device_of(gate_up):
            _backward[(rows, triton.cdiv(inner, _BLOCK))](dy.contiguous(), gate_up, d_gate_up, inner, BLOCK=_BLOCK)
        return d_gate_up


@triton.jit
def _forward(gate_up_at, y_at, inner, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < inner
    dtype: tl.constexpr = y_at.dtype.element_ty
    gate = tl.load(gate_up_at + row * 2 * inner + column, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up_at + row * 2 * inner + inner + column, mask=inside, other=0.0).to(tl.float32)
    silu = (gate * tl.sigmoid(gate)).to(dtype).to(tl.float32)
    tl.store(y_at + row * inner + column, (silu * up).to(dtype), mask=inside)


@triton.jit
def _backward(dy_at, gate_up_at, d_gate_up_at, inner, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < inner
    dtype: tl.constexpr = d_gate_up_at.dtype.element_ty
    gate_place = row * 2 * inner + column
    gate = tl.load(gate_up_at + gate_place, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up_at + gate_place + inner, mask=inside, other=0.0).to(tl.float32)
    dy = tl.load(dy_at + row * inner + column, mask=inside, other=0.0).to(tl.float32)
    sigmoid = tl.sigmoid(gate)
    silu = (gate * sigmoid).to(dtype).to(tl.float32)
    d_silu = (dy * up).to(dtype).to(tl.float32)
    d_gate = d_silu * sigmoid * (1.0 + gate * (1.0 - sigmoid))
    tl.store(d_gate_up_at + gate_place, d_gate.to(dtype), mask=inside)
    tl.store(d_gate_up_at + gate_place + inner, (dy * silu).to(dtype), mask=inside)
