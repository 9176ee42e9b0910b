"""The embedders of scalars: the timestep and the noise scale."""

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from u1_core.model.config import SINUSOID_DIM


def sinusoid(value: Tensor) -> Tensor:
    """(B,) values in [0, 1] -> (B, 256): cosines first, then sines, max period 10000, fp32."""
    half = SINUSOID_DIM // 2
    exponent = torch.arange(half, dtype=torch.float32, device=value.device) / half
    angles = value.float()[:, None] * torch.exp(-math.log(10000.0) * exponent)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def embed_scalar(modules: Mapping[str, Tensor], prefix: str, value: Tensor) -> Tensor:
    """Sinusoid -> linear -> SiLU -> linear: (B,) -> (B, width). `prefix` is the embedder's name in `modules`."""
    first, second = f"{prefix}.mlp.0", f"{prefix}.mlp.2"
    x = sinusoid(value).to(modules[f"{first}.weight"].dtype)
    x = F.silu(F.linear(x, modules[f"{first}.weight"], modules[f"{first}.bias"]))
    return F.linear(x, modules[f"{second}.weight"], modules[f"{second}.bias"])
