"""Attention over tokens packed end to end.

Every pass works on one row of N tokens, whatever they are: prompts of different lengths, guidance branches, pictures of
a batch. Products over features need not know. Attention does: a `Segment` says which queries see which keys, so that
no mask is needed but for the causal tail of a text that continues something.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from u1_core.kernels.attention import quickest

KeysValues = Sequence[tuple[Tensor, Tensor]]
"""Earlier tokens of one layer: (K, V) pairs, each (tokens, kv_heads, head_dim)."""


@dataclass(frozen=True, slots=True)
class Segment:
    """Queries `start:end` of the packed tokens and what they see.

    They see all of `past` (an index into the pass's earlier tokens; None for none) and the packed keys of `keys`,
    which are ranges of rows. When `causal`, the last range must end with the queries themselves, and each of them sees
    itself and what is before it.
    """

    start: int
    end: int
    keys: tuple[tuple[int, int], ...]
    causal: bool
    past: int | None = None


def segmented(segments: Sequence[Segment], pasts: Sequence[KeysValues]) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """One layer's attention over these segments, as `decoder_layer` takes it."""
    return lambda q, k, v: attend(q, k, v, segments, pasts)


def attend(q: Tensor, k: Tensor, v: Tensor, segments: Sequence[Segment], pasts: Sequence[KeysValues]) -> Tensor:
    """Scaled dot-product attention with grouped heads.

    q (N, heads, head_dim); k, v (N, kv_heads, head_dim); `pasts` this layer's earlier K/V. The segments cover the
    queries in order. Returns (N, heads * head_dim).
    """
    outputs = []
    for segment in segments:
        past = pasts[segment.past] if segment.past is not None else ()
        keys = [k[start:end] for start, end in segment.keys]
        values = [v[start:end] for start, end in segment.keys]
        keys = torch.cat([*(pair[0] for pair in past), *keys]) if past or len(keys) > 1 else keys[0]
        values = torch.cat([*(pair[1] for pair in past), *values]) if past or len(values) > 1 else values[0]
        outputs.append(_attend_one(q[segment.start : segment.end], keys, values, segment.causal))
    return (torch.cat(outputs) if len(outputs) > 1 else outputs[0]).flatten(1)


def _attend_one(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
    """q (n, heads, head_dim) over k, v (m, kv_heads, head_dim), m >= n; causal is aligned to the end of both."""
    n, m = len(q), len(k)
    grouped = q.shape[1] != k.shape[1]
    q, k, v = (x.transpose(0, 1).unsqueeze(0) for x in (q, k, v))
    if not causal or n == 1:
        with quickest(q, k):
            out = F.scaled_dot_product_attention(q, k, v, enable_gqa=grouped)
    elif n == m:
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)
    else:
        # A mask with grouped heads takes SDPA's slow path: repeat the heads instead, the tails are short.
        k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
        mask = torch.ones(n, m, dtype=torch.bool, device=q.device).tril(m - n)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return out.squeeze(0).transpose(0, 1)
