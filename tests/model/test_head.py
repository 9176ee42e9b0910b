from types import MappingProxyType

import pytest
import torch
import torch.nn.functional as F

from u1_core.model.head import predict_pixels
from u1_core.model.linear import LowRank


def hidden(batch: int, tokens: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(batch, tokens, 64, generator=torch.Generator().manual_seed(seed))


def test_equals_the_plain_head(kind, tiny, slow, close):
    model = tiny(kind)
    h = hidden(2, 6)
    ours = predict_pixels(model.config, model.generation.modules, h, 2, 3, {})
    side = model.config.token_pixels
    assert ours.shape == (2, 3, 2 * side, 3 * side)
    for row in range(2):
        assert close(ours[row], slow(kind).head(h[row].double(), 2, 3))


def test_shuffle_of_the_plain_head_is_torchs(naive_shuffle):
    x = torch.randn(16, 3, 5)
    assert torch.equal(naive_shuffle(x, 2), F.pixel_shuffle(x, 2))


def test_a_single_output_lands_on_its_pixel(tiny):
    """Output number 3 * (row * 8 + column) + channel of a token of 8 x 8 pixels."""
    model = tiny("u1")
    modules = dict(model.generation.modules)
    modules["fm_modules.fm_head.2.weight"] = torch.zeros(192, 128)
    modules["fm_modules.fm_head.2.bias"] = torch.zeros(192)
    modules["fm_modules.fm_head.2.bias"][3 * (5 * 8 + 6) + 1] = 1.0
    picture = predict_pixels(model.config, MappingProxyType(modules), hidden(1, 2), 1, 2, {})
    assert picture.nonzero().tolist() == [[0, 1, 5, 6], [0, 1, 5, 14]]


@pytest.mark.parametrize("part", ["0", "2"])
def test_terms_of_the_two_linear_maps(tiny, close, part):
    model = tiny("u1")
    path = f"fm_modules.fm_head.{part}"
    rows, columns = model.generation.modules[f"{path}.weight"].shape
    generator = torch.Generator().manual_seed(3)
    term = LowRank(torch.randn(2, columns, generator=generator), torch.randn(rows, 2, generator=generator), scale=0.1)
    modules = dict(model.generation.modules)
    modules[f"{path}.weight"] = modules[f"{path}.weight"] + 0.1 * term.up @ term.down
    h = hidden(1, 4)
    expected = predict_pixels(model.config, modules, h, 2, 2, {})
    assert close(predict_pixels(model.config, model.generation.modules, h, 2, 2, {path: (term,)}), expected)
