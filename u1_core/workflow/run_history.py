"""What a run's folder tells of it: how it stands, its losses by step, and what it found when it looked at itself."""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from u1_core.errors import U1Error
from u1_core.train.control import read_status
from u1_core.train.recipe import Recipe
from u1_core.train.recipe_file import load_recipe
from u1_core.train.run_folder import checkpoints_path
from u1_core.train.run_log import whole_records

HISTORY_POINTS = 1000
"""Points of a chart that are sent: of a longer run, means over equal stretches."""

Point = tuple[int, float]
"""(step, loss)."""
Mark = dict[str, Any]
"""A look at the run between two steps: {"step", "percent"} of a validation, or {"step", "files", "base_files",
"prompts"} of previews, file names by prompt, the second of the untrained model's pictures."""

STATES = ("queued", "preparing", "running", "giving way", "paused", "finished", "stopped", "failed", "interrupted")
RESUMABLE = ("interrupted", "stopped", "failed")
"""States from which a run can go on."""


@dataclass(frozen=True)
class Status:
    """How a run stands, for a list."""

    id: str
    state: str
    """One of `STATES`."""
    step: int
    steps: int
    message: str = ""
    """Why it failed, or what it is preparing."""
    seconds_per_step: float | None = None
    """Mean over the last steps."""
    memory_bytes: int | None = None
    """Most that has been in use on the card."""
    planned_bytes: int | None = None
    """Most that was planned to be."""
    lora: str = ""
    """The last file saved."""
    warning: str = ""
    """The last thing that went wrong and did not end it."""
    resumable: bool = False
    """Whether it has ended and can go on."""


def status_of(folder: Path) -> Status:
    """A run that is not of this process, by what it left and leaves."""
    facts = read_status(folder)
    last = facts.get("step", 0)
    try:
        recipe = _recipe_of(folder)
    except U1Error as problem:
        return Status(folder.name, "failed", last, last, message=str(problem))
    done = [folder / f"{folder.name}.safetensors", folder / f"{folder.name}.full.safetensors"]
    results = [path for path in done if path.is_file()]
    saved, steps = results or checkpoints(folder, recipe)[-1:], recipe.train.steps
    state = "finished" if results and last >= steps else facts["state"].replace("dead", "interrupted")
    return Status(
        folder.name,
        state,
        last,
        steps,
        facts.get("reason", ""),
        lora=saved[0].name if saved else "",
        resumable=state in RESUMABLE,
    )


def _recipe_of(folder: Path) -> Recipe:
    """A run's recipe. Of a long list of runs it is what takes time to read, and it hardly ever changes."""
    path = folder / "recipe.yaml"
    return _read_recipe(path, path.stat().st_mtime_ns if path.is_file() else 0)


@lru_cache(maxsize=4096)
def _read_recipe(path: Path, changed_ns: int) -> Recipe:
    return load_recipe(path)


def history_of(folder: Path) -> tuple[list[Point], list[Mark]]:
    """A run's losses by step, means where a step took several pictures, and its marks. Steps that it went back over
    count as they came out last; a loss that is no number has no place on a chart, nor in JSON."""
    losses: dict[int, list[float]] = {}
    marks: list[Mark] = []
    last = 0
    for record in log_of(folder):
        if "loss" in record and math.isfinite(record["loss"]):
            step = record["step"]
            if step < last:
                losses = {kept: values for kept, values in losses.items() if kept < step}
                marks = [mark for mark in marks if mark["step"] < step]
            losses.setdefault(step, []).append(record["loss"])
            last = step
        marks += marks_of([record])
    return [(step, sum(values) / len(values)) for step, values in losses.items()], marks


def marks_of(records: Iterable[dict[str, Any]]) -> list[Mark]:
    """What a chart shows of a log's other lines. The held-out pictures' error counts, where there are any."""
    marks: list[Mark] = []
    for record in records:
        if record.get("event") == "validation":
            found = record.get("held_out") or record.get("training")
            if found and math.isfinite(found["x0"]["percent"]):
                marks.append({"step": record["step"], "percent": found["x0"]["percent"]})
        elif record.get("event") == "preview" and "files" in record:
            marks.append({key: record[key] for key in ("step", "files", "base_files", "prompts")})
    return marks


def thinned(points: Sequence[Point]) -> list[Point]:
    """At most HISTORY_POINTS points: means over equal stretches, each at its last step."""
    size = -(-len(points) // HISTORY_POINTS)
    if size <= 1:
        return list(points)
    stretches = [points[start : start + size] for start in range(0, len(points), size)]
    return [(part[-1][0], sum(loss for _, loss in part) / len(part)) for part in stretches]


def checkpoints(folder: Path, recipe: Recipe) -> list[Path]:
    """A run's LoRAs by step, without what lies beside them."""
    files = checkpoints_path(recipe, folder).glob("step_*.safetensors")
    return sorted(path for path in files if re.fullmatch(r"step_\d+\.safetensors", path.name))


def log_of(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's log; a last one that was cut off is passed over."""
    try:
        return whole_records((folder / "log.jsonl").read_bytes().splitlines())
    except OSError:
        return []
