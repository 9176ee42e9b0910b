import math

import torch

from u1_core.model.config import NOISE_SCALE_EMBEDDER, TIMESTEP_EMBEDDER
from u1_core.model.embedders import embed_scalar, sinusoid


def test_sinusoid_closed_form():
    values = sinusoid(torch.tensor([0.0, 0.3, 1.0]))
    assert values.shape == (3, 256)
    for row, t in enumerate((0.0, 0.3, 1.0)):
        for i in (0, 1, 64, 127):
            angle = t * 10000 ** (-i / 128)
            assert abs(values[row, i].item() - math.cos(angle)) < 1e-6
            assert abs(values[row, 128 + i].item() - math.sin(angle)) < 1e-6


def test_sinusoid_is_fp32_for_any_input():
    assert sinusoid(torch.tensor([0.5], dtype=torch.bfloat16)).dtype == torch.float32


def test_times_closer_than_bf16_resolves_stay_apart():
    """0.999 and 0.9995 are both 1 in bf16; here they differ by what cosine and sine say."""
    a, b = sinusoid(torch.tensor([0.999, 0.9995])).double()
    assert abs((a - b)[0].item() - (math.cos(0.999) - math.cos(0.9995))) < 1e-7
    assert abs((a - b)[128].item() - (math.sin(0.999) - math.sin(0.9995))) < 1e-7


def test_both_embedders(kind, tiny, slow, close):
    model = tiny(kind)
    for prefix in (TIMESTEP_EMBEDDER, NOISE_SCALE_EMBEDDER):
        for value in (0.0, 0.125, 0.97):
            ours = embed_scalar(model.generation.modules, prefix, torch.tensor([value]))
            assert close(ours[0], slow(kind).embed(prefix, value))
