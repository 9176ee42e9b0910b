"""Parquet and Arrow files as rows (sample_id, caption, think, image), read where they are needed and let go again.

Rows come in groups (row groups of Parquet, record batches of Arrow). A group is read when one of its rows is asked for
and stays until others have used up `CACHE_BYTES`. A file whose groups are too large for that is copied once, group by
group, to a temporary Arrow file with small ones.
"""

import contextlib
import errno
import tempfile
import threading
import weakref
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from u1_core.data.folder import Sample, split_caption
from u1_core.errors import U1Error, nearest

PARQUET_SUFFIXES = (".parquet", ".pq")
TABLE_SUFFIXES = (*PARQUET_SUFFIXES, ".arrow", ".feather", ".ipc")

TEXTS = ("sample_id", "caption", "think")
PICTURES = ("image", "mask")
NUMBERS = ("width", "height", "repeats")
COLUMNS = (*TEXTS, *PICTURES, *NUMBERS)
NEEDED = ("caption", "image")

CACHE_BYTES = 128 * 2**20
"""Groups kept in memory."""
LARGEST_GROUP_BYTES = 64 * 2**20
"""Larger groups are cut up, in a temporary copy."""
COPIED_ROWS = 16
"""Rows of a group of that copy."""


class Groups(Protocol):
    """A file's groups of rows."""

    columns: dict[str, Any]
    """Name -> Arrow type."""
    rows: Sequence[int]
    """Of each group."""
    largest_bytes: int
    """Of the largest group, decoded; 0 where groups are mapped rather than decoded."""

    def read(self, group: int, columns: Sequence[str]) -> Any:
        """These columns of a group as an Arrow table."""

    def batches(self, group: int, columns: Sequence[str]) -> Iterator[Any]:
        """The same as record batches of `COPIED_ROWS` rows or fewer."""


class Table:
    """Rows by number, from any number of threads."""

    def __init__(self, path: Path, groups: Groups) -> None:
        self.path = path
        self.columns = [name for name in COLUMNS if name in groups.columns]
        self.groups = groups
        self._ends = np.cumsum(groups.rows)
        self._kept: OrderedDict[tuple[int, str], dict[str, Any]] = OrderedDict()
        self._kept_bytes = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return int(self._ends[-1])

    @property
    def held_bytes(self) -> int:
        """Of the groups in memory."""
        with self._lock:
            return self._kept_bytes

    def value(self, row: int, column: str) -> Any:
        """One cell: text, bytes, a number or None. Raises U1Error where the file is damaged."""
        group = int(np.searchsorted(self._ends, row, side="right"))
        start = int(self._ends[group - 1]) if group else 0
        with self._lock:
            cell = self._read(group, column)[column][row - start]
        return cell.as_py()

    def numbers(self, column: str) -> np.ndarray:
        """A whole column of whole numbers, null as 1; read past what is kept."""
        with self._lock, arrow_errors(self.path):
            read = [self.groups.read(group, [column]).column(column) for group in range(len(self.groups.rows))]
        return np.concatenate([part.fill_null(1).to_numpy() for part in read])

    def sample(self, row: int) -> Sample:
        """The row without its pictures. An id that is missing is "row 12"; rows count from 0."""
        name, text, think = (self.value(row, column) if column in self.columns else None for column in TEXTS)
        caption, split_off = split_caption(text or "")
        repeats = self.value(row, "repeats") if "repeats" in self.columns else None
        return Sample(f"row {row}" if name is None else str(name), self.path, caption, think or split_off, repeats or 1)

    def _read(self, group: int, column: str) -> dict[str, Any]:
        """The group's columns that are read together with this one."""
        family = PICTURES if column in PICTURES else (*TEXTS, *NUMBERS)
        key = group, family[0]
        if key not in self._kept:
            with arrow_errors(self.path):
                table = self.groups.read(group, [name for name in family if name in self.columns])
            self._kept[key] = {name: _plain(table.column(name)) for name in table.column_names}
            self._kept_bytes += _n_bytes(self._kept[key])
            while len(self._kept) > 1 and self._kept_bytes > CACHE_BYTES:
                self._kept_bytes -= _n_bytes(self._kept.popitem(last=False)[1])
        self._kept.move_to_end(key)
        return self._kept[key]


def open_table(path: Path) -> Table:
    """Open a file and check its columns; no row is read. Raises U1Error, also where pyarrow is not installed."""
    import_pyarrow(path)
    with arrow_errors(path):
        groups: Groups = _ParquetGroups(path) if path.suffix.lower() in PARQUET_SUFFIXES else _ArrowGroups(path)
        _check_columns(path, groups)
        if not sum(groups.rows):
            raise U1Error(f"{path}: has no rows")
        if groups.largest_bytes > LARGEST_GROUP_BYTES:
            groups = _CopiedGroups(path, groups)
        return Table(path, groups)


def import_pyarrow(path: Path) -> Any:
    """The library that reads and writes these files. Raises U1Error if it is not installed."""
    try:
        import pyarrow
        import pyarrow.ipc
        import pyarrow.parquet
    except ImportError:
        raise U1Error(
            f"{path}: parquet and arrow files take pyarrow, which is not installed: pip install pyarrow"
        ) from None
    return pyarrow


@contextlib.contextmanager
def arrow_errors(path: Path) -> Iterator[None]:
    """Whatever the library says of `path` inside the block becomes a U1Error."""
    import pyarrow

    try:
        yield
    except U1Error:
        raise
    except (pyarrow.ArrowException, OSError, ValueError, IndexError, KeyError) as problem:
        if getattr(problem, "errno", None) == errno.EMFILE:
            raise U1Error(
                f"{path}: the system lets no more files be opened; allow more (ulimit -n), or make fewer, larger ones"
            ) from None
        words = " ".join(str(problem).split())[:200]
        raise U1Error(
            f"{path}: is no {path.suffix} file that can be read, it is damaged or cut short ({words})"
        ) from None


class _ParquetGroups:
    def __init__(self, path: Path) -> None:
        import pyarrow.parquet

        # Not mapped, and read as a stream: pages that the system keeps of the file are not this process's memory.
        self._file = pyarrow.parquet.ParquetFile(path, memory_map=False, buffer_size=2**20, pre_buffer=False)
        meta = self._file.metadata
        self.columns = {field.name: field.type for field in self._file.schema_arrow}
        self.rows = [meta.row_group(i).num_rows for i in range(meta.num_row_groups)]
        self.largest_bytes = max((meta.row_group(i).total_byte_size for i in range(meta.num_row_groups)), default=0)

    def read(self, group: int, columns: Sequence[str]) -> Any:
        return self._file.read_row_group(group, columns=list(columns), use_threads=False)

    def batches(self, group: int, columns: Sequence[str]) -> Iterator[Any]:
        return self._file.iter_batches(COPIED_ROWS, row_groups=[group], columns=list(columns), use_threads=False)


class _ArrowGroups:
    """An IPC file, or a stream as some libraries store it, mapped: what is not compressed is never copied."""

    def __init__(self, path: Path) -> None:
        import pyarrow

        source = pyarrow.memory_map(str(path))
        try:
            reader = pyarrow.ipc.open_file(source)
            self._batch, count = reader.get_batch, reader.num_record_batches
        except pyarrow.ArrowInvalid:
            source.seek(0)
            reader = pyarrow.ipc.open_stream(source)
            stored = list(reader)
            self._batch, count = stored.__getitem__, len(stored)
        self.columns = {field.name: field.type for field in reader.schema}
        # Only what is compressed takes memory of its own when it is read.
        self.rows, self.largest_bytes = [], 0
        for number in range(count):
            before = pyarrow.total_allocated_bytes()
            batch = self._batch(number)
            self.rows.append(batch.num_rows)
            self.largest_bytes = max(self.largest_bytes, pyarrow.total_allocated_bytes() - before)
            del batch

    def read(self, group: int, columns: Sequence[str]) -> Any:
        import pyarrow

        return pyarrow.Table.from_batches([self._batch(group).select(list(columns))])

    def batches(self, group: int, columns: Sequence[str]) -> Iterator[Any]:
        return iter(self.read(group, columns).to_batches(max_chunksize=COPIED_ROWS))


class _CopiedGroups:
    """The same rows in small groups, in a temporary file that goes when this object does."""

    def __init__(self, path: Path, groups: Groups) -> None:
        import pyarrow

        # An Arrow file has one dictionary for each column: texts that are numbered anew in each group are spelled out.
        self.columns = {name: _spelled_out(groups.columns[name]) for name in COLUMNS if name in groups.columns}
        self.rows, self.largest_bytes = [], 0
        self._folder = tempfile.TemporaryDirectory(prefix="u1-rows-", ignore_cleanup_errors=True)
        copy = str(Path(self._folder.name) / "rows.arrow")
        schema = pyarrow.schema(list(self.columns.items()))
        try:
            with pyarrow.OSFile(copy, "wb") as file, pyarrow.ipc.new_file(file, schema) as writer:
                for group in range(len(groups.rows)):
                    for batch in groups.batches(group, list(self.columns)):
                        plain = pyarrow.Table.from_batches([batch.select(list(self.columns))]).cast(schema)
                        for piece in plain.to_batches():
                            writer.write_batch(piece)
                            self.rows.append(piece.num_rows)
        except OSError as problem:
            size = f"{groups.largest_bytes / 1e6:.0f} MB"
            raise U1Error(
                f"{path}: its groups of rows are too large to be read one by one ({size}), and there is no room for a "
                f"temporary copy ({problem.strerror or problem}); rewrite it with `u1 data pack`"
            ) from None
        source = pyarrow.OSFile(copy, "rb")
        self._reader = pyarrow.ipc.open_file(source)
        weakref.finalize(self, _close_and_remove, source, self._folder)

    def read(self, group: int, columns: Sequence[str]) -> Any:
        import pyarrow

        return pyarrow.Table.from_batches([self._reader.get_batch(group)]).select(list(columns))

    def batches(self, group: int, columns: Sequence[str]) -> Iterator[Any]:
        return iter(self.read(group, columns).to_batches())


def _close_and_remove(source: Any, folder: tempfile.TemporaryDirectory) -> None:
    """In this order: Windows removes no file that is open."""
    source.close()
    folder.cleanup()


def _n_bytes(columns: dict[str, Any]) -> int:
    return sum(column.nbytes for column in columns.values())


def _plain(column: Any) -> Any:
    """One array of a column's chunks; of structs as some libraries store pictures, their bytes."""
    array = column.combine_chunks()
    if hasattr(array, "combine_chunks"):
        array = array.combine_chunks()
    return array.field("bytes") if str(array.type).startswith("struct<") else array


def _check_columns(path: Path, groups: Groups) -> None:
    for name in NEEDED:
        if name not in groups.columns:
            there = ", ".join(groups.columns) or "none"
            raise U1Error(f"{path}: has no column {name!r}{nearest(name, groups.columns)} (its columns: {there})")
    for name in COLUMNS:
        kind = str(groups.columns.get(name, ""))
        if kind and not _fits(name, kind):
            wanted = "text" if name in TEXTS else "bytes of picture files" if name in PICTURES else "whole numbers"
            raise U1Error(f"{path}: its column {name!r} is to hold {wanted}, but it holds {kind}")


def _spelled_out(kind: Any) -> Any:
    """An Arrow type; of a dictionary, that of its values."""
    import pyarrow

    return kind.value_type if pyarrow.types.is_dictionary(kind) else kind


def _fits(name: str, kind: str) -> bool:
    if name in PICTURES:
        return kind in ("binary", "large_binary", "binary_view") or (kind.startswith("struct<") and "bytes: " in kind)
    if name in NUMBERS or (name == "sample_id" and "int" in kind):
        return kind.lstrip("u") in ("int8", "int16", "int32", "int64")
    return kind in ("string", "large_string", "string_view", "null") or kind.startswith("dictionary<values=string")
