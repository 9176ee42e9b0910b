"""A stack of layers over one or several batches of packed tokens, and what of it is kept for backward.

The layers may be resident, or come and go: they are asked for one after the other, forward, and in a pass that is
differentiated once more each in reverse. Autograd never keeps a layer's weights. It keeps a layer's input and, by the
rung of the ladder that the layer stands on, more, so that less is computed again.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from enum import Enum
from functools import partial
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from u1_core.model.config import U1Config
from u1_core.model.layer import Attention, decoder_layer
from u1_core.model.linear import LowRankTerms
from u1_core.model.recall import ONCE, Recall, RunOnce
from u1_core.model.views import LayerWeights, MoeWeights


class Keep(Enum):
    """The ladder: what of a layer is kept for its backward, from least memory to least work."""

    INPUT = "input"
    """Only what came in; all else is computed again."""
    ATTENTION = "attention"
    """Also what the attention kernel gave, which is not run again."""
    PRODUCTS = "products"
    """Also every product with the layer's weights, but for the last; what lies between them is computed again."""
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
    Backward, too, is done with a layer for all batches before it turns to the one before it. Where gradients are off,
    the batches' h are written over.
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
    def run(h: Tensor, recall: RunOnce = ONCE) -> Tensor:
        # Asked for inside: a second time, in backward, the layer may lie elsewhere.
        weights, attention = layers[index], batch.attention(index)
        by_reference = keep is Keep.ALL and torch.is_grad_enabled()
        with _ByReference(layers, index, weights) if by_reference else nullcontext():
            return decoder_layer(config, tower, weights, h, batch.rope, attention, batch.terms[index], recall)[0]

    if keep is Keep.ALL or not torch.is_grad_enabled():
        return run(h)
    recall = Recall(products=keep is Keep.PRODUCTS, attention=keep is not Keep.INPUT)
    # No dropout draws from the global generator, so its state need not be kept for the second time round.
    result = checkpoint(run, h, recall, use_reentrant=False, preserve_rng_state=False)
    recall.next_run()
    return result


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
