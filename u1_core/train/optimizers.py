"""Optimizers by name, and the words that say which one was taken and why."""

import importlib.util
from collections.abc import Sequence

import torch
from torch import Tensor

from u1_core.errors import U1Error

BETAS, WEIGHT_DECAY = (0.9, 0.95), 0.01
"""As the reference trainer has them: its betas, and the decay that both libraries default to."""


def make_optimizer(
    name: str, parameters: Sequence[Tensor], lr: float, device: torch.device
) -> tuple[torch.optim.Optimizer, str]:
    """An optimizer over fp32 parameters on `device`, and a line for the log.

    "auto" is paged 8-bit AdamW on CUDA where bitsandbytes is installed, else AdamW. Raises U1Error where
    "paged_adamw8bit" is asked for and cannot be had.
    """
    if name == "adamw":
        return _adamw(parameters, lr), "AdamW, fused"
    missing = _missing_for_8bit(device)
    if not missing:
        import bitsandbytes

        optimizer = bitsandbytes.optim.PagedAdamW8bit(parameters, lr=lr, betas=BETAS, weight_decay=WEIGHT_DECAY)
        return optimizer, f"paged 8-bit AdamW of bitsandbytes {bitsandbytes.__version__}"
    if name == "auto":
        return _adamw(parameters, lr), f"AdamW, fused (not the paged 8-bit one: {missing})"
    raise U1Error(f"train.optimizer is {name}, but {missing}; use adamw or auto")


def _adamw(parameters: Sequence[Tensor], lr: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=lr, betas=BETAS, weight_decay=WEIGHT_DECAY, fused=True)


def _missing_for_8bit(device: torch.device) -> str:
    """What keeps 8-bit AdamW from being used, or nothing."""
    if device.type != "cuda":
        return f"the device is {device.type}"
    return "" if importlib.util.find_spec("bitsandbytes") else "bitsandbytes is not installed"
