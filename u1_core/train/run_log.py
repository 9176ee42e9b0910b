"""What a run has left in its folder, read back: its recipe, the records of its steps, and what happened in between."""

import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any

from u1_core.errors import U1Error
from u1_core.train.recipe import Recipe
from u1_core.train.recipe_file import load_recipe

Record = dict[str, Any]

TAIL_BYTES = 1 << 16
"""Of a log, that its last step is looked for in."""


@dataclass(frozen=True)
class RunLog:
    """One run's folder as it stands."""

    folder: Path
    recipe: Recipe
    pictures: Sequence[Record]
    """A record for each picture trained on, by step."""
    events: Sequence[Record]
    """The other lines of the log; `event` says what each tells of."""
    manifest: Record

    def of(self, event: str) -> list[Record]:
        """The events of one kind, in order."""
        return [record for record in self.events if record["event"] == event]

    @property
    def validations(self) -> list[Record]:
        return [record for record in self.of("validation") if "failed" not in record]

    @cached_property
    def steps(self) -> list[Record]:
        """A record for each step: means over its pictures of all that differs between them and is a number."""
        return [mean_record(list(group)) for _, group in groupby(self.pictures, key=lambda record: record["step"])]

    def curve(self, key: str) -> list[tuple[float, float]]:
        """(step, value) wherever a step has that value and it is a number."""
        found = [(record["step"], record[key]) for record in self.steps if record.get(key) is not None]
        return [(step, value) for step, value in found if math.isfinite(value)]

    def counts(self, key: str) -> Counter:
        """How many pictures had each value of `key`."""
        return Counter(record[key] for record in self.pictures if key in record)


def read_run(folder: Path) -> RunLog:
    """Read a run's folder. Raises U1Error if it is none. A last line that was cut off is passed over."""
    if not (folder / "recipe.yaml").is_file():
        raise U1Error(f"{folder}: is no run: there is no recipe.yaml in it")
    pictures: list[Record] = []
    events: list[Record] = []
    for record in _lines(folder / "log.jsonl"):
        if "event" in record:
            events.append(record)
            continue
        if pictures and record["step"] < pictures[-1]["step"]:
            # The run went back to a checkpoint and repeats steps: what comes of them this time counts.
            pictures = [one for one in pictures if one["step"] < record["step"]]
            events = [one for one in events if one.get("step", 0) < record["step"]]
        pictures.append(record)
    manifest = folder / "manifest.json"
    facts = json.loads(manifest.read_text(encoding="utf-8")) if manifest.is_file() else {}
    return RunLog(folder, load_recipe(folder / "recipe.yaml"), pictures, events, facts)


def last_step(folder: Path) -> Record | None:
    """The last step in a run's log, means over its pictures; None if there is none. Reads the end alone."""
    try:
        with (folder / "log.jsonl").open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - TAIL_BYTES))
            tail = file.read()
    except OSError:
        return None
    pictures = [record for record in whole_records(tail.splitlines()) if "loss" in record]
    return mean_record([each for each in pictures if each["step"] == pictures[-1]["step"]]) if pictures else None


def whole_records(lines: Iterable[bytes]) -> list[Record]:
    """Lines of a log, without those that were cut off."""
    records = []
    for line in lines:
        try:
            records.append(json.loads(line))
        except ValueError:
            continue
    return records


def _lines(path: Path) -> list[Record]:
    if not path.is_file():
        return []
    # Only at ends of lines: texts in them may hold what Unicode counts as one.
    lines = path.read_bytes().removesuffix(b"\n").split(b"\n")
    found = []
    for number, line in enumerate(lines, start=1):
        try:
            found.append(json.loads(line))
        except ValueError:
            if number < len(lines):
                raise U1Error(f"{path} line {number}: is not JSON") from None
    return found


def mean_record(records: Sequence[Record]) -> Record:
    """One record for the pictures of a step: numbers are means, anything else is the first's."""
    means = dict(records[0])
    for key, value in records[0].items():
        if isinstance(value, float):
            means[key] = sum(record[key] for record in records) / len(records)
    return means
