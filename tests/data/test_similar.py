import io

import numpy as np
import torch
from PIL import Image

from u1_core.data.pictures import to_pixels
from u1_core.data.similar import fingerprint, near_duplicates


def soft(seed, size=(160, 120)):
    blocks = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(blocks).resize(size, Image.Resampling.BICUBIC)


def recompressed(image):
    file = io.BytesIO()
    image.save(file, "JPEG", quality=40)
    return Image.open(io.BytesIO(file.getvalue())).convert("RGB")


def groups(*images):
    return near_duplicates([fingerprint(to_pixels(image)) for image in images])


def test_scaled_recompressed_and_slightly_brighter_copies_are_found():
    image = soft(0)
    brighter = image.point(lambda level: min(255, level + 6))
    copies = (image.resize((80, 60)), recompressed(image), brighter)
    assert groups(image, soft(1), *copies, soft(2)) == [[0, 2, 3, 4]]


def test_other_pictures_are_not_taken_for_copies():
    assert groups(*(soft(seed) for seed in range(60))) == []
    assert near_duplicates([]) == []


def test_flat_pictures_are_told_apart_by_colour():
    red, blue, reddish = (Image.new("RGB", (64, 64), colour) for colour in ("#cc0000", "#0000cc", "#c80402"))
    assert groups(red, blue, reddish) == [[0, 2]]


def test_a_mirrored_picture_is_another():
    assert groups(soft(3), soft(3).transpose(Image.Transpose.FLIP_LEFT_RIGHT)) == []


def test_likeness_is_handed_on_across_batches(monkeypatch):
    monkeypatch.setattr("u1_core.data.similar.COMPARED_TOGETHER", 2)
    pictures = [soft(seed % 4) for seed in range(9)]
    assert groups(*pictures) == [[0, 4, 8], [1, 5], [2, 6], [3, 7]]


def test_a_hash_is_64_bits_of_brighter_than_the_next():
    falling = torch.arange(255, 0, -4).expand(3, 32, 64).to(torch.uint8)
    assert fingerprint(falling).bits == 2**64 - 1
    assert fingerprint(falling.flip(2)).bits == 0
