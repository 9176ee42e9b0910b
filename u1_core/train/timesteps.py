"""How training draws its timesteps. t = 1 is the clean picture, t = 0 is noise."""

import torch
from torch import Tensor

from u1_core.train.recipe import Train


def draw_timesteps(train: Train, count: int, t_eps: float, generator: torch.Generator) -> Tensor:
    """`count` timesteps, fp32 on the CPU (U1_FACTS, "Training").

    uniform: t_eps + (1 - t_eps) * u, so from t_eps to 1. logit_normal: sigmoid(mean + std * n), kept within t_eps of
    both ends.
    """
    if train.t_dist == "uniform":
        return t_eps + (1.0 - t_eps) * torch.rand(count, generator=generator)
    normal = torch.randn(count, generator=generator)
    return torch.sigmoid(train.t_logit_mean + train.t_logit_std * normal).clamp(t_eps, 1.0 - t_eps)
