"""Five styles, each from a picture in the base style to one that differs in line, texture and palette.

A style is a function of a picture, uint8 (S, S, 3), and a seed for its accidents (grain, wobble, misprints). Lengths
are made for pictures of 192 pixels and grow with them.
"""

from collections.abc import Callable

import numpy as np
from PIL import Image

from .fields import blurred, displaced, edges, grid, luminance, noise
from .render import SIZE, render
from .scene import Scene

Style = Callable[[np.ndarray, int], np.ndarray]

CREAM = np.array([0.97, 0.93, 0.83], dtype=np.float32)
WATERCOLOUR_PAPER = np.array([0.99, 0.985, 0.97], dtype=np.float32)
NIGHT = np.array([0.035, 0.02, 0.09], dtype=np.float32)
RISO_PAPER = np.array([0.96, 0.945, 0.91], dtype=np.float32)
RISO_INKS = np.array([[0.08, 0.55, 0.86], [1.0, 0.34, 0.52], [1.0, 0.88, 0.18]], dtype=np.float32)
"""Blue, fluorescent pink and yellow: what is printed for too little red, green and blue."""
RISO_ANGLES = (0.26, 1.31, 0.79)


def ink(picture: np.ndarray, seed: int) -> np.ndarray:
    """Pen and coloured inks on cream paper: outlines, and hatching in up to four directions where it is darker."""
    rng, unit, base = _start(picture, seed)
    size = len(base)
    wobble = 0.7 * unit * noise(rng, size, 8)
    darkness = 1 - luminance(blurred(base, 0.6 * unit))
    hatching = np.zeros((size, size), np.float32)
    y, x = grid(size)
    for angle, start in ((0.8, 0.12), (-0.75, 0.42), (0.05, 0.6), (1.5, 0.74)):
        across = x * np.sin(angle) + y * np.cos(angle) + wobble
        to_line = np.abs((across / (4.2 * unit)) % 1 - 0.5) * 4.2
        width = 0.5 + 0.9 * np.clip(darkness - start, 0, 1)
        hatching = np.maximum(hatching, np.clip(width + 0.5 - to_line, 0, 1) * (darkness > start))
    outline = np.clip(blurred(np.clip(5 * edges(base) - 0.25, 0, 1), 0.5 * unit) * 1.7, 0, 1)
    saturated = np.clip(_vivid(base, 1.7), 0, 1)
    colour = saturated * (0.72 / np.maximum(luminance(saturated), 0.72))[..., None] * 0.8
    paper = CREAM + 0.02 * noise(rng, size, size // 3)[..., None]
    paper = paper * (1 - 0.16 * (1 - saturated))
    page = paper + (colour - paper) * (0.92 * hatching)[..., None]
    pen = np.array([0.13, 0.1, 0.14], dtype=np.float32)
    return _finish(page + (pen - page) * (0.9 * outline)[..., None])


def watercolour(picture: np.ndarray, seed: int) -> np.ndarray:
    """Pale washes with a wavering edge, pigment that gathers along it and in the paper's grain, a white margin."""
    rng, unit, base = _start(picture, seed)
    size = len(base)
    dy, dx = (2.2 * unit * noise(rng, size, 12) + 0.8 * unit * noise(rng, size, 40) for _ in range(2))
    wash = blurred(displaced(base, dy, dx), 0.9 * unit)
    pooled = np.clip(3 * np.abs(wash - blurred(wash, 2.2 * unit)).max(axis=-1), 0, 1)
    bleed = 0.16 * noise(rng, size, 6) + 0.1 * noise(rng, size, 18)
    grain = 0.1 * noise(rng, size, size // 2)
    density = 0.78 + bleed + grain + 0.7 * pooled
    page = WATERCOLOUR_PAPER * np.clip(wash, 0.02, 1) ** density[..., None]
    page = 0.08 + 0.92 * page
    y, x = grid(size)
    from_edge = np.minimum(np.minimum(y, size - 1 - y), np.minimum(x, size - 1 - x))
    painted = np.clip(from_edge / unit - 4 - 2 * noise(rng, size, 16) - noise(rng, size, 60), 0, 1)
    return _finish(WATERCOLOUR_PAPER + (page - WATERCOLOUR_PAPER) * painted[..., None])


def mosaic(picture: np.ndarray, seed: int) -> np.ndarray:
    """Small square tiles with a bevel, each of one of few shades, in dark grout."""
    rng, unit, base = _start(picture, seed)
    size = len(base)
    tile = max(2, round(4 * unit))
    count = -(-size // tile)
    small = Image.fromarray(picture).resize((count, count), Image.Resampling.BOX)
    tiles = _vivid(np.asarray(small, dtype=np.float32) / 255, 1.25)
    lightness = luminance(tiles)[..., None]
    tiles = tiles + np.round(lightness * 7) / 7 - lightness + rng.uniform(-0.04, 0.04, (count, count, 1))
    page = np.clip(tiles, 0, 1).repeat(tile, axis=0).repeat(tile, axis=1)[:size, :size].astype(np.float32)
    row = np.arange(size) % tile
    lit, grout = row == 1, row == 0
    page[lit[:, None] | lit[None, :]] += 0.1
    joints = grout[:, None] | grout[None, :]
    page[joints] = 0.62 * page[joints] + np.array([0.04, 0.04, 0.06], dtype=np.float32)
    return _finish(page)


def neon(picture: np.ndarray, seed: int) -> np.ndarray:
    """Glowing tubes along the outlines in the dark, with a faint light of each thing's colour inside."""
    rng, unit, base = _start(picture, seed)
    size = len(base)
    vivid = np.clip(_vivid(base, 1.8), 0, 1)
    saturation = vivid.max(axis=-1, keepdims=True) - vivid.min(axis=-1, keepdims=True)
    weight = 0.02 + saturation**2
    nearby = blurred(vivid * weight / 1.02, unit) / np.maximum(blurred(weight[..., 0] / 1.02, unit), 0.01)[..., None]
    tube_colour = nearby / np.maximum(nearby.max(axis=-1, keepdims=True), 0.25)
    tube = np.clip(4.5 * edges(blurred(base, 0.5 * unit)) - 0.22, 0, 1)
    tube = np.clip(1.4 * blurred(tube, 0.6 * unit), 0, 1) * (1 + 0.1 * noise(rng, size, 24))
    light = np.clip(tube_colour * tube[..., None], 0, 1)
    halo = blurred(light, 2.5 * unit) + 1.2 * blurred(light, 7 * unit)
    page = NIGHT + 0.3 * vivid**1.5 + 0.9 * light + 0.55 * halo + 0.2 * np.clip(tube - 0.7, 0, 1)[..., None]
    return _finish(page + 0.015 * noise(rng, size, size // 2)[..., None])


def riso(picture: np.ndarray, seed: int) -> np.ndarray:
    """Three inks on paper, greys mostly in blue, each as dots on a screen of its own, a little out of register."""
    rng, unit, base = _start(picture, seed)
    size = len(base)
    amounts = np.clip(1 - _vivid(base, 1.3), 0, 1)
    grey = amounts.min(axis=-1, keepdims=True)
    amounts = amounts - grey * np.array([0.15, 0.75, 0.85], dtype=np.float32)
    page = np.broadcast_to(RISO_PAPER, base.shape)
    y, x = grid(size)
    for channel, angle in enumerate(RISO_ANGLES):
        shift = rng.uniform(-1.0, 1.0, 2) * unit
        amount = displaced(amounts[..., channel], *np.broadcast_arrays(shift[0], shift[1]))
        u, v = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
        screen = 0.5 - 0.25 * (np.cos(u * np.pi / (2 * unit)) + np.cos(v * np.pi / (2 * unit)))
        dots = np.clip((amount - screen) * 2.0 + 0.5, 0, 1) * (0.9 + 0.12 * noise(rng, size, size // 2))
        page = page * (1 - dots[..., None] * (1 - RISO_INKS[channel]))
    return _finish(page)


STYLES: dict[str, Style] = {style.__name__: style for style in (ink, watercolour, mosaic, neon, riso)}


def render_styled(scene: Scene, style: str, size: int = SIZE) -> np.ndarray:
    """The scene in a style, or as it is for "base": uint8 (size, size, 3), a pure function of its arguments."""
    picture = render(scene, size)
    return picture if style == "base" else STYLES[style](picture, scene.seed)


def _start(picture: np.ndarray, seed: int) -> tuple[np.random.Generator, float, np.ndarray]:
    """The style's randomness, the length of one pixel of 192, and the picture as numbers from 0 to 1."""
    return np.random.default_rng(seed), len(picture) / SIZE, picture.astype(np.float32) / 255


def _finish(page: np.ndarray) -> np.ndarray:
    return (np.clip(page, 0, 1) * 255).round().astype(np.uint8)


def _vivid(picture: np.ndarray, factor: float) -> np.ndarray:
    """More saturated: each channel's distance from the grey of the same lightness times the factor."""
    grey = luminance(picture)[..., None]
    return grey + (picture - grey) * factor
