"""A folder of parquet or arrow files, as one table: their rows by the files' names."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from u1_core.data.folder import is_hidden
from u1_core.data.table import COLUMNS, TABLE_SUFFIXES, Table, arrow_errors, open_table
from u1_core.errors import U1Error


def shards_in(folder: Path) -> list[Path]:
    """The tables in a folder and the folders in it, by name; names that begin with a dot are passed over."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in TABLE_SUFFIXES and path.is_file() and not is_hidden(path, folder)
    )


def open_shards(folder: Path, paths: Sequence[Path]) -> Table:
    """Open them all; no row is read. Raises U1Error for one that will not do, or whose columns differ."""
    tables = [open_table(path) for path in paths]
    for table in tables[1:]:
        if table.columns != tables[0].columns:
            raise U1Error(
                f"{table.path}: has the columns {', '.join(table.columns)}, but {tables[0].path.name} has "
                f"{', '.join(tables[0].columns)}; the files of a set must have the same"
            )
    return Table(folder, _Joined(tables))


class _Joined:
    """The groups of several tables, one after the other."""

    largest_bytes = 0

    def __init__(self, tables: Sequence[Table]) -> None:
        self._tables = tables
        self._ends = np.cumsum([len(table.groups.rows) for table in tables])
        self.columns = {name: kind for name, kind in tables[0].groups.columns.items() if name in COLUMNS}
        self.rows = [rows for table in tables for rows in table.groups.rows]

    def read(self, group: int, columns: Sequence[str]) -> Any:
        number = int(np.searchsorted(self._ends, group, side="right"))
        table = self._tables[number]
        with arrow_errors(table.path):
            return table.groups.read(group - (int(self._ends[number - 1]) if number else 0), columns)

    def batches(self, group: int, columns: Sequence[str]) -> Iterator[Any]:
        return iter(self.read(group, columns).to_batches())
