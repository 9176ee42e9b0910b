"""Norms and rotary positions.

A head of `head_dim` numbers carries three positions: t in its first half, height and width in the two quarters of its
second. Each half is normalised by itself before it is turned. Statistics, angles and the rotation are fp32; the result
goes back to the activations' dtype.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from u1_core.kernels.switch import usable
from u1_core.model.config import U1Config


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Root-mean-square norm over the last axis. Statistics in fp32, the product with `weight` in x's dtype."""
    if usable(x) and weight.dim() == 1 and not weight.requires_grad:
        from u1_core.kernels.norm import RmsNorm

        return RmsNorm.apply(x, weight, eps)
    return weight * F.rms_norm(x, x.shape[-1:], eps=eps)


def frequencies(dim: int, theta: float, device: torch.device) -> Tensor:
    """theta^(-2i / dim) for i < dim / 2, fp32."""
    return 1.0 / theta ** (torch.arange(0, dim, 2, device=device, dtype=torch.float32) / dim)


def rope_table(config: U1Config, positions: Tensor) -> tuple[Tensor, Tensor]:
    """What turns every token's heads: positions (3, N) of t, height, width -> two fp32 tensors (N, 1, head_dim).

    A place of a head becomes itself times the first, plus its partner (see `partners`) times the second: the cosine,
    and the sine with its sign.
    """
    half = config.head_dim // 2
    freq_t = frequencies(half, config.rope_theta, positions.device)
    freq_hw = frequencies(half // 2, config.rope_theta_hw, positions.device)
    t, h, w = positions.float().unsqueeze(-1)
    parts = [t * freq_t, h * freq_hw, w * freq_hw]
    cos = torch.cat([part.cos() for part in parts for _ in range(2)], dim=-1)
    sin = torch.cat([sign * part.sin() for part in parts for sign in (-1, 1)], dim=-1)
    return cos.unsqueeze(1), sin.unsqueeze(1)


def partners(head_dim: int, device: torch.device) -> Tensor:
    """For each place of a head the one it is turned with, half a part away: the first half is a part, and each of the
    two quarters after it. (head_dim,)."""
    place = torch.arange(head_dim, device=device)
    half = head_dim // 2
    return torch.where(place < half, (place + half // 2) % half, half + _within_quarters(place - half, half // 2))


def _within_quarters(place: Tensor, size: int) -> Tensor:
    return place // size * size + (place + size // 2) % size


def turn_heads(
    qkv: Tensor, q_norm: Tensor, k_norm: Tensor, eps: float, rope: tuple[Tensor, Tensor], kv_heads: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The stacked product (N, (heads + 2 * kv_heads) * head_dim) as attention takes it: q (N, heads, head_dim) and k
    (N, kv_heads, head_dim) normed and turned, v (N, kv_heads, head_dim)."""
    if usable(qkv) and not q_norm.requires_grad:
        from u1_core.kernels.rotate import NormAndRotate

        return NormAndRotate.apply(qkv, q_norm, k_norm, eps, *rope, kv_heads)
    heads = qkv.unflatten(-1, (-1, rope[0].shape[-1]))
    q, k, v = heads.split([heads.shape[1] - 2 * kv_heads, kv_heads, kv_heads], dim=1)
    return norm_and_rotate(q, q_norm, eps, rope), norm_and_rotate(k, k_norm, eps, rope), v


def norm_and_rotate(x: Tensor, weight: Tensor, eps: float, rope: tuple[Tensor, Tensor]) -> Tensor:
    """Norm each half of each head, then turn it. x (N, heads, head_dim), weight (2, head_dim / 2) -> like x."""
    cos, sin = rope
    normed = rms_norm(x.unflatten(-1, (2, -1)), weight, eps).flatten(-2)
    partner = normed.index_select(-1, partners(normed.shape[-1], x.device))
    return (normed * cos).addcmul_(partner, sin).to(x.dtype)
