"""Contact sheets: many pictures side by side on one."""

from collections.abc import Sequence

import numpy as np
from PIL import Image


def sheet(pictures: Sequence[np.ndarray], columns: int, gap: int = 6) -> Image.Image:
    """Pictures of one size, uint8 (H, W, 3), in rows on white."""
    height, width, _ = pictures[0].shape
    rows = -(-len(pictures) // columns)
    page = Image.new("RGB", (columns * (width + gap) + gap, rows * (height + gap) + gap), "white")
    for place, picture in enumerate(pictures):
        row, column = divmod(place, columns)
        page.paste(Image.fromarray(picture), (gap + column * (width + gap), gap + row * (height + gap)))
    return page
