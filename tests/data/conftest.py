"""Small sets of pictures and captions, as folders and as tables."""

import io
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

CAPTIONS = (
    "a red house by a lake",
    "two dogs running after a ball",
    "an old man reading a newspaper",
    "bowl of fruit on a wooden table",
    "city street in the rain at night",
    "mountains under a clear sky",
)


def picture(number: int, width: int = 40, height: int = 30) -> Image.Image:
    """A soft picture that no other number has."""
    blocks = Image.fromarray(np.random.default_rng(number).integers(0, 256, (4, 5, 3), dtype=np.uint8))
    return blocks.resize((width, height), Image.Resampling.BICUBIC)


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def put(folder: Path, name: str, caption: str | None, image: Image.Image | bytes) -> None:
    """A picture file with its caption beside it, if it has one."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(image if isinstance(image, bytes) else png(image))
    if caption is not None:
        path.with_suffix(".txt").write_text(caption, encoding="utf-8")


def write_table(path: Path, rows: int, group: int | None = None, **columns) -> Path:
    """A parquet file of small pictures; `columns` replace its own or add to them."""
    table = {
        "sample_id": [f"s{i}" for i in range(rows)],
        "caption": [f"caption number {i}" for i in range(rows)],
        "think": [f"thought {i}" if i % 2 else None for i in range(rows)],
        "image": [png(picture(i)) for i in range(rows)],
    }
    table = {name: values for name, values in (table | columns).items() if values is not None}
    pyarrow.parquet.write_table(pyarrow.table(table), path, row_group_size=group or rows)
    return path


@pytest.fixture
def make() -> SimpleNamespace:
    """The makers above, for tests: make.picture, make.png, make.put, make.table."""
    return SimpleNamespace(picture=picture, png=png, put=put, table=write_table)


@pytest.fixture
def style(tmp_path) -> Path:
    """A folder of six good pictures with captions."""
    for i, (name, caption) in enumerate(zip("abcdef", CAPTIONS, strict=True)):
        put(tmp_path / "style", f"{name}.png", caption, picture(i, 80, 80))
    return tmp_path / "style"
