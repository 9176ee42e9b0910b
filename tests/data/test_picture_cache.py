from pathlib import Path

import pytest
import torch

from u1_core.data.folder import Sample
from u1_core.data.picture_cache import PictureCache
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
