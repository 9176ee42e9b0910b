import threading
import time

import numpy as np
import pytest
import torch
from PIL import Image

from u1_core.data.dataset import open_dataset
from u1_core.data.framing import Framing
from u1_core.data.picture_cache import PictureCache, TrainingPicture, decode_picture, training_pictures
from u1_core.errors import U1Error


@pytest.fixture
def decoded():
    """The numbers that were decoded, in order, and a decoder that makes 12-byte pictures of their number."""
    numbers = []

    def decode(number):
        numbers.append(number)
        return TrainingPicture(torch.full((3, 2, 2), number, dtype=torch.uint8))

    return numbers, decode


def test_pictures_are_kept_while_the_budget_lasts(decoded):
    numbers, decode = decoded
    cache = PictureCache(decode, budget_bytes=24)
    assert [cache[i].max().item() for i in (0, 1, 2, 2, 0)] == [0, 1, 2, 2, 0]
    assert numbers == [0, 1, 2, 2]


def test_a_mask_counts_against_the_budget():
    picture = TrainingPicture(torch.zeros(3, 2, 2, dtype=torch.uint8), torch.zeros(2, 2, dtype=torch.uint8))
    assert picture.n_bytes == 16


def test_workers_decode_ahead_what_is_expected(decoded):
    numbers, decode = decoded
    cache = PictureCache(decode, budget_bytes=0, workers=2)
    assert cache.ahead == 4
    cache.expect([3, 1, 3, 2])
    deadline = time.monotonic() + 5
    while len(numbers) < 3 and time.monotonic() < deadline:
        time.sleep(0.001)
    assert sorted(numbers) == [1, 2, 3]
    assert [cache[i].max().item() for i in (3, 1, 2)] == [3, 1, 2]
    assert len(numbers) == 3
    assert cache[3].max() == 3  # nobody told of it again
    assert len(numbers) == 4
    cache.close()


def test_what_is_no_longer_expected_is_forgotten():
    numbers, gate = [], threading.Event()

    def decode(number):
        gate.wait(5)
        numbers.append(number)
        return TrainingPicture(torch.zeros(3, 1, 1, dtype=torch.uint8))

    cache = PictureCache(decode, budget_bytes=0, workers=1)
    cache.expect([0, 1, 2])
    cache.expect([2])
    gate.set()
    cache[2]
    assert 1 not in numbers
    cache.close()


def test_a_workers_error_comes_when_the_picture_is_asked_for():
    def decode(number):
        raise U1Error(f"{number}.png: is cut short")

    cache = PictureCache(decode, budget_bytes=0, workers=1)
    cache.expect([4])
    with pytest.raises(U1Error, match=r"4\.png: is cut short"):
        cache[4]
    cache.close()


def test_time_spent_waiting_is_counted():
    def decode(number):
        time.sleep(0.05)
        return TrainingPicture(torch.zeros(3, 1, 1, dtype=torch.uint8))

    cache = PictureCache(decode, budget_bytes=3)
    cache[0]
    assert 0.05 <= cache.waited_s < 1
    waited = cache.waited_s
    cache[0]
    assert cache.waited_s == waited


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
    picture = decode_picture(tmp_path / "a.png", Framing(64 * 64, 8, snap)).pixels
    width, height = expected
    assert (picture.dtype, tuple(picture.shape)) == (torch.uint8, (3, height, width))
    assert picture[:, :, : width // 4].max() == 0
    assert picture[:, :, -width // 4 :].min() == 255


def test_a_picture_that_is_too_narrow_is_refused_unless_it_is_snapped(tmp_path):
    Image.new("RGB", (1000, 2)).save(tmp_path / "a.png")
    with pytest.raises(U1Error, match="a picture of 1000x2 is too narrow"):
        decode_picture(tmp_path / "a.png", Framing(64 * 64, 8, snap=False))
    assert decode_picture(tmp_path / "a.png", Framing(64 * 64, 8)).pixels.shape[0] == 3


def scene(folder, width=128, height=96):
    """A picture folder with one picture of two halves, its caption and a mask that keeps the right half."""
    image = Image.new("RGB", (width, height), "red")
    image.paste("blue", (width // 2, 0, width, height))
    image.save(folder / "a.png")
    mask = Image.new("L", (width, height), 0)
    mask.paste(255, (width // 2, 0, width, height))
    mask.save(folder / "a.mask.png")
    (folder / "a.txt").write_text("two halves", encoding="utf-8")
    return open_dataset(folder)


@pytest.mark.parametrize("fit", ["crop", "stretch"])
def test_a_mask_is_cut_exactly_as_its_picture(tmp_path, fit):
    dataset, framing = scene(tmp_path, 160, 96), Framing(64 * 64, 8, fit=fit)
    width, height = framing.frame(160, 96).size
    picture = training_pictures(dataset, framing, "file").fetch(0)
    assert (picture.mask.dtype, tuple(picture.mask.shape)) == (torch.uint8, (height, width))
    assert (picture.pixels[2].int() - picture.mask.int()).abs().float().mean() < 2
    assert picture.mask[:, : width // 2 - 2].max() == 0
    assert picture.mask[:, width // 2 + 2 :].min() == 255


def test_masks_of_transparency_and_of_none(tmp_path):
    pixels = np.full((64, 64, 4), 200, dtype=np.uint8)
    pixels[:, :32, 3], pixels[:, 32:, 3] = 0, 255
    Image.fromarray(pixels).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("half a picture", encoding="utf-8")
    dataset, framing = open_dataset(tmp_path), Framing(32 * 32, 8)
    mask = training_pictures(dataset, framing, "alpha").fetch(0).mask
    assert (mask[:, :14].max(), mask[:, 18:].min()) == (0, 255)
    assert training_pictures(dataset, framing, "file").fetch(0).mask is None
    assert training_pictures(dataset, framing).fetch(0).mask is None


def test_masks_that_will_not_do(tmp_path):
    dataset, framing = scene(tmp_path), Framing(32 * 32, 8)
    Image.new("L", (128, 96), 0).save(tmp_path / "a.mask.png")
    with pytest.raises(U1Error, match=r"a\.png: its mask is black where the picture is trained"):
        training_pictures(dataset, framing, "file").fetch(0)
    Image.new("L", (96, 96), 255).save(tmp_path / "a.mask.png")
    with pytest.raises(U1Error, match=r"a\.png: its mask is 96x96, of another shape than the picture's 128x96; crop"):
        training_pictures(dataset, framing, "file").fetch(0)
    (tmp_path / "a.mask.png").write_bytes(b"no")
    with pytest.raises(U1Error, match=r"a\.png: .*a\.mask\.png: is no picture"):
        training_pictures(dataset, framing, "file").fetch(0)


def test_a_large_jpeg_decoded_small_is_nearly_the_same(tmp_path):
    soft = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8))
    soft.resize((1600, 1200), Image.Resampling.BICUBIC).save(tmp_path / "a.jpg", quality=95)
    Image.open(tmp_path / "a.jpg").save(tmp_path / "a.png", compress_level=1)
    framing = Framing(256 * 256, 32)
    small, whole = (decode_picture(tmp_path / name, framing).pixels.float() for name in ("a.jpg", "a.png"))
    assert (small - whole).abs().mean() < 0.5
    assert (small - whole).abs().max() < 8
