"""Grids of numbers that the styles and the measures share: noise, blurs, edges. All in float32 and units of pixels."""

import numpy as np
from PIL import Image, ImageFilter


def noise(rng: np.random.Generator, size: int, cells: int) -> np.ndarray:
    """Smooth noise of about -1 to 1, (size, size), with so many bumps along a side."""
    grid = rng.uniform(-1, 1, (cells + 1, cells + 1)).astype(np.float32)
    return np.asarray(Image.fromarray(grid).resize((size, size), Image.Resampling.BICUBIC))


def blurred(picture: np.ndarray, radius: float) -> np.ndarray:
    """A picture of 0 to 1, (H, W, 3), or a grid of 0 to 1, (H, W), through a Gaussian of this standard deviation."""
    image = Image.fromarray((picture * 255).round().astype(np.uint8))
    return np.asarray(image.filter(ImageFilter.GaussianBlur(radius)), dtype=np.float32) / 255


def luminance(picture: np.ndarray) -> np.ndarray:
    """(H, W) of a picture (H, W, 3), by the weights of Rec. 601."""
    return picture @ np.array([0.299, 0.587, 0.114], dtype=np.float32)


def edges(picture: np.ndarray) -> np.ndarray:
    """How much the colour changes at each point, (H, W): the largest of the three channels' gradients."""
    down = np.abs(np.diff(picture, axis=0, append=picture[-1:])).max(axis=-1)
    across = np.abs(np.diff(picture, axis=1, append=picture[:, -1:])).max(axis=-1)
    return np.maximum(down, across)


def grid(size: int) -> tuple[np.ndarray, np.ndarray]:
    """The y and x of each pixel, (size, 1) and (1, size)."""
    steps = np.arange(size, dtype=np.float32)
    return steps[:, None], steps[None, :]


def displaced(picture: np.ndarray, dy: np.ndarray, dx: np.ndarray) -> np.ndarray:
    """The picture with each pixel taken from (dy, dx) pixels further, to the nearest one."""
    y, x = grid(len(picture))
    last = len(picture) - 1
    rows, columns = (np.clip((at + by).round(), 0, last).astype(np.intp) for at, by in ((y, dy), (x, dx)))
    return picture[rows, columns]
