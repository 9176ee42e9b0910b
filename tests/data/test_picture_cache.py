from pathlib import Path

import pytest
import torch
from PIL import Image

from u1_core.data.folder import Sample
from u1_core.data.picture_cache import PictureCache, decode_for_training
from u1_core.errors import U1Error

SAMPLES = [Sample(f"{i}.png", Path(f"{i}.png"), "") for i in range(3)]


@pytest.fixture
def decoded():
    """The files that were decoded, in order, and a decoder that makes 12-byte pictures of their number."""
    paths = []

    def decode(path):
        paths.append(path.name)
        return torch.full((3, 2, 2), int(path.stem), dtype=torch.uint8)

    return paths, decode


def test_pictures_are_kept_while_the_budget_lasts(decoded):
    paths, decode = decoded
    cache = PictureCache(SAMPLES, decode, budget_bytes=24)
    assert cache.check() == {}
    assert [cache[i].max().item() for i in (0, 1, 2, 2, 0)] == [0, 1, 2, 2, 0]
    assert paths == ["0.png", "1.png", "2.png", "2.png", "2.png"]


def test_unreadable_pictures_are_named_and_the_rest_still_looked_at():
    def decode(path):
        if path.stem != "1":
            raise U1Error(f"{path}: is truncated")
        return torch.zeros(3, 2, 2, dtype=torch.uint8)

    done = []
    cache = PictureCache(SAMPLES, decode, budget_bytes=100)
    assert cache.check(lambda *progress: done.append(progress)) == {"0.png": "is truncated", "2.png": "is truncated"}
    assert done == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize(
    ("size", "snap", "expected"),
    [
        ((250, 100), True, (88, 40)),
        ((250, 100), False, (96, 40)),
        ((41, 30), False, (40, 32)),
        ((41, 30), True, (72, 56)),
    ],
)
def test_a_picture_is_scaled_to_its_size_in_whole_tokens(tmp_path, size, snap, expected):
    """Left half black, right half white: it stays so whatever is cropped. Without snapping nothing is made larger."""
    image = Image.new("RGB", size, "black")
    image.paste("white", (size[0] // 2, 0, *size))
    image.save(tmp_path / "a.png")
    picture = decode_for_training(tmp_path / "a.png", max_pixels=64 * 64, snap=snap, token_pixels=8)
    width, height = expected
    assert (picture.dtype, tuple(picture.shape)) == (torch.uint8, (3, height, width))
    assert picture[:, :, : width // 4].max() == 0
    assert picture[:, :, -width // 4 :].min() == 255


def test_a_picture_that_is_too_narrow_is_refused_unless_it_is_snapped(tmp_path):
    Image.new("RGB", (1000, 2)).save(tmp_path / "a.png")
    with pytest.raises(U1Error, match="a picture of 1000x2 is too narrow"):
        decode_for_training(tmp_path / "a.png", 64 * 64, snap=False, token_pixels=8)
    assert decode_for_training(tmp_path / "a.png", 64 * 64, snap=True, token_pixels=8).shape[0] == 3
