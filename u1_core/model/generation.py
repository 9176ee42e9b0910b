"""The generation pass: a noisy picture, its timestep and the prompt's K/V -> the clean picture it predicts."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from u1_core.model.attention import Segment, segmented
from u1_core.model.config import GENERATION, NOISE_SCALE_EMBEDDER, TIMESTEP_EMBEDDER, VISION_GEN, U1Config
from u1_core.model.embedders import embed_scalar
from u1_core.model.head import predict_pixels
from u1_core.model.layer import decoder_layer, grid_positions
from u1_core.model.linear import TowerTerms
from u1_core.model.pixels import to_patches
from u1_core.model.rope import rms_norm, rope_table
from u1_core.model.views import Generation, PrefixKV
from u1_core.model.vision import embed_patches


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
    batch, _, height, width = z.shape
    rows, columns = height // config.token_pixels, width // config.token_pixels
    tokens, copies = rows * columns, len(prefixes) // batch
    terms = terms or TowerTerms.none(config.layers)

    h = embed_noisy_picture(config, weights, z, t).repeat(copies, 1, 1).flatten(0, 1)
    positions = grid_positions([prefix.next_t for prefix in prefixes], rows, columns, z.device)
    rope = rope_table(config, positions)
    spans = [(row * tokens, (row + 1) * tokens) for row in range(len(prefixes))]
    segments = [Segment(*span, keys=(span,), causal=False, past=row) for row, span in enumerate(spans)]

    def run_layer(index: int, h: Tensor) -> Tensor:
        attention = segmented(segments, [prefix.layer(index) for prefix in prefixes])
        return decoder_layer(config, GENERATION, weights.layers[index], h, rope, attention, terms.layers[index])[0]

    for index in range(config.layers):
        # No dropout draws from the global generator, so its state need not be kept for the second time round.
        if recompute and index < config.layers - keep_last:
            h = checkpoint(run_layer, index, h, use_reentrant=False, preserve_rng_state=False)
        else:
            h = run_layer(index, h)
    h = rms_norm(h, weights.norm, config.rms_norm_eps).unflatten(0, (len(prefixes), tokens))
    return predict_pixels(config, weights.modules, h, rows, columns, terms.modules).float()


def embed_noisy_picture(config: U1Config, weights: Generation, z: Tensor, t: Tensor) -> Tensor:
    """The generation tower's input: z (B, 3, H, W) and t (B,) -> (B, tokens, width)."""
    picture = embed_patches(config, weights.modules, VISION_GEN, to_patches(z, config.patch_size))
    time = embed_scalar(weights.modules, TIMESTEP_EMBEDDER, t)
    if config.noise_scale_embedding:
        share = config.noise_scale_for(picture.shape[1]) / config.noise_scale_max
        time = time + embed_scalar(weights.modules, NOISE_SCALE_EMBEDDER, torch.full_like(t, share))
    return picture + time[:, None]
