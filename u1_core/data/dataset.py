"""What a run trains on, whatever it lies in: samples by number, their pictures, and how often each has its turn."""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from u1_core.data.folder import Sample, holds_pictures, read_folder
from u1_core.data.framing import Framing
from u1_core.data.pictures import picture_size
from u1_core.data.shards import open_shards, shards_in
from u1_core.data.table import TABLE_SUFFIXES, Table, open_table
from u1_core.errors import U1Error


class Dataset(Sequence[Sample]):
    """Samples by number. A sample's caption may be empty in a table; `problems` has those that a folder left out."""

    source: Path
    problems: dict[str, str]
    """Picture id -> why it is no sample."""
    turns: Sequence[int]
    """The samples of an epoch by number, each as often as it is trained on; unshuffled."""

    @abstractmethod
    def __getitem__(self, index: int) -> Sample: ...

    def __iter__(self) -> Iterator[Sample]:
        return (self[index] for index in range(len(self)))

    @abstractmethod
    def picture(self, index: int) -> Path | bytes:
        """The encoded picture."""

    @abstractmethod
    def mask(self, index: int) -> Path | bytes | None:
        """The encoded picture of weights that goes with it, if there is one."""

    @abstractmethod
    def place(self, index: int) -> str:
        """Where the sample is, for a message."""

    def size(self, index: int) -> tuple[int, int]:
        """(width, height) of the picture, upright. Raises U1Error if it is none."""
        return picture_size(self.picture(index))

    def leave_out_small(self, framing: Framing) -> None:
        """Give no turn to pictures that would be enlarged. Raises U1Error if none is left."""
        small = {number for number in set(self.turns) if self._is_small(number, framing)}
        if small:
            self.leave_out(small)

    def _is_small(self, number: int, framing: Framing) -> bool:
        try:
            return framing.frame(*self.size(number)).enlarged > 1
        except U1Error:  # whatever it is, it is not its size
            return False

    def leave_out(self, numbers: set[int]) -> None:
        """Give these samples no turn. Raises U1Error if none would be left."""
        self.turns = [number for number in self.turns if number not in numbers]
        if not self.turns:
            raise U1Error(f"{self.source}: no picture is left to train on")


class FolderDataset(Dataset):
    """Pictures and captions in a folder."""

    def __init__(self, folder: Path, limit: int | None = None) -> None:
        self.source = folder
        self._samples, self.problems = read_folder(folder, limit)
        self.whole = limit is None
        self.turns = [number for number, sample in enumerate(self._samples) for _ in range(sample.repeats)]

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> Sample:
        return self._samples[index]

    def picture(self, index: int) -> Path:
        return self._samples[index].path

    def mask(self, index: int) -> Path | None:
        return self._samples[index].mask

    def place(self, index: int) -> str:
        return str(self._samples[index].path)


class TableDataset(Dataset):
    """The rows of a parquet or arrow file. Nothing of a row is held that is not in use."""

    def __init__(self, table: Table, limit: int | None = None) -> None:
        self.source, self.problems = table.path, {}
        self.table = table
        self._count = min(len(table), limit or len(table))
        self.turns = range(self._count)
        if "repeats" in table.columns:
            repeats = table.numbers("repeats")[: self._count]
            if (repeats < 0).any():
                row = int(np.flatnonzero(repeats < 0)[0])
                raise U1Error(f"{table.path}: row {row} has {repeats[row]} repeats; 0 leaves it out, 1 is the rule")
            self.turns = np.repeat(np.arange(self._count), repeats).tolist()

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < self._count:
            raise IndexError(index)
        return self.table.sample(index)

    def picture(self, index: int) -> bytes:
        return self.table.value(index, "image") or b""

    def mask(self, index: int) -> bytes | None:
        return self.table.value(index, "mask") if "mask" in self.table.columns else None

    def place(self, index: int) -> str:
        return f"{self.source} row {index}"

    def size(self, index: int) -> tuple[int, int]:
        width, height = (self.table.value(index, side) if side in self.table.columns else None for side in SIDES)
        return (width, height) if width and height else super().size(index)


SIDES = ("width", "height")
"""Columns that `pack` adds, so that sizes are known without looking into the pictures."""


def open_dataset(path: Path, limit: int | None = None) -> Dataset:
    """A folder of pictures, a parquet or arrow file, or a folder of such; the first `limit` samples.

    Raises U1Error for anything else.
    """
    if path.is_file() and path.suffix.lower() in TABLE_SUFFIXES:
        return TableDataset(open_table(path), limit)
    if path.is_dir() and not holds_pictures(path) and (shards := shards_in(path)):
        return TableDataset(open_shards(path, shards), limit)
    return FolderDataset(path, limit)
