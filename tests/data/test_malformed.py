"""Files as they arrive: broken, cut short, misnamed, lying about what they are. Each gives one clear line.

Every case goes the way of a run's start: open the set, look at it, refuse it. None may end in anything but a U1Error of
one line that names the set or the file, and nothing may be written.
"""

import io
import random
import struct
import zlib

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from u1_core.data.check import Rules, check_dataset, problems_of
from u1_core.data.dataset import open_dataset
from u1_core.data.folder import refuse_problems
from u1_core.data.framing import Framing
from u1_core.data.picture_cache import training_pictures
from u1_core.errors import U1Error

FRAMING = Framing(64 * 64, 8)
PIXELS = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)


def encoded(format, **options):
    file = io.BytesIO()
    Image.fromarray(PIXELS).save(file, format, **options)
    return file.getvalue()


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_of(width, height, depth=8, colour=2, data=b""):
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def damaged(whole, seed):
    """`whole` with its latter half replaced by other bytes: what has checksums is found out."""
    noise = random.Random(seed).randbytes(len(whole) // 2)
    return whole[: len(whole) - len(noise)] + noise


def pictures():
    for format in ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF"):
        whole = encoded(format)
        for share in (0.1, 0.3, 0.6, 0.8):
            yield f"{format} cut at {share}", whole[: int(len(whole) * share)]
        yield f"{format} with its head torn off", whole[12:]
    for seed in range(3):
        yield f"PNG damaged {seed}", damaged(encoded("PNG"), seed)
        yield f"noise {seed}", random.Random(seed).randbytes(500)
    yield "empty", b""
    yield "one byte", b"\x89"
    yield "text", b"a caption that was saved as a picture"
    yield "utf-16 text", "picture".encode("utf-16")
    yield "html", b"<!DOCTYPE html><html><body>404 Not Found</body></html>"
    yield "svg", b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>'
    yield "zip", b"PK\x03\x04" + bytes(100)
    yield "zeros", bytes(4096)
    yield "a git-lfs pointer", b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
    yield "heic", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(64)
    yield "a bomb of 4 gigapixels", png_of(65535, 65535)
    yield "a size of 2^31", png_of(2**31 - 1, 2**31 - 1)
    yield "no width", png_of(0, 10)
    yield "no pixels", png_of(64, 48)
    yield "too few pixels", png_of(64, 48, data=bytes(100))
    yield "a depth that is none", png_of(64, 48, depth=7, data=bytes(9999))
    yield "a wrong checksum", encoded("PNG")[:29] + b"\0\0\0\0" + encoded("PNG")[33:]
    yield "a jpeg of nothing", b"\xff\xd8\xff\xd9"
    yield "a jpeg head", encoded("JPEG")[:20]
    yield "32-bit floats", _tiff(np.float32(PIXELS[..., 0]))
    yield "32-bit integers", _tiff(np.int32(PIXELS[..., 0]) * 10**6)


def _tiff(levels):
    file = io.BytesIO()
    Image.fromarray(levels).save(file, "TIFF")
    return file.getvalue()


CAPTIONS = {
    "none": None,
    "empty": b"",
    "spaces and lines": b" \n\t\r\n ",
    "only a byte order mark": b"\xef\xbb\xbf",
    "utf-16": "a cat".encode("utf-16"),
    "latin-1": "ein schönes Bild".encode("latin-1"),
    "cut inside a character": "猫".encode()[:2],
    "a picture": encoded("PNG"),
    "nothing but reasoning": b"---think---\nwhy",
    "a picture mark": b"see <image> here",
    "many picture marks": b"<image>" * 50,
    "picture tokens": b"a <img> in it",
    "context tokens": b"<IMG_CONTEXT>",
    "an end of picture": b"</img> and on",
    "a token at the end": b"a cat <img>",
    "zero bytes that are no text": b"\xff\xfe\0\0",
}

GOOD = encoded("PNG")


def table_bytes(**columns):
    file = io.BytesIO()
    rows = {"sample_id": ["a", "b"], "caption": ["a cat", "a dog"], "image": [GOOD, GOOD]} | columns
    pyarrow.parquet.write_table(pyarrow.table({n: v for n, v in rows.items() if v is not None}), file)
    return file.getvalue()


def tables():
    whole = table_bytes()
    for share in (0, 0.01, 0.5, 0.99):
        yield f"parquet cut at {share}", "t.parquet", whole[: int(len(whole) * share)]
        yield f"arrow cut at {share}", "t.arrow", _arrow(whole)[: int(len(_arrow(whole)) * share)]
    yield "text named parquet", "t.parquet", b"caption,image\na cat,a.png\n"
    yield "text named arrow", "t.arrow", b"caption,image\na cat,a.png\n"
    yield "arrow named parquet", "t.parquet", _arrow(whole)
    yield "parquet named arrow", "t.arrow", whole
    yield "a wrong end", "t.parquet", whole[:-4] + b"PAR2"
    yield "a footer of noise", "t.parquet", whole[:-200] + random.Random(0).randbytes(192) + whole[-8:]
    yield "a footer too long", "t.parquet", whole[:-8] + struct.pack("<I", 2**31 - 1) + b"PAR1"
    yield "no captions", "t.parquet", table_bytes(caption=None)
    yield "no pictures", "t.parquet", table_bytes(image=None)
    yield "numbers for captions", "t.parquet", table_bytes(caption=[1, 2])
    yield "lists for captions", "t.parquet", table_bytes(caption=[["a"], ["b"]])
    yield "paths for pictures", "t.parquet", table_bytes(image=["a.png", "b.png"])
    yield "pixels for pictures", "t.parquet", table_bytes(image=[[1, 2], [3]])
    yield "structs without bytes", "t.parquet", table_bytes(image=[{"path": "a"}, {"path": "b"}])
    yield "an empty caption", "t.parquet", table_bytes(caption=["a cat", ""])
    yield "a null caption", "t.parquet", table_bytes(caption=["a cat", None])
    yield "a null picture", "t.parquet", table_bytes(image=[GOOD, None])
    yield "a broken picture", "t.parquet", table_bytes(image=[GOOD, GOOD[:500]])
    yield "texts for sizes", "t.parquet", table_bytes(width=["a", "b"])
    yield (
        "no rows",
        "t.parquet",
        table_bytes(sample_id=[], caption=pyarrow.array([], "string"), image=pyarrow.array([], "binary")),
    )
    yield "only nulls", "t.parquet", table_bytes(caption=[None, None])
    pages = bytearray(whole)
    pages[40:400] = random.Random(1).randbytes(360)
    yield "damaged pages", "t.parquet", bytes(pages)


def _arrow(parquet):
    rows, file = pyarrow.parquet.read_table(io.BytesIO(parquet)), io.BytesIO()
    with pyarrow.ipc.new_file(file, rows.schema) as writer:
        writer.write_table(rows)
    return file.getvalue()


def start(source, masks="none"):
    """What a run does before it trains."""
    dataset = open_dataset(source)
    pictures = training_pictures(dataset, FRAMING, masks, workers=1)
    refuse_problems(source, problems_of(check_dataset(dataset, pictures, Rules(FRAMING))))


def refused(source, masks="none"):
    """The one line that refuses it."""
    before = sorted(source.parent.rglob("*"))
    with pytest.raises(U1Error) as caught:
        start(source, masks)
    line = str(caught.value)
    assert "\n" not in line
    assert "Traceback" not in line
    assert sorted(source.parent.rglob("*")) == before
    return line


@pytest.mark.parametrize(("what", "data"), [pytest.param(*case, id=case[0]) for case in pictures()])
def test_pictures(tmp_path, what, data):
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "good.png").write_bytes(GOOD)
    (folder / "bad.png").write_bytes(data)
    for name in ("good", "bad"):
        (folder / f"{name}.txt").write_text("a caption of its own")
    line = refused(folder)
    assert line.startswith(f"{folder}: cannot train on 1 picture: bad.png (")
    assert line.endswith("; mend them or move them away")


@pytest.mark.parametrize(("what", "data"), CAPTIONS.items(), ids=CAPTIONS)
def test_captions(tmp_path, what, data):
    folder = tmp_path / "set"
    folder.mkdir()
    for name in ("good", "bad"):
        (folder / f"{name}.png").write_bytes(GOOD)
        (folder / f"{name}.txt").write_text("a caption of its own")
    if data is None:
        (folder / "bad.txt").unlink()
    else:
        (folder / "bad.txt").write_bytes(data)
    assert refused(folder).startswith(f"{folder}: cannot train on 1 picture: bad.png (")


@pytest.mark.parametrize(("what", "name", "data"), [pytest.param(*case, id=case[0]) for case in tables()])
def test_tables(tmp_path, what, name, data):
    path = tmp_path / name
    path.write_bytes(data)
    assert refused(path).startswith(f"{path}")


MASKS = {
    "black": lambda: Image.new("L", (64, 48)),
    "of another shape": lambda: Image.new("L", (48, 64), 255),
    "cut short": lambda: GOOD[:200],
    "empty": lambda: b"",
    "text": lambda: b"a mask",
}


@pytest.mark.parametrize("what", MASKS)
def test_masks(tmp_path, what):
    folder, mask = tmp_path / "set", MASKS[what]()
    folder.mkdir()
    (folder / "a.png").write_bytes(GOOD)
    (folder / "a.txt").write_text("a caption of its own")
    if isinstance(mask, Image.Image):
        mask.save(folder / "a.mask.png")
    else:
        (folder / "a.mask.png").write_bytes(mask)
    start(folder)  # they matter to those only who use them
    assert refused(folder, "file").startswith(f"{folder}: cannot train on 1 picture: a.png (")


def test_there_are_a_hundred_of_them():
    assert len([*pictures(), *CAPTIONS, *tables(), *MASKS]) >= 100
