"""What a layer's first run leaves for its second, where backward computes the layer again.

A layer is given one of these and tells it of every result that is worth keeping. The second run does the same in the
same order, so a queue is enough.
"""

from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

Tensors = tuple[Tensor, ...]


class RunOnce:
    """For a layer that is not computed again: everything is computed, nothing kept."""

    def product(self, compute: Callable[[], Tensors]) -> Tensors:
        """The results of a product with the layer's weights."""
        return compute()

    def last_product(self, compute: Callable[[], Tensors], shape: Callable[[], Tensors]) -> Tensors:
        """The product that a layer ends with: backward needs all that goes in, not what comes out."""
        return compute()

    def attention(self) -> AbstractContextManager:
        """What attention runs in."""
        return nullcontext()


ONCE = RunOnce()


class Recall(RunOnce):
    """For a layer that is computed again: keeps the results that its rung of the ladder says."""

    def __init__(self, products: bool, attention: bool) -> None:
        self._products, self._attention = products, attention
        self._results: deque[Any] = deque()
        self._again = False

    def next_run(self) -> None:
        """The first run is over."""
        self._again = True

    def product(self, compute: Callable[[], Tensors]) -> Tensors:
        return self.result(compute) if self._products else compute()

    def last_product(self, compute: Callable[[], Tensors], shape: Callable[[], Tensors]) -> Tensors:
        return shape() if self._again else compute()

    def attention(self) -> AbstractContextManager:
        return _KeepAttention(self) if self._attention else nullcontext()

    def result(self, compute: Callable[[], Any]) -> Any:
        """What `compute` gives; in the second run, what it gave."""
        if self._again:
            return self._results.popleft()
        result = compute()
        # Detached: a result that leads on to the graph would hold the graph, which holds it.
        self._results.append(tree_map_only(Tensor, Tensor.detach, result))
        return result


_aten = torch.ops.aten
_ATTENTION_KERNELS = frozenset(
    {
        _aten._scaled_dot_product_flash_attention.default,
        _aten._scaled_dot_product_efficient_attention.default,
        _aten._scaled_dot_product_cudnn_attention.default,
        _aten._scaled_dot_product_flash_attention_for_cpu.default,
    }
)


class _KeepAttention(TorchDispatchMode):
    """Inside, what the attention kernel gives is kept with all that its backward wants; a second time it is handed
    out."""

    def __init__(self, recall: Recall) -> None:
        super().__init__()
        self._recall = recall

    def __torch_dispatch__(self, op: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if op not in _ATTENTION_KERNELS:
            return op(*args, **(kwargs or {}))
        return self._recall.result(lambda: op(*args, **(kwargs or {})))
