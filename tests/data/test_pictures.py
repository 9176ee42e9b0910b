import io
import json
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms
from PIL.PngImagePlugin import PngImageFile
from safetensors.torch import load_file

from u1_core.data.pictures import (
    generated_patches,
    open_alpha,
    open_picture,
    picture_size,
    save_png,
    smart_resize,
    to_images,
    to_pixels,
    to_rgb,
    to_tensor,
    understanding_patches,
)
from u1_core.errors import U1Error
from u1_core.model.config import U1Config
from u1_core.model.pixels import to_patches


def encoded(image: Image.Image, format: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def noise(width: int, height: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)


def linear_profile() -> bytes:
    """The smallest ICC profile of sRGB's primaries with linear light in place of its curve."""

    def fixed(*values: float) -> bytes:
        return struct.pack(f">{len(values)}i", *(round(value * 65536) for value in values))

    curve = b"curv" + bytes(4) + struct.pack(">I", 0) + bytes(4)
    text = b"desc" + bytes(4) + struct.pack(">I", 7) + b"linear\0" + bytes(78 + 3)
    colours = {"r": (0.4361, 0.2225, 0.0139), "g": (0.3851, 0.7169, 0.0971), "b": (0.1431, 0.0606, 0.7141)}
    tags = {b"desc": text, b"wtpt": b"XYZ " + bytes(4) + fixed(0.9642, 1, 0.8249)}
    for letter, xyz in colours.items():
        tags[f"{letter}XYZ".encode()] = b"XYZ " + bytes(4) + fixed(*xyz)
        tags[f"{letter}TRC".encode()] = curve
    table, body = struct.pack(">I", len(tags)), b""
    for name, data in tags.items():
        table += name + struct.pack(">II", 128 + 4 + 12 * len(tags) + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    size = 128 + len(table) + len(body)
    head = struct.pack(">I4sI4s4s4s", size, bytes(4), 0x02100000, b"mntr", b"RGB ", b"XYZ ") + bytes(12) + b"acsp"
    head += bytes(28) + fixed(0.9642, 1, 0.8249)
    return head.ljust(128, b"\0") + table + body


# What people have


def test_a_plain_picture_comes_as_it_is(tmp_path):
    image = Image.fromarray(noise(20, 10))
    image.save(tmp_path / "a.png")
    for source in (tmp_path / "a.png", encoded(image), image):
        opened = open_picture(source)
        assert opened.mode == "RGB"
        assert opened.size == (20, 10)
        assert opened.tobytes() == image.tobytes()


def test_exif_turns_it_upright():
    image = Image.new("RGB", (20, 10), "blue")
    image.paste("red", (0, 0, 10, 10))
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned clockwise by a quarter
    opened = open_picture(encoded(image, exif=exif))
    assert opened.size == (10, 20)
    assert opened.getpixel((5, 2)) == (255, 0, 0)
    assert opened.getpixel((5, 17)) == (0, 0, 255)


def test_transparency_lies_over_white():
    rgba = Image.fromarray(np.array([[[200, 0, 0, 0], [200, 0, 0, 255], [200, 0, 0, 51]]], dtype=np.uint8))
    assert list(open_picture(encoded(rgba)).tobytes()) == [255, 255, 255, 200, 0, 0, 244, 204, 204]
    grey = Image.fromarray(np.array([[[100, 0], [100, 255]]], dtype=np.uint8), "LA")
    assert list(open_picture(encoded(grey)).tobytes()) == [255, 255, 255, 100, 100, 100]


def test_transparency_of_palettes_and_colour_keys():
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putdata([0, 1])
    assert list(open_picture(encoded(palette)).tobytes()) == [10, 20, 30, 40, 50, 60]
    assert list(open_picture(encoded(palette, transparency=0)).tobytes()) == [255, 255, 255, 40, 50, 60]
    key = Image.fromarray(np.array([[[1, 2, 3], [4, 5, 6]]], dtype=np.uint8))
    assert list(open_picture(encoded(key, transparency=(4, 5, 6))).tobytes()) == [1, 2, 3, 255, 255, 255]


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_16_bit_is_scaled(format):
    levels = np.array([[0, 257, 32896, 65535]], dtype=np.uint16)
    opened = open_picture(encoded(Image.fromarray(levels), format))
    assert [pixel[0] for pixel in np.array(opened)[0].tolist()] == [0, 1, 128, 255]


@pytest.mark.parametrize("values", [np.float32([[0.0, 1.0]]), np.int32([[0, 70000]])])
def test_32_bit_numbers_are_refused(values, tmp_path):
    Image.fromarray(values).save(tmp_path / "depth.tif")
    with pytest.raises(U1Error, match=r"depth\.tif: has 32-bit numbers, whose white is unknown; save it with 8 or 16"):
        open_picture(tmp_path / "depth.tif")


def test_other_modes_become_rgb():
    assert open_picture(encoded(Image.new("1", (1, 1), 1))).getpixel((0, 0)) == (255, 255, 255)
    assert open_picture(encoded(Image.new("L", (1, 1), 77))).getpixel((0, 0)) == (77, 77, 77)
    cmyk = open_picture(encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "TIFF"))
    assert cmyk.getpixel((0, 0)) == (255, 0, 0)


def test_the_first_frame_of_several():
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    animation = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert open_picture(animation).getpixel((1, 1)) == (255, 0, 0)


def test_colours_go_to_srgb():
    grey = Image.new("RGB", (2, 2), (55, 128, 200))
    opened = open_picture(encoded(grey, icc_profile=linear_profile()))
    linear = np.array([55, 128, 200]) / 255
    expected = np.rint(255 * (1.055 * linear ** (1 / 2.4) - 0.055))
    assert np.abs(np.array(opened.getpixel((0, 0))) - expected).max() <= 1
    assert to_rgb(opened).tobytes() == opened.tobytes()  # a second time changes nothing


def test_transparency_and_a_profile_together():
    clear = Image.new("RGBA", (1, 1), (0, 0, 0, 0))
    half = Image.new("RGBA", (1, 1), (128, 128, 128, 255))
    assert open_picture(encoded(clear, icc_profile=linear_profile())).getpixel((0, 0)) == (255, 255, 255)
    assert open_picture(encoded(half, icc_profile=linear_profile())).getpixel((0, 0)) == (188, 188, 188)


def test_an_srgb_profile_or_a_broken_one_changes_nothing():
    image = Image.fromarray(noise(16, 16))
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for profile in (srgb, b"no profile"):
        assert open_picture(encoded(image, icc_profile=profile)).tobytes() == image.tobytes()


def test_the_callers_image_is_left_alone():
    image = Image.open(io.BytesIO(encoded(Image.new("RGB", (4, 2), "red"), icc_profile=linear_profile())))
    open_picture(image)
    to_rgb(image)
    assert image.info["icc_profile"] == linear_profile()


def test_files_that_are_no_pictures(tmp_path):
    with pytest.raises(U1Error, match=r"gone\.png: there is no such file"):
        open_picture(tmp_path / "gone.png")
    (tmp_path / "notes.png").write_text("not a picture", encoding="utf-8")
    with pytest.raises(U1Error, match=r"notes\.png: is no picture in a format that can be read"):
        open_picture(tmp_path / "notes.png")
    with pytest.raises(U1Error, match=r"^picture: is no picture"):
        open_picture(b"")


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_files_that_were_cut_short(tmp_path, format):
    path = tmp_path / f"cut.{format.lower()}"
    whole = encoded(Image.fromarray(noise(64, 64)), format)
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(U1Error, match=rf"cut\.{format.lower()}: "):
        open_picture(path)


def test_huge_pictures_are_refused_by_their_header(tmp_path, monkeypatch):
    Image.new("RGB", (300, 300)).save(tmp_path / "huge.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40_000)
    for look in (open_picture, picture_size, open_alpha):
        with pytest.raises(U1Error, match=r"huge\.png: is over 0 megapixels, too huge to be opened safely; shrink it"):
            look(tmp_path / "huge.png")
    monkeypatch.undo()
    head = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + struct.pack(">II", 60000, 60000) + b"\x08\x02\0\0\0"
    bomb = head + struct.pack(">I", zlib.crc32(head[12:])) + encoded(Image.new("RGB", (1, 1)))[33:]
    with pytest.raises(U1Error, match=r"^picture: is over 179 megapixels, too huge"):
        open_picture(bomb)


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_the_size_is_known_from_the_header(orientation, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    whole = encoded(Image.new("RGB", (200, 100)), "JPEG", exif=exif)
    size = (100, 200) if orientation in (6, 8) else (200, 100)
    assert picture_size(whole) == open_picture(whole).size == size
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) - 100])
    assert picture_size(tmp_path / "cut.jpg") == size
    with pytest.raises(U1Error, match=r"gone\.png: there is no such file"):
        picture_size(tmp_path / "gone.png")


@pytest.mark.parametrize(
    ("at_least", "size"),
    [((100, 50), (100, 50)), ((101, 50), (200, 100)), ((201, 10), (400, 200)), ((500, 500), (800, 400))],
)
def test_a_jpeg_may_come_reduced(at_least, size):
    image = Image.new("RGB", (800, 400), "teal")
    assert open_picture(encoded(image, "JPEG"), at_least).size == size
    turned = Image.Exif()
    turned[0x0112] = 6
    assert open_picture(encoded(image, "JPEG", exif=turned), at_least[::-1]).size == size[::-1]
    assert open_picture(encoded(image), at_least).size == (800, 400)  # no other format can


def test_how_opaque_a_picture_is():
    rgba = np.zeros((2, 3, 4), dtype=np.uint8)
    rgba[..., 3] = [[0, 128, 255], [9, 8, 7]]
    alpha = open_alpha(encoded(Image.fromarray(rgba)))
    assert (alpha.mode, np.asarray(alpha).tolist()) == ("L", rgba[..., 3].tolist())
    exif = Image.Exif()
    exif[0x0112] = 6
    assert np.asarray(open_alpha(encoded(Image.fromarray(rgba), exif=exif))).tolist() == [[9, 0], [8, 128], [7, 255]]
    assert np.asarray(open_alpha(encoded(Image.new("L", (2, 1))))).tolist() == [[255, 255]]


# For the model


@pytest.mark.parametrize(
    ("height", "width", "size"),
    [
        (1000, 1000, (992, 992)),  # 31.25 tokens
        (1008, 1040, (1024, 1024)),  # halves go to the even number of tokens: 31.5 and 32.5 to 32
        (100, 100, (256, 256)),  # grown to the fewest pixels
        (100, 150, (224, 320)),
        (4000, 6000, (1664, 2496)),  # shrunk to the most pixels
        (10, 1900, (32, 3552)),
    ],
)
def test_smart_resize(height, width, size):
    assert smart_resize(height, width, 32, 256**2, 2048**2) == size


def test_smart_resize_refuses_a_thread():
    assert smart_resize(10, 2000, 32, 1, 2048**2) == (32, 1984)
    with pytest.raises(U1Error, match="a picture of 2001x10 is too narrow: its sides may differ 200 times at most"):
        smart_resize(10, 2001, 32, 1, 2048**2)


@pytest.mark.parametrize("variant", ["dense", "moe", "u15"])
def test_patches_equal_the_official(oracle, variant):
    folder = oracle(variant)
    case = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["cases"]["vision_understanding"]
    expected = load_file(folder / "vision_understanding.safetensors")
    config = U1Config.from_file(folder / "model/config.json")
    image = open_picture(folder / case["image"])
    picture = understanding_patches(image, config, case["input_min_pixels"], case["input_max_pixels"])
    assert list(picture.grid) == expected["grid_hw"][0].tolist()
    assert picture.patches.dtype == torch.float32
    assert torch.allclose(picture.patches, expected["pixel_patches"], rtol=0, atol=5e-7)


def test_a_drawn_picture_goes_back_in_as_if_it_had_been_opened(tiny):
    config = tiny("u1").config
    side = config.token_pixels
    image = Image.fromarray(noise(4 * side, 3 * side))
    drawn = generated_patches(to_tensor(image).unsqueeze(0), config)
    opened = understanding_patches(image, config, 1, 2048**2)
    assert drawn.grid == opened.grid == (3 * config.merge, 4 * config.merge)
    assert torch.allclose(drawn.patches, opened.patches, rtol=0, atol=1e-6)


def test_patches_are_channel_row_column(tiny):
    config = tiny("u1").config
    size = config.patch_size
    x = torch.rand(1, 3, 2 * config.token_pixels, config.token_pixels)
    patch = generated_patches(x, config).patches[config.merge]  # the first of the second row
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    window = x[0, :, size : 2 * size, :size] * 0.5 + 0.5
    assert torch.allclose(patch, ((window - mean[:, None, None]) / std[:, None, None]).flatten())
    assert to_patches(x, size).shape[-1] == patch.numel()


def test_to_tensor_and_back():
    image = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16).repeat(3).reshape(16, 16, 3))
    x = to_tensor(image)
    assert x.shape == (3, 16, 16)
    assert x.dtype == torch.float32
    assert (x.min(), x.max()) == (-1, 1)
    assert to_pixels(image).dtype == torch.uint8
    [back] = to_images(x.unsqueeze(0))
    assert back.tobytes() == image.tobytes()


def test_to_images_clips_and_rounds_halves_to_even():
    levels = torch.tensor([-9.0, 0.5, 1.5, 2.5, 3.4, 300.0])
    x = (levels / 255 * 2 - 1).double()
    [image] = to_images(x.expand(1, 3, 1, -1))
    expected = np.rint(np.clip(x.float().numpy() * np.float32(0.5) + np.float32(0.5), 0, 1) * 255)
    assert [pixel[0] for pixel in np.array(image)[0].tolist()] == expected.tolist()
    assert expected[0] == 0
    assert expected[-1] == 255
    [grey] = to_images(torch.zeros(1, 3, 1, 1))  # 127.5
    assert grey.getpixel((0, 0)) == (128, 128, 128)


# Out


def test_a_png_carries_its_settings(tmp_path):
    settings = {
        "prompt": "湖边的猫\nat dusk",
        "settings": {"steps": 50, "guidance": {"scale": 4.0}},
        "loras": ["a.st:0.5"],
    }
    path = save_png(Image.new("RGB", (4, 4), "red"), tmp_path / "u1.png", settings)
    assert path == tmp_path / "u1.png"
    with Image.open(path) as image:
        assert json.loads(image.text["u1"]) == settings
        assert image.text["parameters"].splitlines() == [
            "prompt: 湖边的猫",
            "at dusk",
            "settings.steps: 50",
            "settings.guidance.scale: 4.0",
            "loras: ['a.st:0.5']",
        ]
        assert image.getpixel((0, 0)) == (255, 0, 0)


def test_nothing_is_overwritten(tmp_path):
    colours = ["red", "lime", "blue"]
    paths = [save_png(Image.new("RGB", (1, 1), colour), tmp_path / "u1.png", {}) for colour in colours]
    assert [path.name for path in paths] == ["u1.png", "u1-1.png", "u1-2.png"]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(path.name for path in paths)
    assert [open_picture(path).getpixel((0, 0)) for path in paths] == [(255, 0, 0), (0, 255, 0), (0, 0, 255)]


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(U1Error, match=r"u1\.png: cannot be written \(No such file or directory\)"):
        save_png(Image.new("RGB", (1, 1)), tmp_path / "gone/u1.png", {})


def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch):
    def fail(*_args, **_options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(U1Error, match=r"cannot be written \(No space left on device\)"):
        save_png(Image.new("RGB", (1, 1)), tmp_path / "u1.png", {})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("late", [False, True])
def test_the_size_of_a_png_is_known_without_decoding_it(orientation, late, tmp_path, monkeypatch):
    exif = Image.Exif()
    exif[0x0112] = orientation
    whole = encoded(Image.new("RGB", (200, 100)), "PNG", exif=exif)
    start = whole.index(b"eXIf") - 4
    chunk = whole[start : start + 12 + int.from_bytes(whole[start : start + 4], "big")]
    if late:  # where it may stand, too: after the pixels
        whole = whole.replace(chunk, b"").replace(whole[-12:], chunk + whole[-12:])
    size = (100, 200) if orientation == 6 else (200, 100)
    assert open_picture(whole).size == size
    (tmp_path / "a.png").write_bytes(whole)
    decoded, load = [], PngImageFile.load
    monkeypatch.setattr(PngImageFile, "load", lambda image: (decoded.append(image), load(image))[1])
    assert picture_size(tmp_path / "a.png") == size
    assert bool(decoded) == late
