"""Drawing in units of the picture's side, (0, 0) at the upper left, on a canvas that is made smaller afterwards."""

import functools
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from .palette import Rgb

OVERSAMPLING = 2
Point = tuple[float, float]


class Pen:
    """Draws on a square canvas. Lengths are in parts of its side; alpha is 0 to 1."""

    def __init__(self, size: int):
        self.side = size * OVERSAMPLING
        self.canvas = Image.new("RGB", (self.side, self.side))
        self._draw = ImageDraw.Draw(self.canvas, "RGBA")

    def picture(self) -> np.ndarray:
        """The finished picture: uint8 (size, size, 3)."""
        return np.asarray(self.canvas.reduce(OVERSAMPLING))

    def polygon(self, points: Sequence[Point], colour: Rgb, alpha: float = 1) -> None:
        self._draw.polygon([(x * self.side, y * self.side) for x, y in points], fill=_fill(colour, alpha))

    def ellipse(self, x: float, y: float, rx: float, ry: float, colour: Rgb, alpha: float = 1) -> None:
        self._draw.ellipse(_box(self.side, x - rx, y - ry, x + rx, y + ry), fill=_fill(colour, alpha))

    def circle(self, x: float, y: float, radius: float, colour: Rgb, alpha: float = 1) -> None:
        self.ellipse(x, y, radius, radius, colour, alpha)

    def pie(self, x: float, y: float, rx: float, ry: float, degrees: Point, colour: Rgb, alpha: float = 1) -> None:
        """A sector, clockwise from `degrees[0]` to `degrees[1]`, where 0 points right and 90 down."""
        self._draw.pieslice(_box(self.side, x - rx, y - ry, x + rx, y + ry), *degrees, fill=_fill(colour, alpha))

    def rectangle(self, left: float, top: float, right: float, bottom: float, colour: Rgb, alpha: float = 1) -> None:
        self._draw.rectangle(_box(self.side, left, top, right, bottom), fill=_fill(colour, alpha))

    def rounded(self, left: float, top: float, right: float, bottom: float, radius: float, colour: Rgb) -> None:
        self._draw.rounded_rectangle(_box(self.side, left, top, right, bottom), radius * self.side, fill=colour)

    def line(self, points: Sequence[Point], width: float, colour: Rgb, alpha: float = 1) -> None:
        points = [(x * self.side, y * self.side) for x, y in points]
        self._draw.line(points, fill=_fill(colour, alpha), width=max(1, round(width * self.side)), joint="curve")

    def gradient(self, top: float, bottom: float, stops: Sequence[Rgb], points: Sequence[Point] | None = None) -> None:
        """Fills the rows from top to bottom with colours at equal distances, within a polygon if one is given."""
        first, last = round(top * self.side), min(round(bottom * self.side), self.side)
        at = np.linspace(0, len(stops) - 1, last - first)
        channels = [np.interp(at, range(len(stops)), values) for values in zip(*stops, strict=True)]
        column = Image.fromarray(np.stack(channels, axis=-1).round().astype(np.uint8)[:, None])
        rows = column.resize((self.side, last - first), Image.Resampling.NEAREST)
        mask = None
        if points is not None:
            mask = Image.new("L", rows.size)
            ImageDraw.Draw(mask).polygon([(x * self.side, y * self.side - first) for x, y in points], fill=255)
        self.canvas.paste(rows, (0, first), mask)

    def glow(self, x: float, y: float, radius: float, colour: Rgb, alpha: float) -> None:
        """Light that fades from the middle to nothing at the radius."""
        sprite = _glow(round(radius * self.side))
        corner = (round((x - radius) * self.side), round((y - radius) * self.side))
        self.canvas.paste(
            colour,
            (*corner, corner[0] + sprite.width, corner[1] + sprite.height),
            sprite.point([round(alpha * value) for value in range(256)]),
        )


@functools.lru_cache(maxsize=64)
def _glow(radius: int) -> Image.Image:
    steps = (np.arange(2 * radius) + 0.5 - radius) / radius
    distance = np.hypot(steps[:, None], steps[None, :])
    return Image.fromarray((255 * np.clip(1 - distance, 0, 1) ** 2).round().astype(np.uint8))


def _fill(colour: Rgb, alpha: float) -> tuple[int, ...]:
    return (*colour, round(255 * alpha))


def _box(side: int, left: float, top: float, right: float, bottom: float) -> tuple[float, ...]:
    return (left * side, top * side, right * side, bottom * side)
