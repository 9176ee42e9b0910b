"""Pictures that are the same, or nearly: a 64-bit difference hash, and a look at the colours."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image
from torch import Tensor

from u1_core.data.pictures import to_pixels

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
    colours: tuple[float, ...]
    """Mean red, green and blue of each cell of a GRID x GRID grid."""


def fingerprint(picture: Tensor) -> Fingerprint:
    """Of a uint8 (3, H, W). Scaling, recompression and slight changes of tone hardly move it."""
    image = Image.fromarray(picture.permute(1, 2, 0).numpy())
    grey = np.asarray(image.convert("L").resize((9, 8), Image.Resampling.BOX), dtype=np.int16)
    brighter = (grey[:, :-1] > grey[:, 1:]).flatten()
    colours = to_pixels(image.resize((GRID, GRID), Image.Resampling.BOX))
    return Fingerprint(int("".join("01"[bit] for bit in brighter.astype(int)), 2), tuple(colours.flatten().tolist()))


def near_duplicates(fingerprints: Sequence[Fingerprint]) -> list[list[int]]:
    """Groups of pictures that look alike, by number, each of two or more; alike is handed on within a group."""
    if not fingerprints:
        return []
    bits = np.array([print_.bits for print_ in fingerprints], dtype=np.uint64)
    colours = np.array([print_.colours for print_ in fingerprints], dtype=np.float32)
    group = list(range(len(bits)))

    def root(number: int) -> int:
        while group[number] != number:
            number = group[number]
        return number

    for start in range(0, len(bits), COMPARED_TOGETHER):
        rows = slice(start, start + COMPARED_TOGETHER)
        for row, other in zip(*np.nonzero(_differing(bits[rows], bits) <= NEAR_BITS), strict=True):
            one = start + int(row)
            if one < other and np.abs(colours[one] - colours[other]).mean() <= NEAR_LEVELS:
                group[root(int(other))] = root(one)
    members: dict[int, list[int]] = {}
    for number in range(len(group)):
        members.setdefault(root(number), []).append(number)
    return [alike for alike in members.values() if len(alike) > 1]


def _differing(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """(len(ours), len(theirs)): in how many bits each pair differs."""
    halves = (ours[:, None] ^ theirs[None, :]).view(np.uint8).reshape(len(ours), len(theirs), 8)
    return _ONES[halves].sum(axis=2)


_ONES = np.array([bin(byte).count("1") for byte in range(256)], dtype=np.uint8)
