"""Many pictures and captions into one parquet file, which is quick to copy and to read from at random."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from u1_core.data.dataset import Dataset
from u1_core.data.folder import refuse_problems
from u1_core.data.pictures import open_picture, picture_size
from u1_core.data.table import NUMBERS, PARQUET_SUFFIXES, PICTURES, TEXTS, import_pyarrow
from u1_core.errors import U1Error
from u1_core.weights.write import replacing

GROUP_BYTES, GROUP_ROWS = 8 * 2**20, 256
"""A row group is closed at either: reading one row means reading its group."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Packed:
    """What was written."""

    path: Path
    rows: int
    n_bytes: int
    left_out: dict[str, str]
    """Sample id -> why."""


def pack(
    dataset: Dataset,
    out: Path,
    leave_out_bad: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> Packed:
    """Write the dataset's samples to `out`, row by row, picture files as they are.

    Columns: sample_id, caption, think, image, mask (null where there is none), width and height of the upright
    picture, and repeats if any picture has more than one turn in an epoch. Raises U1Error, and leaves no file, if `out`
    is there already or a sample cannot be trained on, unless `leave_out_bad`.
    """
    if out.suffix.lower() not in PARQUET_SUFFIXES:
        raise U1Error(f"{out}: the file that is written is a .parquet; name it so")
    pyarrow = import_pyarrow(out)
    problems, rows = dict(dataset.problems), 0
    with replacing(out) as file:
        schema = _schema(pyarrow, with_repeats=len(dataset.turns) != len(dataset))
        compression = {name: "none" if name in PICTURES else "zstd" for name in schema.names}
        options = {"compression": compression, "use_dictionary": False, "write_statistics": False}
        with pyarrow.parquet.ParquetWriter(file, schema, **options) as writer:
            for group in _groups(_rows(dataset, problems, on_progress)):
                writer.write_table(pyarrow.Table.from_pylist(group, schema))
                rows += len(group)
        if not leave_out_bad:
            refuse_problems(dataset.source, problems)
        if not rows:
            raise U1Error(f"{dataset.source}: no sample is left to pack")
    return Packed(out, rows, out.stat().st_size, problems)


def _schema(pyarrow: Any, with_repeats: bool) -> Any:
    kinds = dict.fromkeys(TEXTS, pyarrow.string()) | dict.fromkeys(PICTURES, pyarrow.binary())
    kinds |= dict.fromkeys(NUMBERS, pyarrow.int32())
    return pyarrow.schema([(name, kind) for name, kind in kinds.items() if with_repeats or name != "repeats"])


def _rows(dataset: Dataset, problems: dict[str, str], on_progress: Callable[[int, int], None] | None) -> Iterator[Row]:
    """The rows that can be trained on; what is wrong with the others goes into `problems`."""
    for number, sample in enumerate(dataset):
        try:
            if not sample.caption:
                raise U1Error("the caption is empty")
            image, mask = _read(dataset.picture(number)), dataset.mask(number)
            width, height = picture_size(image)
            open_picture(image, at_least=(1, 1))
        except U1Error as problem:
            problems[sample.id] = str(problem).removeprefix("picture: ")
            continue
        finally:
            if on_progress:
                on_progress(number + 1, len(dataset))
        yield {
            "sample_id": sample.id,
            "caption": sample.caption,
            "think": sample.think,
            "image": image,
            "mask": _read(mask) if mask else None,
            "width": width,
            "height": height,
            "repeats": sample.repeats,
        }


def _read(source: Path | bytes) -> bytes:
    if isinstance(source, bytes):
        return source
    try:
        return source.read_bytes()
    except OSError as problem:
        raise U1Error(f"cannot be read ({problem.strerror or problem})") from None


def _groups(rows: Iterator[Row]) -> Iterator[list[Row]]:
    group: list[Row] = []
    size = 0
    for row in rows:
        group.append(row)
        size += len(row["image"]) + len(row["mask"] or b"")
        if size >= GROUP_BYTES or len(group) == GROUP_ROWS:
            yield group
            group, size = [], 0
    if group:
        yield group
