"""One decoder layer: a plain function of the activations and a view of the layer's weights."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from u1_core.model.config import GENERATION, U1Config
from u1_core.model.feed_forward import feed_forward
from u1_core.model.linear import LowRankTerms
from u1_core.model.product import product
from u1_core.model.recall import ONCE, RunOnce
from u1_core.model.rope import rms_norm, turn_heads
from u1_core.model.views import LayerWeights

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]
"""q (N, heads, head_dim), k and v (N, kv_heads, head_dim) of packed tokens -> (N, heads * head_dim)."""


def decoder_layer(
    config: U1Config,
    tower: str,
    weights: LayerWeights,
    h: Tensor,
    rope: tuple[Tensor, Tensor],
    attention: Attention,
    terms: LowRankTerms,
    recall: RunOnce = ONCE,
) -> tuple[Tensor, Tensor, Tensor]:
    """Attention, then feed-forward, each on its norm and added to what came in.

    h (N, width) of packed tokens; rope from `rope_table`; `attention` knows who sees whom; `recall` what is kept for
    another run. Returns h (N, width) and this layer's K and V of the tokens, each (N, kv_heads, head_dim). Where
    gradients are off, the new h is written over the one that came in.
    """
    eps = config.rms_norm_eps
    q_rows, kv_rows = config.heads * config.head_dim, config.kv_heads * config.head_dim
    rows = {"q_proj": q_rows, "k_proj": kv_rows, "v_proj": kv_rows}
    parts = [(count, terms.get(f"self_attn.{name}", ())) for name, count in rows.items()]
    qkv = product(rms_norm(h, weights.input_norm, eps), weights.qkv, parts, recall=recall)
    q, k, v = turn_heads(qkv, weights.q_norm, weights.k_norm, eps, rope, config.kv_heads)
    with recall.attention():
        seen = attention(q, k, v)
    h = product(seen, weights.o, [(config.width, terms.get("self_attn.o_proj", ()))], residual=h, recall=recall)
    moe = config.moe_gen if tower == GENERATION else config.moe
    h = feed_forward(rms_norm(h, weights.post_norm, eps), weights.mlp, moe, terms, h, recall)
    return h, k, v


def grid_positions(t: Sequence[int], rows: int, columns: int, device: torch.device) -> Tensor:
    """Positions of pictures of rows x columns tokens at the given t: (3, len(t) * rows * columns), row by row."""
    cells = torch.arange(rows * columns, device=device).repeat(len(t))
    t_axis = torch.tensor(t, device=device).repeat_interleave(rows * columns)
    return torch.stack([t_axis, cells // columns, cells % columns])
