"""How near pictures are to a style: distances in a space of plain statistics of palette and texture.

A picture becomes some eighty numbers that hardly depend on where things are: histograms of lightness and saturation,
the mean and spread of its colours, how strong its edges are, what its frame is like, and the spectrum of its lightness
by wavelength and direction. The space is that of a linear discriminant analysis of the base and the five styles: the
numbers are whitened by how they vary within a style, from scene to scene and with noise and blur, and projected onto
the directions in which styles differ. A set of pictures is at its mean; a style is at the mean of scenes that nothing
else uses.

`python -m tools.nano.style_score` prints the confusion tables: the nearest style of single pictures and of sets.
"""

import argparse
import functools
import random
from collections.abc import Sequence

import numpy as np
from PIL import Image

from .damage import damaged
from .fields import edges, luminance
from .render import SIZE
from .scene import Scene, random_scene
from .styles import STYLES, render_styled

NAMES = ("base", *STYLES)
REFERENCE_SCENES = 48
SHRINKAGE = 0.3
"""How much of the covariance within styles is taken to be diagonal, for want of more pictures."""
BANDS, DIRECTIONS = 8, 6
FLOOR = 3e-4
"""Power below this, that of noise of 4% of the range, counts as none."""


def features(picture: np.ndarray) -> np.ndarray:
    """The statistics of a picture, uint8 (H, W, 3), seen at 192 pixels."""
    if len(picture) != SIZE:
        picture = np.asarray(Image.fromarray(picture).resize((SIZE, SIZE), Image.Resampling.LANCZOS))
    values = picture.astype(np.float32) / 255
    light = luminance(values)
    saturation = values.max(axis=-1) - values.min(axis=-1)
    chroma = np.stack([values[..., 0] - light, values[..., 2] - light])
    return np.concatenate(
        [
            np.sqrt(_histogram(light, np.linspace(0, 1, 9))),
            np.sqrt(_histogram(saturation, np.linspace(0, 1, 9))),
            np.sqrt(_histogram(edges(values), (0, 0.01, 0.03, 0.07, 0.15, 0.3, 1))),
            [_frame(light).mean(), _frame(saturation).mean()],
            chroma.mean(axis=(1, 2)),
            chroma.std(axis=(1, 2)),
            _spectrum(light),
        ]
    )


def _frame(values: np.ndarray) -> np.ndarray:
    """The outermost four rows and columns, where a painting shows its paper."""
    return np.concatenate([values[:4].ravel(), values[-4:].ravel(), values[:, :4].ravel(), values[:, -4:].ravel()])


def _histogram(values: np.ndarray, bounds: Sequence[float]) -> np.ndarray:
    return np.histogram(np.clip(values, 0, 1), bounds)[0] / values.size


def _spectrum(light: np.ndarray) -> np.ndarray:
    """Logarithm of the mean power by wavelength, from 90 to 2 pixels, and by direction: (BANDS * DIRECTIONS,)."""
    window, cell, counts = _cells(len(light))
    power = np.abs(np.fft.rfft2((light - light.mean()) * window)) ** 2
    sums = np.bincount(cell.ravel(), power.ravel(), minlength=BANDS * DIRECTIONS + 1)[:-1]
    return np.log10(sums / counts / light.size + FLOOR)


@functools.lru_cache(maxsize=1)
def _cells(size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A window that fades to the edges, the cell of each frequency (the last for none), and how many fall in each."""
    hann = np.hanning(size)
    fy, fx = np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None, :]
    frequency = np.hypot(fy, fx)
    octave = np.clip((np.log2(np.maximum(frequency, 1e-9) / 0.5) / 5.5 + 1) * BANDS, 0, BANDS - 1e-6).astype(int)
    direction = ((np.arctan2(fy, fx) / np.pi + 0.5) * DIRECTIONS).astype(int) % DIRECTIONS
    inside = (frequency > 0.5 * 2**-5.5) & (frequency <= 0.5)
    cell = np.where(inside, octave * DIRECTIONS + direction, BANDS * DIRECTIONS)
    return np.outer(hann, hann), cell, np.maximum(np.bincount(cell.ravel(), minlength=cell.max() + 1)[:-1], 1)


class StyleSpace:
    """Where the styles are, and how to get there from the features: `style_space()` makes the one that we use."""

    def __init__(self, clean: dict[str, np.ndarray], harmed: dict[str, np.ndarray]):
        """Style -> features (N, features) of its pictures, and of the same ones damaged."""
        means = np.stack([rows.mean(axis=0) for rows in clean.values()])
        deviations = [np.concatenate([clean[name], harmed[name]]) - means[at] for at, name in enumerate(clean)]
        within = np.mean([rows.T @ rows / len(rows) for rows in deviations], axis=0)
        shrunk = (1 - SHRINKAGE) * within + SHRINKAGE * np.diag(np.diag(within)) + 1e-6 * np.eye(len(within))
        whiten = np.linalg.inv(np.linalg.cholesky(shrunk)).T
        self.origin = means.mean(axis=0)
        _, _, directions = np.linalg.svd((means - self.origin) @ whiten, full_matrices=False)
        self.projection = whiten @ directions[: len(clean) - 1].T
        self.centres = dict(zip(clean, (means - self.origin) @ self.projection, strict=True))

    def places(self, pictures: Sequence[np.ndarray]) -> np.ndarray:
        """Where each picture is, (N, styles - 1). One unit is how much pictures of one style vary."""
        return (np.stack([features(picture) for picture in pictures]) - self.origin) @ self.projection

    def distance(self, pictures: Sequence[np.ndarray], style: str) -> float:
        """From the mean of these pictures to the style."""
        return float(np.linalg.norm(self.places(pictures).mean(axis=0) - self.centres[style]))

    def nearest(self, pictures: Sequence[np.ndarray]) -> str:
        """The style that the mean of these pictures is nearest to."""
        place = self.places(pictures).mean(axis=0)
        return min(self.centres, key=lambda style: np.linalg.norm(place - self.centres[style]))

    def progress(self, pictures: Sequence[np.ndarray], start: Sequence[np.ndarray], style: str) -> float:
        """How much of the distance from `start`, pictures of the same prompts, to the style is gone: 1 is all."""
        return 1 - self.distance(pictures, style) / self.distance(start, style)


def sample_scenes(purpose: str, count: int) -> list[Scene]:
    """Scenes of a purpose's own, the same ones every time."""
    return [random_scene(random.Random(f"{purpose}/{number}")) for number in range(count)]


@functools.lru_cache(maxsize=1)
def style_space() -> StyleSpace:
    """From 48 scenes in each style; it takes a few seconds."""
    scenes = sample_scenes("style reference", REFERENCE_SCENES)
    clean, harmed = {}, {}
    for name in NAMES:
        pictures = [render_styled(scene, name) for scene in scenes]
        clean[name] = np.stack([features(picture) for picture in pictures])
        harmed[name] = np.stack([features(damaged(p, random.Random(at))) for at, p in enumerate(pictures)])
    return StyleSpace(clean, harmed)


def confusion(space: StyleSpace, scenes: list[Scene], per_set: int) -> np.ndarray:
    """(styles, styles): of the sets of so many pictures in the row's style, how many are nearest to the column's."""
    table = np.zeros((len(NAMES), len(NAMES)), dtype=int)
    for row, name in enumerate(NAMES):
        pictures = [render_styled(scene, name) for scene in scenes]
        for first in range(0, len(pictures), per_set):
            table[row, NAMES.index(space.nearest(pictures[first : first + per_set]))] += 1
    return table


def print_table(title: str, table: np.ndarray, form: str) -> None:
    print(f"\n{title}\n{'':14s}" + "".join(f"{name:>14s}" for name in NAMES))
    for name, row in zip(NAMES, table, strict=True):
        print(f"{name:14s}" + "".join(f"{value:{form}}" for value in row))


def main() -> None:
    parser = argparse.ArgumentParser(description="The confusion tables of the style score.")
    parser.add_argument("--scenes", type=int, default=96, help="per style, other ones than the styles are known by")
    parser.add_argument("--per-set", type=int, default=8)
    given = parser.parse_args()
    space, scenes = style_space(), sample_scenes("style test", given.scenes)
    print_table("single pictures (rows: their style, columns: the nearest)", confusion(space, scenes, 1), "14d")
    print_table(f"sets of {given.per_set} pictures", confusion(space, scenes, given.per_set), "14d")
    apart = [[np.linalg.norm(space.centres[a] - space.centres[b]) for b in NAMES] for a in NAMES]
    print_table("distances between the styles", np.array(apart), "14.1f")


if __name__ == "__main__":
    main()
