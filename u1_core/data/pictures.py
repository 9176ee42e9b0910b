"""Pictures as people have them to tensors, and tensors to pictures that carry their settings."""

import io
import json
import math
import os
import struct
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import ExifTags, Image, ImageCms, ImageOps, PngImagePlugin
from torch import Tensor

from u1_core.errors import U1Error
from u1_core.model.config import U1Config
from u1_core.model.pixels import to_patches
from u1_core.text.sequence import PicturePatches

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
WIDEST_RATIO = 200
"""How many times as long as the other one side of an input picture may be (Qwen2.5-VL)."""
TURNED = range(5, 9)
"""EXIF orientations that exchange width and height."""

Source = Path | bytes | Image.Image
"""A picture file, its bytes, or an image already open."""

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"

# PIL refuses what is over twice its limit, as we do; what it only warns of, below that, is an ordinary large picture.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


def open_picture(source: Source, at_least: tuple[int, int] | None = None) -> Image.Image:
    """A picture -> RGB, 8 bit, upright; the first frame if there are several.

    Transparency goes over white, colours go from the picture's own profile to sRGB. With `at_least` (width, height) a
    JPEG may come reduced by 2, 4 or 8, several times as fast, but no smaller than that. Raises U1Error naming the file
    if it is missing, broken, cut short, not a picture, or so huge that opening it is not safe.
    """
    with _opened(source) as image:
        if at_least and image.format == "JPEG":
            image.draft(None, at_least[::-1] if _orientation(image) in TURNED else at_least)
        return to_rgb(ImageOps.exif_transpose(image))


def picture_size(source: Source) -> tuple[int, int]:
    """(width, height) of a picture, upright, from its header alone. Raises U1Error like `open_picture`."""
    with _opened(source) as image:
        return image.size[::-1] if _orientation(image) in TURNED else image.size


def open_alpha(source: Source) -> Image.Image:
    """How opaque each pixel of a picture is, upright, as an L image; all white for one without transparency."""
    with _opened(source) as image:
        upright = ImageOps.exif_transpose(image)
        if upright.has_transparency_data:
            return upright.convert("RGBA").getchannel("A")
        return Image.new("L", upright.size, 255)


@contextmanager
def _opened(source: Source) -> Iterator[Image.Image]:
    """The image behind `source`; whatever goes wrong with it inside the block becomes a U1Error that names it."""
    name = source if isinstance(source, Path) else "picture"
    try:
        if isinstance(source, Image.Image):
            yield source
            return
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            yield image
    except FileNotFoundError:
        raise U1Error(f"{name}: there is no such file") from None
    except Image.UnidentifiedImageError:
        raise U1Error(f"{name}: is no picture in a format that can be read; use PNG, JPEG, WebP or TIFF") from None
    except Image.DecompressionBombError:
        limit = 2 * Image.MAX_IMAGE_PIXELS / 1e6
        raise U1Error(f"{name}: is over {limit:.0f} megapixels, too huge to be opened safely; shrink it") from None
    except U1Error as problem:
        raise U1Error(f"{name}: {problem}") from None
    except Exception as problem:  # decoders raise whatever they stumble over
        words = " ".join(str(problem).split())
        raise U1Error(f"{name}: cannot be read as a picture, it is broken or cut short ({words})") from None


def _orientation(image: Image.Image) -> int:
    # Of a PNG, Pillow decodes the whole picture first, for what may come after it; most often nothing does.
    exif = Image.Image.getexif(image) if _tells_nothing_late(image) else image.getexif()
    return exif.get(ExifTags.Base.Orientation, 1)


def _tells_nothing_late(image: Image.Image) -> bool:
    """Whether it is a PNG that has just been opened and has nothing about itself after its pixels."""
    if image.format != "PNG" or not (file := getattr(image, "fp", None)):
        return False
    here, kind, kinds = file.tell(), b"", []
    file.seek(len(PNG_SIGNATURE))
    while kind != b"IEND" and len(head := file.read(8)) == 8:
        n_bytes, kind = struct.unpack(">I4s", head)
        kinds.append(kind)
        file.seek(n_bytes + 4, os.SEEK_CUR)
    file.seek(here)
    return b"IDAT" in kinds and set(kinds[kinds.index(b"IDAT") :]) <= {b"IDAT", b"IEND"}


def to_rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB in sRGB, over white where `image` is transparent. An RGB picture without a profile stays as it is.

    Raises U1Error for numbers that have no known white (32-bit TIFF).
    """
    profile = image.info.get("icc_profile")
    if image.mode[0] in "IF":
        image = _from_16_bit(image)
    alpha = None
    if image.has_transparency_data:
        if image.mode != "LA":
            image = image.convert("RGBA")
        alpha, image = image.getchannel("A"), image.convert(image.mode[:-1])
    image = _to_srgb(image, profile)
    if alpha:
        white = Image.new("RGB", image.size, "white")
        white.paste(image, mask=alpha)
        image = white
    image.info = {}
    return image


def smart_resize(height: int, width: int, factor: int, min_pixels: int, max_pixels: int) -> tuple[int, int]:
    """(height, width) in multiples of `factor` within the pixel limits, nearly of the same ratio (Qwen2.5-VL's rule).

    Raises U1Error if one side is over 200 times the other.
    """
    if max(height, width) > WIDEST_RATIO * min(height, width):
        raise U1Error(f"a picture of {width}x{height} is too narrow: its sides may differ {WIDEST_RATIO} times at most")
    rows, columns = max(1, round(height / factor)), max(1, round(width / factor))
    pixels = rows * columns * factor**2
    if pixels > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        rows = max(1, math.floor(height / shrink / factor))
        columns = max(1, math.floor(width / shrink / factor))
    elif pixels < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        rows, columns = math.ceil(height * grow / factor), math.ceil(width * grow / factor)
    return rows * factor, columns * factor


def understanding_patches(image: Image.Image, config: U1Config, min_pixels: int, max_pixels: int) -> PicturePatches:
    """An input picture as the understanding tower sees it, resized to whole tokens within the pixel limits."""
    image = to_rgb(image)
    height, width = smart_resize(image.height, image.width, config.token_pixels, min_pixels, max_pixels)
    resized = image.resize((width, height), Image.Resampling.BICUBIC)
    return _normalised(to_pixels(resized).float().div(255), config)


def generated_patches(picture: Tensor, config: U1Config) -> PicturePatches:
    """A picture that was drawn, (1, 3, H, W) in [-1, 1], as the understanding tower sees it. It is not resized."""
    return _normalised(picture[0].float() * 0.5 + 0.5, config)


def to_pixels(image: Image.Image) -> Tensor:
    """An RGB image -> uint8 (3, H, W)."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def from_pixels(pixels: Tensor) -> Image.Image:
    """uint8 (3, H, W), on a CPU -> an RGB image."""
    # Channel by channel: Pillow takes ten times as long to gather a picture from an array that is not contiguous.
    return Image.merge("RGB", [Image.fromarray(channel) for channel in pixels.numpy()])


def to_tensor(image: Image.Image) -> Tensor:
    """An RGB image -> fp32 (3, H, W) in [-1, 1]."""
    return (to_pixels(image).float() / 255 - 0.5) / 0.5


def to_images(x: Tensor) -> list[Image.Image]:
    """(B, 3, H, W) in [-1, 1] -> RGB images. What lies outside is clipped, halves go to the even level."""
    levels = (x.float() * 0.5 + 0.5).clamp(0, 1).mul(255).round().to(torch.uint8)
    return [from_pixels(picture) for picture in levels.cpu()]


def save_png(image: Image.Image, path: Path, settings: Mapping[str, Any]) -> Path:
    """Write a PNG that carries `settings`: as JSON under "u1", and to be read by people under "parameters".

    If `path` is taken, name-1.png, name-2.png … is used. Returns the path written. Raises U1Error if it cannot be.
    """
    chunks = PngImagePlugin.PngInfo()
    chunks.add_itxt("u1", json.dumps(settings, ensure_ascii=False))
    chunks.add_itxt("parameters", "\n".join(_readable(settings)))
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            image.save(file, "PNG", pnginfo=chunks)
            file.flush()
            os.fsync(file.fileno())
        target = _claim(path)
        os.replace(part, target)
    except OSError as problem:
        raise U1Error(f"{path}: cannot be written ({problem.strerror or problem})") from None
    finally:
        part.unlink(missing_ok=True)
    return target


def _from_16_bit(image: Image.Image) -> Image.Image:
    """Grey numbers from 0 to 65535 -> L. (PIL's own conversion clips them at 255.)"""
    levels = np.asarray(image)
    if image.mode == "F" or levels.min() < 0 or levels.max() > 65535:
        raise U1Error("has 32-bit numbers, whose white is unknown; save it with 8 or 16 bits a channel")
    return Image.fromarray(np.rint(levels / 257).astype(np.uint8))


def _to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """RGB by the picture's colour profile; without one, or if it is broken or not for this mode, as if it were sRGB."""
    if image.mode == "P":
        image = image.convert("RGB")
    if profile:
        try:
            own = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            if "srgb" not in ImageCms.getProfileDescription(own).lower():
                return ImageCms.profileToProfile(image, own, ImageCms.createProfile("sRGB"), outputMode="RGB")
        except (ImageCms.PyCMSError, OSError):
            pass
    return image.convert("RGB")


def _normalised(x: Tensor, config: U1Config) -> PicturePatches:
    """(3, H, W) in [0, 1] -> ImageNet-normalised patches."""
    mean, std = (x.new_tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    patches = to_patches(((x - mean) / std).unsqueeze(0), config.patch_size)[0]
    return PicturePatches(patches.flatten(0, 1), (patches.shape[0], patches.shape[1]))


def _readable(settings: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """A line for each value; settings within settings have dotted names."""
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _readable(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}: {value}"


def _claim(path: Path) -> Path:
    """Make an empty file at `path` or, while that is taken, at name-1, name-2 …"""
    target, number = path, 0
    while True:
        try:
            target.touch(exist_ok=False)
            return target
        except FileExistsError:
            number += 1
            target = path.with_name(f"{path.stem}-{number}{path.suffix}")
