"""A run's loss as a picture: every step faintly, the moving mean that is to be read, and validation beside it."""

from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image, ImageDraw, ImageFont

SIZE = (960, 420)
LEFT, RIGHT, TOP, BOTTOM = 64, 56, 44, 40
FAINT, LINE, INK, GRID, SHARE = "#b9cdea", "#1f5fbf", "#222222", "#dddddd", "#b26a00"
SMOOTHED_OVER = 20
"""The mean runs over the last one in so many of the points."""


def loss_chart(points: Sequence[tuple[int, float]], title: str, marks: Sequence[Mapping[str, Any]] = ()) -> Image.Image:
    """(step, loss) points as an RGB chart, high enough for the means: single steps may go beyond it.

    Marks with "step" and "percent" are the validation error as a share of the untrained model's, on the right axis.
    """
    sheet = Image.new("RGB", SIZE, "white")
    ink, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    ink.text((LEFT, 12), title, INK, ImageFont.load_default(18))
    if not points:
        ink.text((LEFT, SIZE[1] // 2), "no steps yet", INK, font)
        return sheet
    means = moving_means([loss for _, loss in points])
    top = 1.15 * max(means) or 1.0
    first, last = points[0][0], max(points[-1][0], points[0][0] + 1)
    width, height = SIZE[0] - LEFT - RIGHT, SIZE[1] - TOP - BOTTOM

    def place(step: int, loss: float) -> tuple[float, float]:
        return LEFT + width * (step - first) / (last - first), TOP + height * (1 - min(loss, top) / top)

    for part in range(5):
        value = top * part / 4
        y = place(first, value)[1]
        ink.line([(LEFT, y), (LEFT + width, y)], GRID)
        ink.text((8, y - 8), f"{value:.3g}", INK, font)
        step = round(first + (last - first) * part / 4)
        x = place(step, 0)[0]
        ink.text((x - 12 * (part > 0) - 12 * (part == 4), SIZE[1] - BOTTOM + 8), str(step), INK, font)
    ink.line([place(*point) for point in points], FAINT)
    ink.line([place(step, mean) for (step, _), mean in zip(points, means, strict=True)], LINE, 3)
    shares = [(mark["step"], mark["percent"]) for mark in marks if mark.get("percent") is not None]
    if shares:
        most = 1.05 * max(100.0, *(share for _, share in shares))
        dots = [place(max(step, first), top * share / most) for step, share in shares]
        ink.line(dots, SHARE, 2)
        for x, y in dots:
            ink.ellipse([x - 4, y - 4, x + 4, y + 4], SHARE)
        for part in range(5):
            ink.text((LEFT + width + 6, TOP + height * (4 - part) / 4 - 8), f"{most * part / 4:.0f}%", SHARE, font)
        ink.text((LEFT + width - 190, 14), f"validation {shares[-1][1]:.1f}% of base", SHARE, font)
    return sheet


def moving_means(values: Sequence[float]) -> list[float]:
    """The mean of each value with those just before it, over a twentieth of them all."""
    over = max(1, len(values) // SMOOTHED_OVER)
    sums, total = [], 0.0
    for index, value in enumerate(values):
        total += value - (values[index - over] if index >= over else 0.0)
        sums.append(total / min(index + 1, over))
    return sums
