"""Training runs in the background: one at a time, the others in line, each giving way to whoever else needs the model.

A run's folder is its record: what is not running in this process is read back from there.
"""

import json
import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from u1_core.errors import U1Error, nearest
from u1_core.jobs import Event, Job
from u1_core.session import Session
from u1_core.train.loop import Outcome, train
from u1_core.train.recipe import Recipe
from u1_core.train.recipe_file import load_recipe
from u1_core.weights.write import replacing

ACTIONS = ("pause", "resume", "stop")
SENT_EVERY_S = 0.25
POLL_S = 0.02
HISTORY_POINTS = 1000
"""Points of a chart that are sent: of a longer run, means over equal stretches."""

Point = tuple[int, float]
"""(step, loss)."""
Mark = dict[str, Any]
"""A look at the run between two steps: {"step", "percent"} of a validation or {"step", "files"} of previews."""


@dataclass(frozen=True)
class Status:
    """How a run stands, for a list."""

    id: str
    state: str
    """ "queued", "preparing", "running", "giving way", "paused", "finished", "stopped", "failed" or "interrupted"."""
    step: int
    steps: int
    message: str = ""
    """Why it failed, or what it is preparing."""
    seconds_per_step: float | None = None
    """Mean over the last steps."""
    memory_bytes: int | None = None
    """Most that has been in use on the card."""
    lora: str = ""
    """The last file saved."""


class RunJob(Job):
    """A job that waits its turn, and between two steps gives way while `busy()` says that someone needs the model."""

    def __init__(self, work: Callable[[Job], Any], busy: Callable[[], bool]) -> None:
        super().__init__(work)
        self._busy = busy
        self.awaited = 0
        """How many are waiting for its end: it does not give way to those who wait for it."""

    def go_on(self) -> bool:
        """As `Job.go_on`, after giving way."""
        told = False
        while self._busy() and not self.awaited and not self._stop_asked:
            if not told:
                self.emit("giving way")
                told = True
            time.sleep(POLL_S)
        if told:
            self.emit("going on")
        return super().go_on()

    def stop_asked(self) -> bool:
        return self._stop_asked


class Run:
    """A run of this process. `status` and `points` follow its events."""

    def __init__(self, recipe: Recipe, workflow: Mapping[str, Any] | None) -> None:
        self.recipe, self.workflow = recipe, workflow
        self.id = recipe.run_name
        self.folder = Path(recipe.runtime.out_dir) / recipe.run_name
        self.session: Session | None = None
        self.job: RunJob | None = None
        self.status = Status(self.id, "queued", 0, recipe.train.steps)
        self.points: list[Point] = []
        self.marks: list[Mark] = []
        self._seconds: list[float] = []

    def take(self, event: Event) -> None:
        """Bring the status up to date with an event of the job."""
        data = event.data
        changes: dict[str, Any] = {}
        if event.kind == "step":
            self.points.append((data["step"], data["loss"]))
            self._seconds = [*self._seconds[-19:], data["seconds"]]
            pace = sum(self._seconds) / len(self._seconds)
            memory = data.get("memory_bytes")
            changes = {"state": "running", "step": data["step"], "seconds_per_step": pace, "memory_bytes": memory}
            changes["message"] = ""
        elif event.kind == "checking":
            changes = {"state": "preparing", "message": f"looking at pictures {data['done']}/{data['total']}"}
        elif event.kind == "prepared":
            words = f"{data['samples']} pictures, {data['trainable_parameters']:,} trainable parameters"
            changes = {"state": "preparing", "message": words}
        elif event.kind in ("validation", "preview"):
            self.marks += marks_of([{"event": event.kind, **data}])
        elif event.kind in ("checkpoint", "results"):
            changes = {"lora": Path(data["file"]).name}
        elif event.kind in ("giving way", "paused", "finished", "stopped", "failed"):
            changes = {"state": event.kind, "message": data.get("message", "")}
        elif event.kind in ("going on", "resumed"):
            changes = {"state": "running" if self.status.step else "preparing"}
        self.status = replace(self.status, **changes)


class Runs:
    """The runs below one folder: those of this process, and what earlier ones left there."""

    def __init__(
        self,
        root: Path,
        busy: Callable[[], bool] = lambda: False,
        tell: Callable[[dict[str, Any]], None] = lambda news: None,
        release: Callable[[], None] = lambda: None,
    ) -> None:
        """`busy` says whether a run is to give way; `tell` is handed news of runs, at most four a second for each;
        `release` frees what memory it can before a run gives way."""
        self.root, self._busy, self._tell, self._release = root, busy, tell, release
        self._lock = threading.Lock()
        self._turn = threading.Lock()
        self._runs: dict[str, Run] = {}

    def start(
        self,
        recipe: Recipe,
        open_session: Callable[[], Session],
        finish: Callable[[Run, Outcome], None],
        workflow: Mapping[str, Any] | None = None,
    ) -> Run:
        """Put a run in line. Its name is numbered if it is taken. `finish` is called with what it has come to."""
        with self._lock:
            run = Run(self._with_free_name(recipe), workflow)
            self._runs[run.id] = run
        run.job = RunJob(lambda job: self._work(run, open_session, finish), self._busy)
        run.job.subscribe(_Herald(run, self._tell, self._release))
        self._tell({"id": run.id, "status": vars(run.status), "points": [], "marks": []})
        run.job.start()
        return run

    def act(self, run_id: str, action: str) -> Status:
        """Pause, resume or stop a run of this process. Raises U1Error."""
        if action not in ACTIONS:
            raise U1Error(f"{action!r} is none of {', '.join(ACTIONS)}")
        run = self._runs.get(run_id)
        if run is None or run.job.ended:
            raise U1Error(f"run {run_id!r} is not running{nearest(run_id, self._runs)}")
        getattr(run.job, action)()
        return run.status

    def stop_all(self) -> None:
        """Ask every run of this process to save and end, and wait until they have."""
        for run in self._runs.values():
            run.job.stop()
        for run in self._runs.values():
            run.job.wait()

    def statuses(self) -> list[Status]:
        """All runs, the newest first."""
        with self._lock:
            here = [run.status for run in reversed(self._runs.values())]
        known = {status.id for status in here}
        recipes = [path for path in self.root.glob("*/recipe.yaml") if path.parent.name not in known]
        recipes.sort(key=lambda path: path.stat().st_mtime, reverse=True)
        return here + [_status_of(path.parent) for path in recipes]

    def status(self, run_id: str) -> Status:
        """One run's. Raises U1Error if there is no such run."""
        run = self._runs.get(run_id)
        return run.status if run else _status_of(self.folder(run_id))

    def folder(self, run_id: str) -> Path:
        """A run's folder, found among those that are there: an id is never taken for a path."""
        names = {path.parent.name: path.parent for path in self.root.glob("*/recipe.yaml")}
        if run_id not in names:
            raise U1Error(f"there is no run {run_id!r}{nearest(run_id, names)}")
        return names[run_id]

    def history(self, run_id: str) -> list[Point]:
        """A run's losses by step, thinned to what a chart can show."""
        run = self._runs.get(run_id)
        return thinned(list(run.points) if run else _points_of(self.folder(run_id)))

    def marks(self, run_id: str) -> list[Mark]:
        """A run's validations and previews so far."""
        run = self._runs.get(run_id)
        return list(run.marks) if run else marks_of(_log_of(self.folder(run_id)))

    def preview(self, run_id: str, name: str) -> Path:
        """A preview's file, found among those that are there. Raises U1Error."""
        folder = self._runs[run_id].folder if run_id in self._runs else self.folder(run_id)
        for path in folder.glob("previews/*.png"):
            if path.name == name:
                return path
        raise U1Error(f"run {run_id} has no preview {name!r}")

    def wait(self, run_id: str, check: Callable[[], None]) -> None:
        """Until a run of this process has ended; it does not give way meanwhile. Raises what `check` raises, and
        U1Error if the run fails."""
        run = self._runs.get(run_id)
        if run is None:
            return
        run.job.awaited += 1
        try:
            while not run.job.wait(0.1):
                check()
        finally:
            run.job.awaited -= 1
        if run.job.state == "failed":
            raise U1Error(f"run {run_id}: {run.status.message}")

    def newest_file(self, run_id: str, step: int = 0) -> Path:
        """The last LoRA that a run has saved, or its checkpoint of one step. Raises U1Error."""
        folder = self.folder(run_id)
        if step:
            saved = [folder / "checkpoints" / f"step_{step:06}.safetensors"]
        else:
            saved = [folder / f"{run_id}.safetensors", folder / f"{run_id}.full.safetensors"]
            saved += reversed(_checkpoints(folder))
        for path in saved:
            if path.is_file():
                return path
        raise U1Error(f"run {run_id} has saved no LoRA" + f" at step {step}" * bool(step) + " yet")

    def sessions(self) -> list[Session]:
        """Those that runs are using."""
        with self._lock:
            return [run.session for run in self._runs.values() if run.session is not None]

    def _work(
        self, run: Run, open_session: Callable[[], Session], finish: Callable[[Run, Outcome], None]
    ) -> Outcome | None:
        while not self._turn.acquire(timeout=POLL_S):
            if run.job.stop_asked():
                run.job.go_on()
                return None
        try:
            run.session = open_session()
            outcome = train(run.job, run.session, run.recipe)
            if outcome:
                finish(run, outcome)
            return outcome
        finally:
            run.session = None
            self._turn.release()

    def _with_free_name(self, recipe: Recipe) -> Recipe:
        name, number = recipe.run_name, 1
        while name in self._runs or (self.root / name).exists():
            number += 1
            name = f"{recipe.run_name}-{number}"
        return replace(recipe, run_name=name, runtime=replace(recipe.runtime, out_dir=str(self.root)))


class _Herald:
    """Follows one run's job and tells of it: at once when its state changes, else a few times a second."""

    def __init__(self, run: Run, tell: Callable[[dict[str, Any]], None], release: Callable[[], None]) -> None:
        self._run, self._tell, self._release = run, tell, release
        self._told, self._marked, self._told_at = 0, 0, 0.0

    def __call__(self, event: Event) -> None:
        run, before = self._run, self._run.status.state
        run.take(event)
        if event.kind == "giving way":
            self._release()
        if event.kind == "step" and run.workflow and run.status.step == 1:
            with replacing(run.folder / "workflow.json", overwrite=True) as file:
                file.write(json.dumps(run.workflow, indent=1, ensure_ascii=False).encode())
        if run.status.state != before or time.monotonic() - self._told_at >= SENT_EVERY_S:
            points, self._told = run.points[self._told :], len(run.points)
            marks, self._marked = run.marks[self._marked :], len(run.marks)
            self._told_at = time.monotonic()
            self._tell({"id": run.id, "status": vars(run.status), "points": thinned(points), "marks": marks})


def thinned(points: list[Point]) -> list[Point]:
    """At most HISTORY_POINTS points: means over equal stretches, each at its last step."""
    size = -(-len(points) // HISTORY_POINTS)
    if size <= 1:
        return points
    stretches = [points[start : start + size] for start in range(0, len(points), size)]
    return [(part[-1][0], sum(loss for _, loss in part) / len(part)) for part in stretches]


def _checkpoints(folder: Path) -> list[Path]:
    """A run's LoRAs by step, without what lies beside them."""
    files = (folder / "checkpoints").glob("step_*.safetensors")
    return sorted(path for path in files if re.fullmatch(r"step_\d+\.safetensors", path.name))


def _status_of(folder: Path) -> Status:
    """A run of an earlier process, by what it left."""
    points = _points_of(folder)
    step = points[-1][0] if points else 0
    try:
        steps = load_recipe(folder / "recipe.yaml").train.steps
    except U1Error as problem:
        return Status(folder.name, "failed", step, step, message=str(problem))
    done = [folder / f"{folder.name}.safetensors", folder / f"{folder.name}.full.safetensors"]
    saved = [path for path in done if path.is_file()] or _checkpoints(folder)[-1:]
    state = "finished" if step >= steps and saved else "interrupted"
    return Status(folder.name, state, step, steps, lora=saved[0].name if saved else "")


def marks_of(records: list[dict[str, Any]]) -> list[Mark]:
    """What a chart shows of a log's other lines. The held-out pictures' error counts, where there are any."""
    marks: list[Mark] = []
    for record in records:
        if record.get("event") == "validation":
            found = record.get("held_out") or record.get("training")
            if found:
                marks.append({"step": record["step"], "percent": found["x0"]["percent"]})
        elif record.get("event") == "preview" and "files" in record:
            marks.append({"step": record["step"], "files": record["files"]})
    return marks


def _points_of(folder: Path) -> list[Point]:
    """(step, loss) from a run's log."""
    losses: dict[int, list[float]] = {}
    for record in _log_of(folder):
        if "loss" in record:
            losses.setdefault(record["step"], []).append(record["loss"])
    return [(step, sum(values) / len(values)) for step, values in sorted(losses.items())]


def _log_of(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's log; a last one that was cut off is passed over."""
    try:
        lines = (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    records = []
    for line in lines:
        try:
            records.append(json.loads(line))
        except ValueError:
            continue
    return records
