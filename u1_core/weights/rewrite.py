"""Tensors of a tower that is loaded, read anew from their source into the places that they have."""

from collections.abc import Collection

import torch

from u1_core.model.config import GENERATION, UNDERSTANDING, U1Config
from u1_core.model.views import Generation, Understanding
from u1_core.weights.layout import layer_slices
from u1_core.weights.on_disk import LayersOnDisk
from u1_core.weights.reading import read_places
from u1_core.weights.ring import StreamedLayers
from u1_core.weights.source import TensorSource


@torch.inference_mode(False)
@torch.no_grad()
def rewrite(
    config: U1Config, weights: Generation | Understanding, source: TensorSource, names: Collection[str]
) -> None:
    """Read those of these tensors that are the tower's: on the device, in the host's arena, wherever they are.

    Layers that are read from their file as they are used only forget what they have read ahead. Nothing may be
    computing with the tower.
    """
    tower = GENERATION if isinstance(weights, Generation) else UNDERSTANDING
    places = list(_ends(weights).items())
    if isinstance(weights.layers, StreamedLayers | LayersOnDisk):
        weights.layers.rewrite(source, names)
    else:
        places += [each for i, layer in enumerate(weights.layers) for each in layer_slices(config, tower, i, layer)]
    read_places(source, (each for each in places if each[0] in names))


def _ends(weights: Generation | Understanding) -> dict[str, torch.Tensor]:
    """What is not in the layers and may change, by its name in the checkpoint."""
    if isinstance(weights, Generation):
        return {"language_model.model.norm_mot_gen.weight": weights.norm, **weights.modules}
    return {"language_model.model.norm.weight": weights.norm, **weights.vision}
