"""The generation pass: a noisy picture, its timestep and the prompt's K/V -> the clean picture it predicts."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from u1_core.model.attention import Segment, segmented
from u1_core.model.config import GENERATION, NOISE_SCALE_EMBEDDER, TIMESTEP_EMBEDDER, VISION_GEN, U1Config
from u1_core.model.embedders import embed_scalar
from u1_core.model.head import predict_pixels
from u1_core.model.layer import Attention, grid_positions
from u1_core.model.linear import NO_TERMS, TowerTerms
from u1_core.model.pixels import to_patches
from u1_core.model.rope import rms_norm, rope_table
from u1_core.model.stack import Keep, Packed, ladder, run_layers
from u1_core.model.views import Generation, PrefixKV
from u1_core.model.vision import embed_patches


@dataclass(frozen=True)
class Pass:
    """What one generation pass is to look at; see `generation_pass` for shapes and meaning."""

    z: Tensor
    t: Tensor
    prefixes: Sequence[PrefixKV]
    terms: TowerTerms | None = None
    ends: Generation | None = None
    """Whose norm and modules stand around the layers; None for those of the weights that all passes share."""


def generation_pass(
    config: U1Config,
    weights: Generation,
    z: Tensor,
    t: Tensor,
    prefixes: Sequence[PrefixKV],
    terms: TowerTerms | None = None,
    recompute: bool = False,
    keep_last: int = 0,
) -> Tensor:
    """Predict x0 from z_t.

    z (B, 3, H, W) is t * x0 + (1 - t) * noise with x0 in [-1, 1]; t (B,), where 1 is clean and 0 is noise; both fp32.
    `prefixes` has K * B entries: row r of the result is picture r % B seen with prefix r, so that guidance branches
    share one batch. `recompute` keeps only each layer's input for backward and computes the rest again, for all but the
    last `keep_last` layers. Returns x_pred (K * B, 3, H, W), fp32.
    """
    kept = ladder(config.layers, recompute, keep_last)
    return generation_passes(config, weights, [Pass(z, t, prefixes, terms)], kept)[0]


def generation_passes(
    config: U1Config, weights: Generation, passes: Sequence[Pass], kept: Sequence[Keep] | None = None
) -> list[Tensor]:
    """Several passes, of any sizes, each layer brought in once for all of them: x_pred of each, fp32.

    `kept` says for each layer what is kept for backward; everything by default. One backward of the summed losses does
    a layer for all passes before the next, too, and gives the sum of the gradients that they would give apart.
    """
    packed = [_pack(config, each.ends or weights, each) for each in passes]
    hidden = run_layers(config, GENERATION, weights.layers, packed, kept)
    return [_unpack(config, each.ends or weights, each, h) for each, h in zip(passes, hidden, strict=True)]


def _grid(config: U1Config, z: Tensor) -> tuple[int, int]:
    """Rows and columns of tokens of a picture (B, 3, H, W)."""
    return z.shape[2] // config.token_pixels, z.shape[3] // config.token_pixels


def _pack(config: U1Config, weights: Generation, each: Pass) -> Packed:
    """A pass's pictures, one for each prefix, as packed tokens."""
    prefixes, (rows, columns) = each.prefixes, _grid(config, each.z)
    copies, tokens = len(prefixes) // len(each.z), rows * columns
    h = embed_noisy_picture(config, weights, each.z, each.t).repeat(copies, 1, 1).flatten(0, 1)
    positions = grid_positions([prefix.next_t for prefix in prefixes], rows, columns, each.z.device)
    spans = [(row * tokens, (row + 1) * tokens) for row in range(len(prefixes))]
    segments = [Segment(*span, keys=(span,), causal=False, past=row) for row, span in enumerate(spans)]

    def attention(index: int) -> Attention:
        return segmented(segments, [prefix.layer(index) for prefix in prefixes])

    terms = each.terms or TowerTerms.none(config.layers)
    return Packed(h, rope_table(config, positions), attention, terms.layers)


def _unpack(config: U1Config, weights: Generation, each: Pass, h: Tensor) -> Tensor:
    """What came out of the layers as pictures (K * B, 3, H, W)."""
    h = rms_norm(h, weights.norm, config.rms_norm_eps).unflatten(0, (len(each.prefixes), -1))
    terms = each.terms.modules if each.terms else NO_TERMS
    return predict_pixels(config, weights.modules, h, *_grid(config, each.z), terms).float()


def embed_noisy_picture(config: U1Config, weights: Generation, z: Tensor, t: Tensor) -> Tensor:
    """The generation tower's input: z (B, 3, H, W) and t (B,) -> (B, tokens, width)."""
    picture = embed_patches(config, weights.modules, VISION_GEN, to_patches(z, config.patch_size))
    time = embed_scalar(weights.modules, TIMESTEP_EMBEDDER, t)
    if config.noise_scale_embedding:
        share = config.noise_scale_for(picture.shape[1]) / config.noise_scale_max
        time = time + embed_scalar(weights.modules, NOISE_SCALE_EMBEDDER, torch.full_like(t, share))
    return picture + time[:, None]
