"""Training pictures as tensors at their buckets: decoded once each while memory lasts, else each time."""

from collections.abc import Callable, Sequence
from pathlib import Path

from torch import Tensor

from u1_core.data.buckets import bucket_for, fit_crop
from u1_core.data.folder import Sample
from u1_core.data.pictures import open_picture, smart_resize, to_pixels
from u1_core.errors import U1Error

Decode = Callable[[Path], Tensor]
"""A picture file -> uint8 (3, H, W) at its bucket. Raises U1Error for a file that is no picture."""


def decode_for_training(path: Path, max_pixels: int, snap: bool, token_pixels: int) -> Tensor:
    """A picture file as uint8 (3, H, W), scaled to cover its size and cropped evenly. Raises U1Error.

    With `snap` its size is the official ratio nearest to its own, at `max_pixels`; else its own size in whole tokens
    of `token_pixels` a side, shrunk where that is over `max_pixels`.
    """
    image = open_picture(path)
    if snap:
        width, height = bucket_for(*image.size, max_pixels, token_pixels)
    else:
        height, width = smart_resize(image.height, image.width, token_pixels, token_pixels**2, max_pixels)
    return to_pixels(fit_crop(image, width, height))


class PictureCache:
    """The pictures of some samples, by number."""

    def __init__(self, samples: Sequence[Sample], decode: Decode, budget_bytes: int) -> None:
        self._samples, self._decode = samples, decode
        self._room_bytes = budget_bytes
        self._kept: dict[int, Tensor] = {}

    def check(self, on_progress: Callable[[int, int], None] | None = None) -> dict[str, str]:
        """Decode every picture once, keeping what fits. Returns sample id -> problem for those that cannot be read."""
        problems = {}
        for index, sample in enumerate(self._samples):
            try:
                self[index]
            except U1Error as problem:
                problems[sample.id] = str(problem).removeprefix(f"{sample.path}: ")
            if on_progress:
                on_progress(index + 1, len(self._samples))
        return problems

    def __getitem__(self, index: int) -> Tensor:
        """uint8 (3, H, W). Raises U1Error naming the file."""
        if index in self._kept:
            return self._kept[index]
        picture = self._decode(self._samples[index].path)
        if picture.nbytes <= self._room_bytes:
            self._kept[index] = picture
            self._room_bytes -= picture.nbytes
        return picture
