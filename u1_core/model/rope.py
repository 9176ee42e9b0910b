"""Norms and rotary positions.

A head of `head_dim` numbers carries three positions: t in its first half, height and width in the two quarters of its
second. Each half is normalised by itself before it is turned. Statistics, angles and the rotation are fp32; the result
goes back to the activations' dtype.
"""

import torch
from torch import Tensor

from u1_core.model.config import U1Config


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Root-mean-square norm over the last axis. Statistics in fp32, the product with `weight` in x's dtype."""
    x32 = x.float()
    normed = x32 * torch.rsqrt(x32.square().mean(-1, keepdim=True) + eps)
    return weight * normed.to(x.dtype)


def frequencies(dim: int, theta: float, device: torch.device) -> Tensor:
    """theta^(-2i / dim) for i < dim / 2, fp32."""
    return 1.0 / theta ** (torch.arange(0, dim, 2, device=device, dtype=torch.float32) / dim)


def rope_table(config: U1Config, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines for every token: positions (3, N) of t, height, width -> two fp32 tensors (N, 1, head_dim)."""
    half = config.head_dim // 2
    freq_t = frequencies(half, config.rope_theta, positions.device)
    freq_hw = frequencies(half // 2, config.rope_theta_hw, positions.device)
    t, h, w = positions.float().unsqueeze(-1)
    angles = torch.cat([t * freq_t, t * freq_t, h * freq_hw, h * freq_hw, w * freq_hw, w * freq_hw], dim=-1)
    return angles.cos().unsqueeze(1), angles.sin().unsqueeze(1)


def norm_and_rotate(x: Tensor, weight: Tensor, eps: float, rope: tuple[Tensor, Tensor]) -> Tensor:
    """Norm each half of each head, then turn it. x (N, heads, head_dim), weight (2, head_dim / 2) -> like x."""
    cos, sin = rope
    halves = rms_norm(x.unflatten(-1, (2, -1)), weight, eps).float()
    t, hw = halves[..., 0, :], halves[..., 1, :].unflatten(-1, (2, -1))
    turned = torch.cat([_quarter_turn(t), _quarter_turn(hw).flatten(-2)], dim=-1)
    return (halves.flatten(-2) * cos + turned * sin).to(x.dtype)


def _quarter_turn(x: Tensor) -> Tensor:
    """(a, b) -> (-b, a) for the two halves of the last axis."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat([-b, a], dim=-1)
