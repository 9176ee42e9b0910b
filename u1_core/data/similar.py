"""Pictures that are the same, or nearly: a 64-bit difference hash, and a look at the colours."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image
from torch import Tensor

from u1_core.data.pictures import from_pixels

NEAR_BITS = 5
"""Bits of 64 in which the hashes of near-duplicates may differ."""
NEAR_LEVELS = 10.0
"""Levels of 255 by which their colours may differ, on average over a coarse grid: flat pictures all hash alike."""
GRID = 4
COMPARED_TOGETHER = 512


@dataclass(frozen=True)
class Fingerprint:
    """What a picture looks like, small."""

    bits: int
    """For each of 8 rows, whether each of 9 grey cells is brighter than the next."""
    colours: bytes
    """Mean red, green and blue of each cell of a GRID x GRID grid, 0 to 255."""


def fingerprint(picture: Tensor) -> Fingerprint:
    """Of a uint8 (3, H, W). Scaling, recompression and slight changes of tone hardly move it."""
    image = from_pixels(picture)
    grey = np.asarray(image.convert("L").resize((9, 8), Image.Resampling.BOX), dtype=np.int16)
    brighter = (grey[:, :-1] > grey[:, 1:]).flatten()
    colours = image.resize((GRID, GRID), Image.Resampling.BOX).tobytes()
    return Fingerprint(int("".join("01"[bit] for bit in brighter.astype(int)), 2), colours)


def near_duplicates(fingerprints: Sequence[Fingerprint]) -> list[list[int]]:
    """Groups of pictures that look alike, by number, each of two or more; alike is handed on within a group."""
    if not fingerprints:
        return []
    bits = np.array([each.bits for each in fingerprints], dtype=np.uint64)
    colours = np.array([list(each.colours) for each in fingerprints], dtype=np.int16)
    group = list(range(len(bits)))

    def root(number: int) -> int:
        while group[number] != number:
            number = group[number]
        return number

    for start in range(0, len(bits), COMPARED_TOGETHER):
        # Each with those after it.
        ones, others = np.nonzero(_differing(bits[start : start + COMPARED_TOGETHER], bits[start:]) <= NEAR_BITS)
        ones, others = ones[ones < others] + start, others[ones < others] + start
        alike = np.abs(colours[ones] - colours[others]).mean(axis=1) <= NEAR_LEVELS
        for one, other in zip(ones[alike].tolist(), others[alike].tolist(), strict=True):
            group[root(other)] = root(one)
    members: dict[int, list[int]] = {}
    for number in range(len(group)):
        members.setdefault(root(number), []).append(number)
    return [numbers for numbers in members.values() if len(numbers) > 1]


def _differing(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """(len(ours), len(theirs)): in how many bits each pair differs."""
    quarters = (ours[:, None] ^ theirs[None, :]).view(np.uint16).reshape(len(ours), len(theirs), 4)
    return _ONES[quarters].sum(axis=2, dtype=np.uint8)


_ONES = np.array([bin(number).count("1") for number in range(2**16)], dtype=np.uint8)
