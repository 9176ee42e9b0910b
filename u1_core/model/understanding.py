"""The understanding pass: packed tokens of text and pictures -> K/V, hidden states, logits."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from u1_core.model.attention import Segment, segmented
from u1_core.model.config import UNDERSTANDING, VISION, U1Config
from u1_core.model.layer import decoder_layer
from u1_core.model.linear import TowerTerms
from u1_core.model.rope import rms_norm, rope_table
from u1_core.model.views import PrefixKV, Understanding
from u1_core.model.vision import embed_patches


def understanding_pass(
    config: U1Config,
    weights: Understanding,
    h: Tensor,
    positions: Tensor,
    segments: Sequence[Segment],
    pasts: Sequence[PrefixKV] = (),
    terms: TowerTerms | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Run packed embeddings h (N, width) at positions (3, N) through the understanding tower, layer by layer.

    `segments` say who sees what; their `past` counts into `pasts`. Returns the hidden states after the final norm
    (N, width), and K and V, each (layers, N, kv_heads, head_dim).
    """
    terms = terms or TowerTerms.none(config.layers)
    rope = rope_table(config, positions)
    shape = (config.layers, len(h), config.kv_heads, config.head_dim)
    k_all, v_all = h.new_empty(shape), h.new_empty(shape)
    h = h.clone()  # a layer writes over it
    for index in range(config.layers):
        attention = segmented(segments, [past.layer(index) for past in pasts])
        h, k, v = decoder_layer(config, UNDERSTANDING, weights.layers[index], h, rope, attention, terms.layers[index])
        k_all[index], v_all[index] = k, v
    return rms_norm(h, weights.norm, config.rms_norm_eps), k_all, v_all


def embed_tokens(weights: Understanding, ids: Tensor) -> Tensor:
    """Token ids (N,) -> embeddings (N, width) on the tower's device. The table itself may live elsewhere."""
    return F.embedding(ids.to(weights.embed_tokens.device), weights.embed_tokens).to(weights.norm.device)


def embed_picture(config: U1Config, weights: Understanding, patches: Tensor) -> Tensor:
    """An input picture's patches (rows, columns, 3 * patch²), ImageNet-normalised -> tokens (n, width)."""
    return embed_patches(config, weights.vision, VISION, patches.unsqueeze(0).to(weights.norm.device)).squeeze(0)


def logits(weights: Understanding, hidden: Tensor) -> Tensor:
    """Hidden states after the final norm (…, width) -> logits (…, vocabulary), fp32. lm_head may lie elsewhere."""
    return F.linear(hidden, weights.lm_head.to(hidden.device)).float()
