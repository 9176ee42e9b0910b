"""log.jsonl as a run writes it: whole lines only, and none of them lost while the disk is full."""

import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from u1_core.weights.write import cannot_write

Warn = Callable[[str], None]


class Journal:
    """Appends records to a file. What the disk does not take waits in memory for the next time."""

    def __init__(self, path: Path, warn: Warn) -> None:
        """`warn` is called once for each time that the disk begins to refuse."""
        self._path, self._warn = path, warn
        self._due: list[bytes] = []
        self._refused = False

    def append(self, records: Iterable[dict[str, Any]]) -> None:
        """Write a line for each, after those that are still due."""
        self._due += [json.dumps(record, ensure_ascii=False).encode("utf-8", "replace") + b"\n" for record in records]
        try:
            self._write_due()
        except OSError as problem:
            if not self._refused:
                self._refused = True
                why = cannot_write(self._path, problem)
                self._warn(f"{why}; the log's lines are kept in memory until it can be, and the run goes on")

    def n_bytes(self) -> int:
        """The file's length, once it holds every line and the disk has it. Raises U1Error if the disk refuses."""
        try:
            self._write_due()
            if not self._path.is_file():
                return 0
            with self._path.open("rb+") as file:
                os.fsync(file.fileno())
                return file.seek(0, os.SEEK_END)
        except OSError as problem:
            raise cannot_write(self._path, problem) from None

    def cut(self, length: int) -> None:
        """Take off what was appended since the file was so long."""
        self._due.clear()
        if self._path.is_file() and self._path.stat().st_size > length:
            os.truncate(self._path, length)

    def _write_due(self) -> None:
        """Append the lines that are due. If the disk fails midway, what it took of them is taken off again."""
        if not self._due:
            return
        with self._path.open("ab", buffering=0) as file:
            start = file.tell()
            lines = memoryview(b"".join(self._due))
            try:
                while lines:
                    lines = lines[file.write(lines) :]
            except OSError:
                file.truncate(start)
                raise
        self._due.clear()
        self._refused = False
