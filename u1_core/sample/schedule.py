"""The sampling schedule: which timesteps the Euler loop visits."""

import torch
from torch import Tensor


def sampling_timesteps(steps: int, shift: float) -> Tensor:
    """steps + 1 times from 0 (noise) to 1 (clean), fp32.

    Equal steps, then sigma = 1 - t becomes shift * sigma / (1 + (shift - 1) * sigma): a shift above 1 spends more of
    the steps near the noise.
    """
    sigma = 1 - torch.linspace(0.0, 1.0, steps + 1)
    return 1 - shift * sigma / (1 + (shift - 1) * sigma)
