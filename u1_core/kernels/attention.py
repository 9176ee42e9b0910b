"""Which of PyTorch's attention kernels is quickest on this card: each tried once, on a picture of 1536 x 1536."""

import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

QUERIES, KEYS = 2304, 2432
SHORTEST = 512
"""Queries from which on the choice matters."""
_REPEATS = 5


def quickest(q: Tensor, k: Tensor) -> AbstractContextManager:
    """What to call attention in: q (1, heads, n, head_dim), k (1, kv_heads, m, head_dim). Nothing but the order of
    preference changes, so that another thread's attention finds every kernel it needs.

    Where the same bits are wanted each time, the choice is PyTorch's own, which does not depend on a clock.
    """
    if not q.is_cuda or q.shape[2] < SHORTEST or torch.are_deterministic_algorithms_enabled():
        return nullcontext()
    backward = torch.is_grad_enabled() and q.requires_grad
    order = backends(q.device, q.dtype, q.shape[1], k.shape[1], q.shape[3], backward)
    return sdpa_kernel([backend for backend, _ in order], set_priority=True)


@cache
def backends(
    device: torch.device, dtype: torch.dtype, heads: int, kv_heads: int, head_dim: int, backward: bool
) -> tuple[tuple[SDPBackend, float], ...]:
    """The kernels that work on this card, quickest first, with the seconds each took; with their backward if asked.

    They are tried in a thread of their own: what is under way in this one, a layer that is to be computed again for
    instance, would take what they save for its own.
    """
    with ThreadPoolExecutor(1) as aside:
        return aside.submit(_try_all, device, dtype, heads, kv_heads, head_dim, backward).result()


def _try_all(
    device: torch.device, dtype: torch.dtype, heads: int, kv_heads: int, head_dim: int, backward: bool
) -> tuple[tuple[SDPBackend, float], ...]:
    with torch.cuda.device(device), torch.set_grad_enabled(backward):
        q = torch.randn(1, QUERIES, heads, head_dim, device=device, dtype=dtype).transpose(1, 2)
        k, v = (torch.randn(1, KEYS, kv_heads, head_dim, device=device, dtype=dtype).transpose(1, 2) for _ in range(2))
        inputs = [x.requires_grad_(backward) for x in (q, k, v)]
        found = []
        for backend in (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION):
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # of a kernel that is refused, PyTorch gives every reason
                    found.append((backend, _seconds(backend, inputs, backward)))
            except RuntimeError:  # not on this card, not in this build, or not for these heads
                continue
    found.sort(key=lambda each: each[1])
    return (*found, (SDPBackend.MATH, float("inf")))


def _seconds(backend: SDPBackend, inputs: list[Tensor], backward: bool) -> float:
    """Median seconds of one call."""
    seconds = []
    for _ in range(_REPEATS + 2):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        with sdpa_kernel([backend]):
            out = F.scaled_dot_product_attention(*inputs, enable_gqa=inputs[0].shape[1] != inputs[1].shape[1])
        if backward:
            torch.autograd.grad(out, inputs, out)
        end.record()
        end.synchronize()
        seconds.append(start.elapsed_time(end) / 1000)
    return sorted(seconds[2:])[_REPEATS // 2]
