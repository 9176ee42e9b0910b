"""Training pictures as tensors at their sizes: decoded ahead by worker threads, kept while memory lasts."""

import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from u1_core.data.dataset import Dataset
from u1_core.data.framing import Frame, Framing
from u1_core.data.pictures import open_alpha, open_picture, picture_size, to_pixels
from u1_core.errors import U1Error

SAME_RATIO = 0.02
"""How far a mask's ratio of sides may be from its picture's, as a share."""


@dataclass(frozen=True)
class TrainingPicture:
    """A picture as the trainer sees it."""

    pixels: Tensor
    """uint8 (3, H, W)."""
    mask: Tensor | None = None
    """uint8 (H, W): how much each pixel's loss weighs, 255 fully and 0 not at all; None weighs all alike."""

    @property
    def n_bytes(self) -> int:
        return self.pixels.nbytes + (self.mask.nbytes if self.mask is not None else 0)


Decode = Callable[[int], TrainingPicture]
"""A sample's number -> its picture. Raises U1Error for what is no picture. Called from several threads."""


def decode_picture(source: Path | bytes, framing: Framing, mask: Path | bytes | str | None = None) -> TrainingPicture:
    """A picture at its size; `mask` is a picture of weights, or "alpha" for its own transparency. Raises U1Error."""
    frame = framing.frame(*picture_size(source))
    # Twice the size leaves Lanczos enough to work with; a JPEG decoded so is a small part of the work.
    image = open_picture(source, at_least=_covering(frame, 2))
    resample = Image.Resampling.BICUBIC if framing.fit == "stretch" else Image.Resampling.LANCZOS
    pixels = to_pixels(frame.cut(image, resample))
    if mask is None:
        return TrainingPicture(pixels)
    weights = open_alpha(source) if mask == "alpha" else _mask_for(frame, mask)
    return TrainingPicture(pixels, _weights(frame.cut(weights, Image.Resampling.BILINEAR)))


def training_pictures(
    dataset: Dataset, framing: Framing, masks: str = "none", budget_bytes: int = 0, workers: int = 0
) -> "PictureCache":
    """The dataset's pictures as the trainer sees them; `masks` is "none", "file" or "alpha"."""

    def decode(index: int) -> TrainingPicture:
        source = dataset.picture(index)
        mask = dataset.mask(index) if masks == "file" else "alpha" if masks == "alpha" else None
        try:
            return decode_picture(source, framing, mask)
        except U1Error as problem:
            words = str(problem).removeprefix(f"{source}: " if isinstance(source, Path) else "picture: ")
            raise U1Error(f"{dataset.place(index)}: {words}") from None

    return PictureCache(decode, budget_bytes, workers)


class PictureCache:
    """The pictures of some samples, by number. What comes of it never depends on the number of workers."""

    def __init__(self, decode: Decode, budget_bytes: int, workers: int = 0) -> None:
        """`workers` threads decode what `expect` tells of; with none, each picture is decoded when it is asked for."""
        self._decode = decode
        self._room_bytes = budget_bytes
        self._kept: dict[int, TrainingPicture] = {}
        self._coming: dict[int, Future[TrainingPicture]] = {}
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="u1-pictures") if workers else None
        self.ahead = 2 * workers
        """How many of the next pictures are worth telling `expect` of."""
        self.waited_s = 0.0
        """Time that callers have waited for pictures so far."""

    def expect(self, indexes: Iterable[int]) -> None:
        """Have these pictures decoded meanwhile, in this order. Forgets those told of before and not fetched since."""
        wanted = list(dict.fromkeys(indexes)) if self._pool else []
        for index in self._coming.keys() - set(wanted):
            self._coming.pop(index).cancel()
        for index in wanted:
            if index not in self._kept and index not in self._coming:
                self._coming[index] = self._pool.submit(self._decode, index)

    def __getitem__(self, index: int) -> Tensor:
        """uint8 (3, H, W). Raises U1Error naming the file."""
        return self.fetch(index).pixels

    def fetch(self, index: int) -> TrainingPicture:
        """The picture with its mask. Raises U1Error naming the file."""
        if index in self._kept:
            return self._kept[index]
        started = time.perf_counter()
        coming = self._coming.pop(index, None)
        try:
            picture = coming.result() if coming else self._decode(index)
        finally:
            self.waited_s += time.perf_counter() - started
        if picture.n_bytes <= self._room_bytes:
            self._kept[index] = picture
            self._room_bytes -= picture.n_bytes
        return picture

    def close(self) -> None:
        """Let the workers go."""
        if self._pool:
            self._pool.shutdown(wait=False, cancel_futures=True)


def _covering(frame: Frame, times: int) -> tuple[int, int]:
    """(width, height) of the whole picture at which the part that is kept is `times` its size."""
    left, top, right, bottom = frame.box
    across, down = frame.size[0] / (right - left), frame.size[1] / (bottom - top)
    return int(times * across * frame.original[0]) + 1, int(times * down * frame.original[1]) + 1


def _mask_for(frame: Frame, source: Path | bytes) -> Image.Image:
    mask, (width, height) = open_picture(source).convert("L"), frame.original
    if abs(mask.width * height / (mask.height * width) - 1) > SAME_RATIO:
        raise U1Error(
            f"its mask is {mask.width}x{mask.height}, of another shape than the picture's {width}x{height}; "
            "crop both alike"
        )
    return mask


def _weights(mask: Image.Image) -> Tensor:
    weights = torch.from_numpy(np.array(mask))
    if not weights.any():
        raise U1Error("its mask is black where the picture is trained, which leaves nothing to train on")
    return weights
