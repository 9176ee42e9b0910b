"""Which of PyTorch's attention kernels is quickest on this card: each tried once, on a picture of 1536 x 1536."""

import math
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
_FUSED = (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION)
_REPEATS = 5


def quickest(q: Tensor, k: Tensor) -> AbstractContextManager:
    """What to call attention in: q (1, heads, n, head_dim), k (1, kv_heads, m, head_dim).

    PyTorch has one choice of kernels for all threads. Nothing but their order changes in it, so that another thread's
    attention finds every kernel it needs.

    Where the same bits are wanted each time, the choice is PyTorch's own, which does not depend on a clock.
    """
    if not q.is_cuda or q.shape[2] < SHORTEST or torch.are_deterministic_algorithms_enabled():
        return nullcontext()
    backward = torch.is_grad_enabled() and q.requires_grad
    order = backends(q.device, q.dtype, q.shape[1], k.shape[1], q.shape[3], backward)
    if math.isinf(order[0][1]):  # none could be tried: PyTorch knows better than a list does
        return nullcontext()
    return sdpa_kernel([backend for backend, _ in order], set_priority=True)


@cache
def backends(
    device: torch.device, dtype: torch.dtype, heads: int, kv_heads: int, head_dim: int, backward: bool
) -> tuple[tuple[SDPBackend, float], ...]:
    """All kernels, quickest on this card first, with the seconds each took, and their backward if asked. It is infinite
    for what does not work here, and for the plain products, which come last and always do.

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
        # The first choice of a process puts PyTorch's own order in the place of whatever order is wished for.
        _chosen(inputs)
        found = []
        for backend in _FUSED:
            others = [other for other in _FUSED if other != backend]
            try:
                with sdpa_kernel([backend, *others, SDPBackend.MATH], set_priority=True):
                    found.append((backend, _seconds(inputs, backward) if _chosen(inputs) == backend else math.inf))
            except torch.OutOfMemoryError:
                raise  # which says nothing about the kernel
            except RuntimeError:
                found.append((backend, math.inf))
    return (*sorted(found, key=lambda each: each[1]), (SDPBackend.MATH, math.inf))


def _chosen(inputs: list[Tensor]) -> SDPBackend:
    """The kernel that attention would use for these; one that is not for this card, build or heads never is."""
    return SDPBackend(torch._fused_sdp_choice(*inputs, enable_gqa=_grouped(inputs)))


def _seconds(inputs: list[Tensor], backward: bool) -> float:
    """Median seconds of one call."""
    seconds = []
    for _ in range(_REPEATS + 2):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        out = F.scaled_dot_product_attention(*inputs, enable_gqa=_grouped(inputs))
        if backward:
            torch.autograd.grad(out, inputs, out)
        end.record()
        end.synchronize()
        seconds.append(start.elapsed_time(end) / 1000)
    return sorted(seconds[2:])[_REPEATS // 2]


def _grouped(inputs: list[Tensor]) -> bool:
    return inputs[0].shape[1] != inputs[1].shape[1]
