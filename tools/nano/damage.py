"""What may happen to a picture without changing what is in it: noise, blur, compression, a shift, other light."""

import io
import random

import numpy as np
from PIL import Image, ImageFilter

from .render import SIZE


def damaged(picture: np.ndarray, rng: random.Random, strength: float = 1) -> np.ndarray:
    """The picture, uint8 (S, S, 3), after each of these with an even chance; `strength` 1 is clearly visible."""
    image = Image.fromarray(picture)
    unit = len(picture) / SIZE
    if rng.random() < 0.5:
        image = _shifted(image, *(round(rng.uniform(-4, 4) * strength * unit) for _ in range(2)))
    if rng.random() < 0.5:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 1.3) * strength * unit))
    if rng.random() < 0.5:
        image = _compressed(image, round(95 - rng.uniform(15, 70) * strength))
    values = np.asarray(image, dtype=np.float32)
    if rng.random() < 0.5:
        gain = 1 + rng.uniform(-0.1, 0.1) * strength
        values = (values - 128) * gain + 128 + rng.uniform(-14, 14) * strength
    if rng.random() < 0.5:
        grain = np.random.default_rng(rng.getrandbits(32)).standard_normal(values.shape, dtype=np.float32)
        values = values + rng.uniform(4, 20) * strength * grain
    return np.clip(values, 0, 255).round().astype(np.uint8)


def _shifted(image: Image.Image, dx: int, dy: int) -> Image.Image:
    """Moved, with the rows and columns at the edge repeated in the gap."""
    rows, columns = (np.clip(np.arange(image.width) - by, 0, image.width - 1) for by in (dy, dx))
    return Image.fromarray(np.asarray(image)[rows[:, None], columns])


def _compressed(image: Image.Image, quality: int) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(file).convert("RGB")
