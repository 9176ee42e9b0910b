"""A stack of layers over one or several batches of packed tokens, and what of it is kept for backward.

The layers may be resident, or come and go: they are asked for one after the other, forward, and in a pass that is
differentiated once more each in reverse. Autograd never keeps a layer's weights. It keeps a layer's input and, by the
rung of the ladder that the layer stands on, more, so that less is computed again.
"""

from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.checkpoint import checkpoint

from u1_core.model.config import U1Config
from u1_core.model.layer import Attention, decoder_layer
from u1_core.model.linear import LowRankTerms
from u1_core.model.views import LayerWeights, MoeWeights


class Keep(Enum):
    """The ladder: what of a layer is kept for its backward, from least memory to least work."""

    INPUT = "input"
    """Only what came in; all else is computed again."""
    ATTENTION = "attention"
    """Also what the attention kernel gave, which is not run again."""
    PRODUCTS = "products"
    """Also every product with the layer's weights; what lies between them and low-rank terms are computed again."""
    ALL = "all"
    """All that backward needs but the weights; nothing is computed again."""


def ladder(layers: int, recompute: bool, keep_last: int = 0) -> list[Keep]:
    """Keep.INPUT for all but the last `keep_last` layers if they are to be recomputed, else Keep.ALL throughout."""
    return [Keep.INPUT if recompute and index < layers - keep_last else Keep.ALL for index in range(layers)]


@dataclass(frozen=True)
class Packed:
    """Packed tokens on their way through the layers, and what a layer needs to know of them."""

    h: Tensor
    """(N, width)."""
    rope: tuple[Tensor, Tensor]
    """From `rope_table`."""
    attention: Callable[[int], Attention]
    """Who sees whom in the layer of this number."""
    terms: Sequence[LowRankTerms]
    """The low-rank terms of every layer."""


@runtime_checkable
class Streamed(Protocol):
    """Layers that are brought in as they are asked for, and gain by knowing in which order that will be."""

    def expect(self, order: Sequence[int]) -> None: ...


def run_layers(
    config: U1Config,
    tower: str,
    layers: Sequence[LayerWeights],
    batches: Sequence[Packed],
    kept: Sequence[Keep] | None = None,
) -> list[Tensor]:
    """Take every batch through all layers, each layer for all batches before the next; returns their h (N, width).

    `kept` has a rung for each layer, Keep.ALL if it is not given; it matters only where gradients are asked for.
    Backward, too, is done with a layer for all batches before it turns to the one before it.
    """
    count = len(layers)
    kept = kept or ladder(count, recompute=False)
    if torch.is_grad_enabled() and isinstance(layers, Streamed):
        layers.expect([*range(count), *reversed(range(count - 1))])
    outputs = [batch.h for batch in batches]
    for index in range(count):
        if len(batches) > 1 and torch.is_grad_enabled():
            outputs = list(_Together.apply(*outputs))
        for number, batch in enumerate(batches):
            outputs[number] = _run_layer(config, tower, layers, index, batch, kept[index], outputs[number])
    return outputs


def _run_layer(
    config: U1Config,
    tower: str,
    layers: Sequence[LayerWeights],
    index: int,
    batch: Packed,
    keep: Keep,
    h: Tensor,
) -> Tensor:
    results = _Results()

    def run(h: Tensor) -> Tensor:
        # Asked for inside: a second time, in backward, the layer may lie elsewhere.
        weights = layers[index]
        with _keeping(keep, results, layers, index, weights):
            return decoder_layer(config, tower, weights, h, batch.rope, batch.attention(index), batch.terms[index])[0]

    if keep is Keep.ALL or not torch.is_grad_enabled():
        return run(h)
    # No dropout draws from the global generator, so its state need not be kept for the second time round.
    return checkpoint(run, h, use_reentrant=False, preserve_rng_state=False)


def _keeping(
    keep: Keep, results: "_Results", layers: Sequence[LayerWeights], index: int, weights: LayerWeights
) -> AbstractContextManager:
    """What a layer runs in, the first time and again, for the sake of its rung."""
    if keep is Keep.INPUT or not torch.is_grad_enabled():
        return nullcontext()
    if keep is Keep.ALL:
        return _ByReference(layers, index, weights)
    return _KeepResults(results, _kept_products(weights) if keep is Keep.PRODUCTS else [])


class _Together(torch.autograd.Function):
    """Identity. In backward no batch goes on to the layer before until all are done with the one after.

    Recomputed layers hold on to their weights until they are through, so these may not be exchanged in between.
    """

    @staticmethod
    def forward(ctx: Any, *hs: Tensor) -> tuple[Tensor, ...]:
        return tuple(h.view_as(h) for h in hs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        return gradients


_aten = torch.ops.aten
_ATTENTION_KERNELS = frozenset(
    {
        _aten._scaled_dot_product_flash_attention.default,
        _aten._scaled_dot_product_efficient_attention.default,
        _aten._scaled_dot_product_cudnn_attention.default,
        _aten._scaled_dot_product_flash_attention_for_cpu.default,
    }
)


@dataclass
class _Results:
    """What a layer's first run keeps for its second, in order."""

    values: deque[Any] = field(default_factory=deque)
    complete: bool = False


class _KeepResults(TorchDispatchMode):
    """Inside, what attention and the products with some weights give is kept; a second time it is handed out.

    The second run does the same operations in the same order, so a queue is enough.
    """

    def __init__(self, results: _Results, weights: Sequence[tuple[int, int]]) -> None:
        """`weights` are the addresses at which those weights lie in this run."""
        super().__init__()
        self._results, self._weights, self._again = results, weights, results.complete

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """Compiled parts of a layer run compiled in here; PyTorch asks."""
        return True

    def __exit__(self, *problem: Any) -> None:
        self._results.complete = True
        super().__exit__(*problem)

    def __torch_dispatch__(self, op: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if not self._keeps(op, args):
            return op(*args, **(kwargs or {}))
        if self._again:
            return self._results.values.popleft()
        result = op(*args, **(kwargs or {}))
        self._results.values.append(tree_map_only(Tensor, Tensor.detach, result))
        return result

    def _keeps(self, op: Any, args: tuple) -> bool:
        if op is _aten.mm.default:
            return any(start <= args[1].data_ptr() < end for start, end in self._weights)
        return op in _ATTENTION_KERNELS


def _kept_products(weights: LayerWeights) -> list[tuple[int, int]]:
    """Which products are worth keeping: all but an MLP's last, which backward does not need."""
    fields = [weights.qkv, weights.o, weights.mlp.gate_up]
    if isinstance(weights.mlp, MoeWeights):
        fields += [weights.mlp.router, weights.mlp.down]
    return [_range(field) for field in fields]


class _ByReference(torch.autograd.graph.saved_tensors_hooks):
    """Inside, autograd notes of a layer's weights which they are; backward asks for the layer again."""

    def __init__(self, layers: Sequence[LayerWeights], index: int, weights: LayerWeights) -> None:
        super().__init__(self._pack, partial(_unpack, layers, index))
        self._ranges = [_range(field) for field in _fields(weights)]

    def _pack(self, tensor: Tensor) -> "Tensor | _Reference":
        address = tensor.data_ptr()
        for number, (start, end) in enumerate(self._ranges):
            if start <= address < end:
                return _Reference(number, (address - start) // tensor.itemsize, tensor.size(), tensor.stride())
        return tensor.detach()  # an output that is kept as it is would hold the graph, which holds it


@dataclass(frozen=True, slots=True)
class _Reference:
    """A view of a layer's tensor number `field`, from its element `offset` on."""

    field: int
    offset: int
    size: Sequence[int]
    stride: Sequence[int]


def _unpack(layers: Sequence[LayerWeights], index: int, packed: Tensor | _Reference) -> Tensor:
    if isinstance(packed, Tensor):
        return packed
    field = _fields(layers[index])[packed.field]
    return field.as_strided(packed.size, packed.stride, field.storage_offset() + packed.offset)


def _fields(weights: LayerWeights) -> list[Tensor]:
    """All tensors of a layer, in a fixed order."""
    mlp = weights.mlp
    own = [weights.input_norm, weights.qkv, weights.q_norm, weights.k_norm, weights.o, weights.post_norm]
    return [*own, mlp.gate_up, mlp.down, *([mlp.router] if isinstance(mlp, MoeWeights) else [])]


def _range(field: Tensor) -> tuple[int, int]:
    """The addresses at which a tensor starts and ends."""
    return field.data_ptr(), field.data_ptr() + field.nbytes
