"""The vision embedding: 16-pixel patches to one token for each 2 x 2 of them, the same form in both towers."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from u1_core.model.config import U1Config
from u1_core.model.rope import frequencies


def embed_patches(config: U1Config, modules: Mapping[str, Tensor], prefix: str, patches: Tensor) -> Tensor:
    """(B, rows, columns, 3 * patch²) in (channel, row, column) order -> tokens (B, rows * columns / merge², width).

    `prefix` names the embedding in `modules`: VISION or VISION_GEN. The two convolutions have stride = kernel, so each
    is a product. Positions are turned in fp32.
    """
    patch_weight = modules[f"{prefix}.patch_embedding.weight"]
    x = F.linear(patches.to(patch_weight.dtype), patch_weight.flatten(1), modules[f"{prefix}.patch_embedding.bias"])
    x = _rotate_on_grid(F.gelu(x).float(), config.vision_rope_theta).to(patch_weight.dtype)
    merge = config.merge
    x = x.unflatten(2, (-1, merge)).unflatten(1, (-1, merge))
    x = x.permute(0, 1, 3, 5, 2, 4).flatten(-3).flatten(1, 2)
    weight, bias = (modules[f"{prefix}.dense_embedding.{part}"] for part in ("weight", "bias"))
    return F.linear(x, weight.flatten(1), bias)


def _rotate_on_grid(x: Tensor, theta: float) -> Tensor:
    """Turn (B, rows, columns, dim): the first half of dim by the column, the second by the row, in adjacent pairs."""
    _, rows, columns, dim = x.shape
    freq = frequencies(dim // 2, theta, x.device)
    by_column = torch.outer(torch.arange(columns, device=x.device, dtype=torch.float32), freq)
    by_row = torch.outer(torch.arange(rows, device=x.device, dtype=torch.float32), freq)
    angles = torch.cat([by_column.expand(rows, columns, -1), by_row[:, None].expand(rows, columns, -1)], dim=-1)
    cos, sin = angles.cos(), angles.sin()
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2)
