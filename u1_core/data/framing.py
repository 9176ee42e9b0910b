"""How a picture comes to the size it is trained at: which size, which part of it, and how much it grows or shrinks."""

from dataclasses import dataclass

from PIL import Image

from u1_core.data.buckets import Size, bucket_for, cover_box
from u1_core.data.pictures import smart_resize
from u1_core.errors import U1Error

SHRINK = 0.97
"""Factor between one budget tried and the next, for a picture that fills none so far."""


@dataclass(frozen=True)
class Frame:
    """The part `box` (left, top, right, bottom) of a picture of `original` size, brought to `size`."""

    original: Size
    size: Size
    box: tuple[float, float, float, float]

    @property
    def enlarged(self) -> float:
        """How many times as long the longer-grown side becomes; above 1 the picture is enlarged."""
        left, top, right, bottom = self.box
        return max(self.size[0] / (right - left), self.size[1] / (bottom - top))

    @property
    def lost(self) -> float:
        """The share of the picture that is cut off."""
        left, top, right, bottom = self.box
        return 1.0 - (right - left) * (bottom - top) / (self.original[0] * self.original[1])

    def cut(self, image: Image.Image, resample: Image.Resampling) -> Image.Image:
        """That part of `image`, which may be the picture or anything of its ratio: a mask, a reduced decoding."""
        across, down = image.width / self.original[0], image.height / self.original[1]
        left, top, right, bottom = self.box
        box = (left * across, top * down, min(image.width, right * across), min(image.height, bottom * down))
        return image.resize(self.size, resample, box=box)


@dataclass(frozen=True)
class Framing:
    """The rules of a run. They are those of the recipe's `data`; `token_pixels` is the model's."""

    max_pixels: int
    token_pixels: int
    snap: bool = True
    """Take the official ratio nearest to the picture's own; else its own size in whole tokens."""
    fit: str = "crop"
    """"crop" covers the size and cuts evenly, "stretch" distorts."""
    upscale: str = "allow"
    """"allow" enlarges what is too small, "shrink_bucket" takes a smaller size, "skip" is for the caller to heed."""

    def frame(self, width: int, height: int) -> Frame:
        """How a picture of this size is framed. Raises U1Error for one too narrow, or with fewer pixels than it takes.

        With "shrink_bucket" the size is the largest of the same ratio (or in whole tokens) that it fills.
        """
        frame = self._framed((width, height), self.max_pixels)
        if self.upscale != "shrink_bucket":
            return frame
        side = self.token_pixels
        if min(width, height) < side:
            raise U1Error(f"is {width}x{height} pixels, smaller than one token of {side}x{side}")
        pixels = float(min(self.max_pixels, frame.size[0] * frame.size[1]))
        while frame.enlarged > 1 and pixels >= side**2:
            frame = self._framed((width, height), int(pixels))
            pixels *= SHRINK
        return frame

    def _framed(self, original: Size, max_pixels: int) -> Frame:
        side = self.token_pixels
        if self.snap:
            size = bucket_for(*original, max_pixels, side)
        else:
            height, width = smart_resize(original[1], original[0], side, side**2, max_pixels)
            size = width, height
        whole = (0.0, 0.0, float(original[0]), float(original[1]))
        return Frame(original, size, whole if self.fit == "stretch" else cover_box(original, size))
