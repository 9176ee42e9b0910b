"""One decoder layer: a plain function of the activations and a view of the layer's weights."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from u1_core.model.config import GENERATION, U1Config
from u1_core.model.feed_forward import feed_forward
from u1_core.model.linear import LowRankTerms, add_terms, linear
from u1_core.model.rope import norm_and_rotate, rms_norm
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
) -> tuple[Tensor, Tensor, Tensor]:
    """Attention, then feed-forward, each on its norm and added to what came in.

    h (N, width) of packed tokens; rope from `rope_table`; `attention` knows who sees whom. Returns h (N, width) and
    this layer's K and V of the tokens, each (N, kv_heads, head_dim).
    """
    eps = config.rms_norm_eps
    x = rms_norm(h, weights.input_norm, eps)
    q, k, v = _project_qkv(config, x, weights.qkv, terms)
    q = norm_and_rotate(q, weights.q_norm, eps, rope)
    k = norm_and_rotate(k, weights.k_norm, eps, rope)
    h = h + linear(attention(q, k, v), weights.o, terms=terms.get("self_attn.o_proj", ()))
    moe = config.moe_gen if tower == GENERATION else config.moe
    h = h + feed_forward(rms_norm(h, weights.post_norm, eps), weights.mlp, moe, terms)
    return h, k, v


def _project_qkv(config: U1Config, x: Tensor, qkv: Tensor, terms: LowRankTerms) -> list[Tensor]:
    """q, k and v in one product: (N, width) -> three tensors (N, heads or kv_heads, head_dim)."""
    widths = [config.heads * config.head_dim, config.kv_heads * config.head_dim, config.kv_heads * config.head_dim]
    parts = F.linear(x, qkv).split(widths, dim=-1)
    return [
        add_terms(part, x, terms.get(f"self_attn.{name}", ())).unflatten(-1, (-1, config.head_dim))
        for name, part in zip(("q_proj", "k_proj", "v_proj"), parts, strict=True)
    ]


def grid_positions(t: Sequence[int], rows: int, columns: int, device: torch.device) -> Tensor:
    """Positions of pictures of rows x columns tokens at the given t: (3, len(t) * rows * columns), row by row."""
    cells = torch.arange(rows * columns, device=device).repeat(len(t))
    t_axis = torch.tensor(t, device=device).repeat_interleave(rows * columns)
    return torch.stack([t_axis, cells // columns, cells % columns])
