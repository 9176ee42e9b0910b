"""Whether the kernels are used: on CUDA cards where Triton works, unless somebody asks for plain PyTorch."""

import importlib.util
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch
from torch import Tensor

_wanted = True
_log = logging.getLogger(__name__)


def usable(x: Tensor) -> bool:
    """Whether what is done with `x` may be done by a kernel."""
    return x.is_cuda and _wanted and not why_not(x.device)


@cache
def why_not(device: torch.device) -> str:
    """Why the kernels do not run on this device, in a line; "" where they do. Tried once, with a real kernel.

    Triton may be there and still not work: it needs a C compiler and a card that it knows.
    """
    if device.type != "cuda":
        return f"they are for CUDA cards, and this is {device.type}"
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed (pip install triton; on Windows triton-windows)"
    from u1_core.kernels.norm import RmsNorm

    try:
        RmsNorm.apply(torch.ones(1, 8, device=device), torch.ones(8, device=device), 0.0).sum().item()
    except torch.OutOfMemoryError:
        raise  # which says nothing about Triton
    except Exception as problem:  # whatever a compiler or driver may say
        reason = f"Triton does not work here: {str(problem).strip().splitlines()[-1]}"
        _log.warning("plain PyTorch is used in place of the fast kernels: %s", reason)
        return reason
    return ""


@contextmanager
def plain() -> Iterator[None]:
    """Inside, no kernel is used by any thread: to compare with, and to measure."""
    global _wanted
    before, _wanted = _wanted, False
    try:
        yield
    finally:
        _wanted = before
