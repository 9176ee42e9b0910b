"""Picture sizes: the official ones, the same ratios at other budgets, and pictures cut to them.

Sizes are (width, height) in pixels, always whole tokens of `token_pixels` a side (32 in the released models).
"""

import math
import re
from collections.abc import Mapping

from u1_core.data.pictures import smart_resize
from u1_core.errors import U1Error

Size = tuple[int, int]
"""(width, height) in pixels."""


def _with_transposes(wide: Mapping[str, Size]) -> dict[str, Size]:
    sizes = dict(wide)
    for name, (width, height) in wide.items():
        across, down = name.split(":")
        sizes.setdefault(f"{down}:{across}", (height, width))
    return sizes


TEXT_TO_IMAGE = _with_transposes(
    {
        "1:1": (2048, 2048),
        "16:9": (2720, 1536),
        "3:2": (2496, 1664),
        "4:3": (2368, 1760),
        "2:1": (2880, 1440),
        "3:1": (3456, 1152),
    }
)
"""The sizes that text to image was trained at, by ratio."""

INTERLEAVE = _with_transposes(
    {
        "1:1": (1536, 1536),
        "16:9": (2048, 1152),
        "3:2": (1888, 1248),
        "4:3": (1760, 1312),
        "2:1": (2144, 1088),
        "3:1": (2592, 864),
    }
)
"""The sizes of interleaved pictures, by ratio."""

MEGAPIXEL = 1024**2
"""What "1MP" means: 1024x1024."""


def bucket_sizes(max_pixels: int, token_pixels: int, official: Mapping[str, Size] = TEXT_TO_IMAGE) -> dict[str, Size]:
    """Each official ratio at another budget, at most `max_pixels`: the sizes scaled so that the square fills it.

    At the official budget they are the official sizes. Raises U1Error if a single token is over the budget.
    """
    if max_pixels < token_pixels**2:
        raise U1Error(f"{max_pixels} pixels are too few: one token is {token_pixels}x{token_pixels} pixels")
    scale = math.sqrt(max_pixels / math.prod(official["1:1"])) / token_pixels
    budget = max_pixels // token_pixels**2
    sizes = {}
    for name, (width, height) in official.items():
        columns, rows = _fit_tokens(width * scale, height * scale, budget)
        sizes[name] = (columns * token_pixels, rows * token_pixels)
    return sizes


def bucket_for(width: int, height: int, max_pixels: int, token_pixels: int) -> Size:
    """The bucket whose ratio is nearest to width / height (by its logarithm, so that upright and wide weigh alike)."""
    sizes = bucket_sizes(max_pixels, token_pixels).values()
    return min(sizes, key=lambda size: abs(math.log(size[0] * height / (size[1] * width))))


def edit_size(width: int, height: int, token_pixels: int, pixels: int) -> Size:
    """The size of an edited picture: the ratio of the first input picture at an area of about `pixels`."""
    rows, columns = smart_resize(height, width, token_pixels, pixels, pixels)
    return columns, rows


def parse_size(
    text: str, token_pixels: int, official: Mapping[str, Size] = TEXT_TO_IMAGE, pixels: int | None = None
) -> Size:
    """Read "2048x1536", an official ratio as in "16:9", or one at a budget as in "1:1@1MP" (1MP is 1024x1024 pixels).

    A ratio alone is at `pixels`, or else at its official size.
    Raises U1Error with the nearest valid size if the sides are not whole tokens, and for anything else.
    """
    plain = re.fullmatch(r"\s*(\d+)\s*[xX×]\s*(\d+)\s*", text)
    if plain:
        return _checked_size(int(plain[1]), int(plain[2]), token_pixels)
    ratio, at, amount = (part.strip() for part in text.partition("@"))
    if ratio not in official:
        known = ", ".join(official)
        raise U1Error(
            f"size {text!r} is neither WIDTHxHEIGHT nor a ratio the model knows ({known}), alone or as in 1:1@1MP"
        )
    budget = _parse_megapixels(amount, text) if at else pixels or math.prod(official["1:1"])
    return bucket_sizes(budget, token_pixels, official)[ratio]


def cover_box(original: Size, size: Size) -> tuple[float, float, float, float]:
    """(left, top, right, bottom) of the middle part of a picture of `original` size that has the ratio of `size`."""
    scale = max(size[0] / original[0], size[1] / original[1])
    kept_width, kept_height = size[0] / scale, size[1] / scale
    left, top = (original[0] - kept_width) / 2, (original[1] - kept_height) / 2
    return max(0.0, left), max(0.0, top), min(original[0], left + kept_width), min(original[1], top + kept_height)


def _fit_tokens(columns: float, rows: float, budget: int) -> tuple[int, int]:
    """Whole (columns, rows) near these, at most `budget` together: the ratio counts double, then the area."""

    def sides(ideal: float) -> set[int]:
        return {max(1, math.floor(ideal)), max(1, math.ceil(ideal))}

    def error(tokens: tuple[int, int]) -> tuple[float, int]:
        wider, taller = math.log(tokens[0] / columns), math.log(tokens[1] / rows)
        return 2 * abs(wider - taller) + abs(wider + taller), -math.prod(tokens)

    pairs = [(c, r) for c in sides(columns) for r in sides(rows) if c * r <= budget]
    return min(pairs, key=error)


def _checked_size(width: int, height: int, token_pixels: int) -> Size:
    near = [max(1, round(side / token_pixels)) * token_pixels for side in (width, height)]
    if near != [width, height]:
        raise U1Error(
            f"size {width}x{height}: both sides must be multiples of {token_pixels}; the nearest is {near[0]}x{near[1]}"
        )
    return width, height


def _parse_megapixels(amount: str, text: str) -> int:
    number = re.fullmatch(r"(\d+(?:\.\d+)?)\s*MP", amount, re.IGNORECASE)
    if not number or not float(number[1]):
        raise U1Error(f"size {text!r}: after @ comes an area in megapixels, such as 1MP or 0.25MP")
    return round(float(number[1]) * MEGAPIXEL)
