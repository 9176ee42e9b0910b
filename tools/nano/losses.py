"""The losses of U1-nano's training, for batches of prompts padded to one length: pictures drawn, and words said.

The passes are the engine's own layer by layer; only the attention is this file's, since here all rows of a batch have
the same shape and can go through it together.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from u1_core.data.pictures import IMAGENET_MEAN, IMAGENET_STD
from u1_core.model.config import GENERATION, UNDERSTANDING, VISION, U1Config
from u1_core.model.generation import embed_noisy_picture
from u1_core.model.head import predict_pixels
from u1_core.model.layer import decoder_layer
from u1_core.model.linear import TowerTerms
from u1_core.model.pixels import to_patches
from u1_core.model.rope import rms_norm, rope_table
from u1_core.model.views import Generation, Understanding
from u1_core.model.vision import embed_patches


@dataclass(frozen=True)
class Prompts:
    """Prompts of one task: a head that they share, and their tails, which begin with their pictures if any."""

    head: Tensor
    """(H,) int64."""
    ids: Tensor
    """(B, T) int64, padded at the end."""
    lengths: Tensor
    """(B,): tokens that count, the head's included."""
    picture: Tensor | None = None
    """(B, 3, H, W) input pictures in [0, 1]."""


@dataclass(frozen=True)
class Prefixes:
    """The K/V of prompts, each layer's (rows, tokens, kv_heads, head_dim): one row of heads, B rows of tails."""

    heads: list[tuple[Tensor, Tensor]]
    tails: list[tuple[Tensor, Tensor]]
    seen: Tensor
    """(B, H + T): what is not padding."""
    next_t: Tensor
    """(B,)."""


def prefix_pass(config: U1Config, weights: Understanding, prompts: Prompts) -> tuple[Tensor, Prefixes]:
    """The understanding tower over prompts: hidden states of the tails (B, T, width), and the K/V of all."""
    (rows, length), start = prompts.ids.shape, len(prompts.head)
    device = prompts.ids.device
    h, count = F.embedding(prompts.ids, weights.embed_tokens), 0
    if prompts.picture is not None:
        patches = to_patches(_imagenet(prompts.picture), config.patch_size)
        tokens = embed_patches(config, weights.vision, VISION, patches)
        count = tokens.shape[1]
        h = torch.cat([tokens, h[:, count:]], dim=1)
    at, head_at = torch.arange(length, device=device), torch.arange(start, device=device)
    positions = _tail_positions(config, at, start, count, prompts.picture)
    own = (at[None] <= at[:, None]) | ((at[None] < count) & (at[:, None] < count))
    mask = F.pad(own, (start, 0), value=True)
    zero = torch.zeros_like(head_at)
    head_rope, rope = (rope_table(config, p) for p in (torch.stack([head_at, zero, zero]), positions.repeat(1, rows)))
    head_h, h = F.embedding(prompts.head, weights.embed_tokens), h.flatten(0, 1)
    heads, tails = [], []
    for layer in weights.layers:
        attention = batched_attention(1, lambda k, v: (k, v), None, causal=True)
        head_h, *kv = decoder_layer(config, UNDERSTANDING, layer, head_h, head_rope, attention, {})
        heads.append(tuple(x[None] for x in kv))
        attention = batched_attention(rows, _after(rows, heads[-1]), mask, causal=False)
        h, *kv = decoder_layer(config, UNDERSTANDING, layer, h, rope, attention, {})
        tails.append(tuple(x.unflatten(0, (rows, -1)) for x in kv))
    seen = torch.arange(start + length, device=device) < prompts.lengths[:, None]
    next_t = prompts.lengths - max(0, count - 1)
    hidden = rms_norm(h, weights.norm, config.rms_norm_eps).unflatten(0, (rows, -1))
    return hidden, Prefixes(heads, tails, seen, next_t)


def _tail_positions(config: U1Config, at: Tensor, start: int, count: int, picture: Tensor | None) -> Tensor:
    """(3, T): a picture's `count` tokens share one t and have rows and columns; what follows goes on from there."""
    inside = at < count
    t = start + torch.where(inside, 0, at - max(0, count - 1))
    columns = picture.shape[-1] // config.token_pixels if picture is not None else 1
    cell = torch.where(inside, at, 0)
    return torch.stack([t, cell // columns, cell % columns])


def _after(rows: int, *earlier: tuple[Tensor, Tensor]) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Puts these K and V before a layer's own; a single row is shown to all."""

    def extend(k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        keys = [pair[0].expand(rows, -1, -1, -1) for pair in earlier]
        values = [pair[1].expand(rows, -1, -1, -1) for pair in earlier]
        return torch.cat([*keys, k], dim=1), torch.cat([*values, v], dim=1)

    return extend


def picture_loss(
    config: U1Config,
    weights: Generation,
    prefixes: Prefixes,
    x0: Tensor,
    noise: Tensor,
    t: Tensor,
    unconditional: Prefixes | None = None,
    dropped: Tensor | None = None,
) -> Tensor:
    """v-loss of pictures x0 (B, 3, H, W) in [-1, 1] at t (B,), noise already scaled.

    Rows that are `dropped` see the one row of `unconditional` in place of their prompt.
    """
    t4 = t[:, None, None, None]
    x_pred = draw_pass(config, weights, prefixes, t4 * x0 + (1 - t4) * noise, t, unconditional, dropped)
    return ((x_pred - x0) / (1 - t4).clamp(min=config.t_eps)).square().mean()


def draw_pass(
    config: U1Config,
    weights: Generation,
    prefixes: Prefixes,
    z: Tensor,
    t: Tensor,
    unconditional: Prefixes | None = None,
    dropped: Tensor | None = None,
    terms: TowerTerms | None = None,
) -> Tensor:
    """x_pred (B, 3, H, W), fp32: the generation pass over batched prefixes of which the padding is not seen."""
    terms = terms or TowerTerms.none(config.layers)
    rows, side = len(z), config.token_pixels
    height, width = z.shape[2] // side, z.shape[3] // side
    seen, next_t = prefixes.seen, prefixes.next_t
    if unconditional is not None:
        other = unconditional.seen & dropped[:, None]
        seen, next_t = (
            torch.cat([seen & ~dropped[:, None], other], dim=1),
            torch.where(dropped, unconditional.next_t, next_t),
        )
    mask = F.pad(seen, (0, height * width), value=True)[:, None, None, :]
    h = embed_noisy_picture(config, weights, z, t).flatten(0, 1)
    cells = torch.arange(height * width, device=z.device).repeat(rows)
    rope = rope_table(config, torch.stack([next_t.repeat_interleave(height * width), cells // width, cells % width]))
    for index, layer in enumerate(weights.layers):
        earlier = [prefixes.heads[index], prefixes.tails[index]]
        if unconditional is not None:
            earlier += [unconditional.heads[index], unconditional.tails[index]]
        attention = batched_attention(rows, _after(rows, *earlier), mask, causal=False)
        h = decoder_layer(config, GENERATION, layer, h, rope, attention, terms.layers[index])[0]
    h = rms_norm(h, weights.norm, config.rms_norm_eps).unflatten(0, (rows, -1))
    return predict_pixels(config, weights.modules, h, height, width, terms.modules).float()


def words_loss(weights: Understanding, hidden: Tensor, prompts: Prompts, answer_from: Tensor) -> Tensor:
    """Cross-entropy of the tokens from `answer_from` (B,) to each prompt's end, both counted from the head's start."""
    rows, length = prompts.ids.shape
    at = torch.arange(1, length, device=prompts.ids.device) + len(prompts.head)
    counts = (at >= answer_from[:, None]) & (at < prompts.lengths[:, None])
    logits = F.linear(hidden[:, :-1], weights.lm_head).float()
    losses = F.cross_entropy(logits.flatten(0, 1), prompts.ids[:, 1:].flatten(), reduction="none").view(rows, -1)
    return (losses * counts).sum() / counts.sum()


def batched_attention(
    rows: int, extend: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], mask: Tensor | None, causal: bool
) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Attention of `rows` sequences of one length, packed end to end; `extend` puts earlier keys before theirs."""

    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (x.unflatten(0, (rows, -1)) for x in (q, k, v))
        k, v = extend(k, v)
        repeat = q.shape[2] // k.shape[2]
        q, k, v = q.transpose(1, 2), *(x.repeat_interleave(repeat, dim=2).transpose(1, 2) for x in (k, v))
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
        return out.transpose(1, 2).flatten(2).flatten(0, 1)

    return attention


def _imagenet(picture: Tensor) -> Tensor:
    mean, std = (
        torch.tensor(values, device=picture.device).view(1, 3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD)
    )
    return (picture - mean) / std
