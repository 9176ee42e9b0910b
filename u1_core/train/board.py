"""TensorBoard's view of a run, for those who have the package: the numbers of log.jsonl as scalars."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from u1_core.train.run_log import Record, mean_record

STEPS = "train"
"""Scalars of steps are train/loss and so on; those of an event begin with its name."""


class Board:
    """Writes scalars into a folder that `tensorboard --logdir` reads.

    Whatever goes wrong is told once, in one line, and the run goes on without it.
    """

    def __init__(self, folder: Path | None, warn: Callable[[str], None]) -> None:
        """Without a folder it does nothing."""
        self._folder, self._warn = folder, warn
        self._writer: Any = None

    def begin(self, step: int) -> None:
        """Go on after `step`: of what was written beyond it, nothing is shown any more."""
        self.close()
        if self._folder is None:
            return
        try:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self._folder), purge_step=step + 1)
        except ImportError:
            self._give_up("the package tensorboard is not installed; pip install tensorboard")
        except Exception as problem:
            self._give_up(problem)

    def add(self, records: Sequence[Record]) -> None:
        """Every number in an event's record, or in the mean of a step's records."""
        record = mean_record(records)
        for name, value in _scalars(record, record.get("event", STEPS)) if self._writer else ():
            try:
                self._writer.add_scalar(name, value, record["step"])
            except Exception as problem:  # its own thread writes, and may have met a full disk
                self._give_up(problem)
                return

    def close(self) -> None:
        """Have what is due written."""
        writer, self._writer = self._writer, None
        try:
            if writer:
                writer.close()
        except Exception as problem:
            self._give_up(problem)

    def _give_up(self, why: object) -> None:
        self._writer = self._folder = None
        self._warn(f"runtime.tensorboard: {' '.join(f'{why}'.split())}; the run goes on without it")


def _scalars(value: Any, name: str) -> Iterator[tuple[str, float]]:
    """(tag, number) of every number in a record and in the tables and lists within it."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if key != "step":
                yield from _scalars(inner, f"{name}/{key}")
    elif isinstance(value, list):
        for place, inner in enumerate(value):
            yield from _scalars(inner, f"{name}/{place}")
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield name, value
