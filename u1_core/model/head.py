"""The head: hidden states of picture tokens to pixels. U1 has two linear maps, U1.5 two convolutions on the grid."""

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor

from u1_core.model.config import FM_HEAD, U1Config
from u1_core.model.linear import LowRankTerms, linear
from u1_core.model.pixels import from_output_patches


def predict_pixels(
    config: U1Config, modules: Mapping[str, Tensor], h: Tensor, rows: int, columns: int, terms: LowRankTerms
) -> Tensor:
    """(B, rows * columns, width) -> x_pred (B, 3, H, W), in the weights' dtype."""
    if config.pixel_head:
        return _pixel_head(modules, h.transpose(1, 2).unflatten(-1, (rows, columns)))
    for part, activation in (("0", F.gelu), ("2", None)):
        path = f"{FM_HEAD}.{part}"
        h = linear(h, modules[f"{path}.weight"], modules[f"{path}.bias"], terms.get(path, ()))
        h = activation(h) if activation else h
    return from_output_patches(h, rows, columns)


def _pixel_head(modules: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """(B, width, rows, columns) -> (B, 3, 32 * rows, 32 * columns)."""
    for conv in ("conv1", "conv2"):
        weight, bias = modules[f"{FM_HEAD}.{conv}.weight"], modules[f"{FM_HEAD}.{conv}.bias"]
        x = F.conv2d(F.pixel_shuffle(x, 2), weight, bias, padding=1)
        x = F.gelu(x) if conv == "conv1" else x
    return F.pixel_shuffle(x, 8)
