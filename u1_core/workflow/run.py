"""One training run of this process: its job, how it stands, and what it has to show."""

import json
import math
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from u1_core.jobs import ENDED, Event, Job
from u1_core.lora.adapter import Adapter
from u1_core.session import Session
from u1_core.train.recipe import Recipe
from u1_core.train.step import Trainer
from u1_core.weights.write import replacing
from u1_core.workflow.handles import Model
from u1_core.workflow.host import Host
from u1_core.workflow.run_history import RESUMABLE, Mark, Point, Status, history_of, marks_of, status_of, thinned

WORKFLOW_FILE, MODEL_FILE, CRASH_FILE = "workflow.json", "model.json", "crash.txt"
SENT_EVERY_S = 0.25
POLL_S = 0.02
PACE_STEPS = 20
"""Steps that the shown pace is a mean over."""


class RunJob(Job):
    """A job that, between two steps, gives way while `busy()` says that someone else needs the device."""

    def __init__(self, work: Callable[[Job], Any], busy: Callable[[], bool]) -> None:
        super().__init__(work)
        self._busy = busy
        self.awaited = 0
        """How many are waiting for its end, or for that of one behind it in line: it does not give way to them."""

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

    def is_this_thread(self) -> bool:
        """Whether it is the job's own thread that asks."""
        return threading.current_thread() is self._thread


class Run:
    """`status`, `points` and `marks` follow the job's events. With `resumed` it begins with what its folder tells."""

    def __init__(
        self, recipe: Recipe, model: Model, workflow: Mapping[str, Any] | None, node: str, resumed: bool = False
    ) -> None:
        self.recipe, self.model, self.workflow, self.node, self.resumed = recipe, model, workflow, node, resumed
        self.id = recipe.run_name
        self.folder = Path(recipe.runtime.out_dir) / recipe.run_name
        self.session: Session | None = None
        self.trainer: Trainer | None = None
        self.job: RunJob | None = None
        self.status = Status(self.id, "queued", 0, recipe.train.steps)
        self.points: list[Point] = []
        self.marks: list[Mark] = []
        if resumed:
            self.points, self.marks = history_of(self.folder)
            before = status_of(self.folder)
            self.status = replace(self.status, step=before.step, lora=before.lora)
        self._seconds: list[float] = []

    def begun(self, trainer: Trainer, folder: Path) -> None:
        """The run's folder is there, and its first step is next: from now on its weights can be looked at."""
        self.trainer = trainer
        self._planned()
        kept = {MODEL_FILE: asdict(replace(self.model, loras=())), WORKFLOW_FILE: self.workflow}
        for name, content in kept.items():
            if content:
                with replacing(folder / name, overwrite=True) as file:
                    file.write(json.dumps(content, indent=1, ensure_ascii=False).encode())

    def ended(self) -> None:
        """Let go of all that only a run at work needs."""
        self.session = self.trainer = None

    def live_adapter(self) -> Adapter:
        """A copy, in host memory, of the weights as they are now. The caller holds the session's lease."""
        adapter = self.trainer.weights_to_use()
        modules = {
            path: replace(module, down=_still(module.down), up=_still(module.up))
            for path, module in adapter.modules.items()
        }
        full = {name: _still(tensor) for name, tensor in adapter.full.items()}
        return replace(adapter, modules=modules, full=full, dropout=0.0, name=f"{self.id} at step {self.status.step}")

    def take(self, event: Event) -> None:
        """Bring the status up to date with an event of the job."""
        data = event.data
        changes: dict[str, Any] = {}
        if event.kind == "step":
            self._go_back_to(data["step"] - 1)
            if math.isfinite(data["loss"]):
                self.points.append((data["step"], data["loss"]))
            changes = {"state": "running", "message": "", **self._paced(data)}
        elif event.kind == "resumed_from":
            self._go_back_to(data["step"])
            changes = {"step": data["step"], "message": f"going on after step {data['step']}"}
        elif event.kind in ("opening", "reading", "checking", "prepared"):
            changes = {"state": "preparing", "message": _in_words(event)}
        elif event.kind in ("validation", "preview"):
            self.marks += marks_of([{"event": event.kind, **data}])
        elif event.kind in ("checkpoint", "results"):
            changes = {"lora": Path(data["file"]).name}
        elif event.kind in ("warning", "out_of_memory"):
            changes = {"warning": data["message"]}
            self._planned()
        elif event.kind == "rollback":
            self._go_back_to(data["step"])
            changes = {"warning": f"step {data['from_step']}: {data['reason']}: went back to step {data['step']}"}
        elif event.kind in ("giving way", "paused", *ENDED):
            changes = {"state": event.kind, "message": ""}
            if event.kind == "failed":
                changes["message"] = " ".join(data["message"].split()) + self._crash_file()
            changes["resumable"] = event.kind in RESUMABLE and (self.folder / "recipe.yaml").is_file()
        elif event.kind in ("going on", "resumed"):
            changes = {"state": "running" if self.trainer else "preparing"}
        self.status = replace(self.status, **changes)

    def _planned(self) -> None:
        if self.trainer:
            self.status = replace(self.status, planned_bytes=self.trainer.plan.peak_bytes or None)

    def _crash_file(self) -> str:
        """Where the traceback of a mistake of ours has been left, in words: in the run's folder, or in its place."""
        if not self.job.traceback:
            return ""
        path = self.folder / CRASH_FILE if self.folder.is_dir() else self.folder.with_name(f"{self.id}.{CRASH_FILE}")
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path, overwrite=True) as file:
            file.write(self.job.traceback.encode())
        return f" ({path.relative_to(self.folder.parent)} has the whole of it)"

    def _go_back_to(self, step: int) -> None:
        """Forget what came after a step: the run has gone back to it."""
        while self.points and self.points[-1][0] > step:
            self.points.pop()
        if self.marks and self.marks[-1]["step"] > step:
            self.marks = [mark for mark in self.marks if mark["step"] <= step]

    def _paced(self, record: Mapping[str, Any]) -> dict[str, Any]:
        self._seconds = [*self._seconds[1 - PACE_STEPS :], record["seconds"]]
        pace = sum(self._seconds) / len(self._seconds)
        return {"step": record["step"], "seconds_per_step": pace, "memory_bytes": record.get("memory_bytes")}


class Herald:
    """Follows one run's job and tells of it: at once when its state changes, else a few times a second."""

    def __init__(self, run: Run, host: Host) -> None:
        self._run, self._host = run, host
        self._points: list[Point] = []
        self._marks: list[Mark] = []
        self._told_at = 0.0

    def __call__(self, event: Event) -> None:
        run, before, marked = self._run, self._run.status.state, len(self._run.marks)
        run.take(event)
        if event.kind == "giving way":
            self._host.give_way()
        if event.kind == "step" and math.isfinite(event.data["loss"]):
            self._points.append(run.points[-1])
        self._marks += run.marks[marked:]
        if run.status.state != before or time.monotonic() - self._told_at >= SENT_EVERY_S:
            self._told_at = time.monotonic()
            self._host.tell(news_of(run, self._points, self._marks))
            self._points, self._marks = [], []


def news_of(run: Run, points: list[Point], marks: list[Mark]) -> dict[str, Any]:
    """What is sent of a run: the node that it is for, how it stands, and the points and marks that are new."""
    return {"id": run.id, "node": run.node, "status": asdict(run.status), "points": thinned(points), "marks": marks}


def _in_words(event: Event) -> str:
    """What a run is doing before its first step."""
    data = event.data
    if event.kind == "reading":
        return f"reading weights, {data['done'] / 1e9:.1f} of {data['total'] / 1e9:.1f} GB"
    if event.kind == "checking":
        return f"looking at pictures, {data['done']} of {data['total']}"
    if event.kind == "prepared":
        return f"{data['samples']} pictures, {data['trainable_parameters']:,} trainable parameters"
    return "opening the model"


def _still(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True)
