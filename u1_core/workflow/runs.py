"""Training runs in the background: one at a time, the others in line, each giving way to whoever else needs the model.

A run's folder is its record: what is not running in this process is read back from there.
"""

import threading
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

from u1_core.errors import U1Error, nearest
from u1_core.lora.adapter import Adapter
from u1_core.session import Session
from u1_core.train.control import alive, ask
from u1_core.train.loop import Outcome, train
from u1_core.train.recipe import Recipe
from u1_core.train.recipe_file import load_recipe
from u1_core.train.run_folder import checkpoints_path
from u1_core.workflow.handles import Model
from u1_core.workflow.host import Host
from u1_core.workflow.run import POLL_S, Herald, Run, RunJob, news_of
from u1_core.workflow.run_history import Mark, Point, Status, checkpoints, history_of, status_of, thinned

OF_THE_JOB, OF_THE_LOOP = ("pause", "resume", "stop"), ("save", "preview")
ACTIONS = (*OF_THE_JOB, *OF_THE_LOOP)
"""What a run can be asked: to hold, to go on, to save and end; and to save or to draw previews after this step."""

Opened = Callable[[Run], AbstractContextManager[Session]]
Finish = Callable[[Run, Outcome], None]


class Runs:
    """The runs below one folder: those of this process, and what others left or have going there."""

    def __init__(self, root: Path, host: Host) -> None:
        self.root, self._host = root, host
        self._lock = threading.Lock()
        self._line: list[Run] = []
        self._runs: dict[str, Run] = {}

    def start(
        self,
        recipe: Recipe,
        model: Model,
        opened: Opened,
        finish: Finish,
        workflow: Mapping[str, Any] | None = None,
        node: str = "",
        resumed: bool = False,
    ) -> Run:
        """Put a run in line: a new one, its name numbered if it is taken, or (`resumed`) the one of this name again, to
        go on from its last checkpoint. `finish` is called with what it has come to. `node` is the one of the workflow
        that it is for. Raises U1Error if the run that is to go on is still going.
        """
        with self._lock:
            name = self._ended_name(recipe.run_name) if resumed else self._free_name(recipe.run_name)
            recipe = replace(recipe, run_name=name, runtime=replace(recipe.runtime, out_dir=str(self.root)))
            return self._begin(Run(recipe, model, workflow, node, resumed), opened, finish)

    def act(self, run_id: str, action: str) -> Status:
        """Ask a run that is going for one of `ACTIONS`; one of another process too. Raises U1Error."""
        if action not in ACTIONS:
            raise U1Error(f"{action!r} is none of {', '.join(ACTIONS)}")
        run = self._going(run_id)
        if run and action in OF_THE_JOB:
            getattr(run.job, action)()
        elif run and run.trainer is None:
            raise U1Error(f"run {run_id!r} is {run.status.state}: it can {action} once it has begun")
        else:
            ask(self.folder(run_id), action)
        return self.status(run_id)

    def stop_all(self, limit_s: float | None = None) -> None:
        """Ask every run of this process to save and end, and wait until they have, or so many seconds for each."""
        for run in self._runs.values():
            run.job.stop()
        for run in self._runs.values():
            run.job.wait(limit_s)

    def statuses(self) -> list[Status]:
        """All runs, the newest first."""
        with self._lock:
            here = [run.status for run in reversed(self._runs.values())]
        known = {status.id for status in here}
        recipes = [path for path in self.root.glob("*/recipe.yaml") if path.parent.name not in known]
        recipes.sort(key=lambda path: path.stat().st_mtime, reverse=True)
        return here + [status_of(path.parent) for path in recipes]

    def status(self, run_id: str) -> Status:
        """One run's. Raises U1Error if there is no such run."""
        run = self._runs.get(run_id)
        return run.status if run else status_of(self.folder(run_id))

    def has(self, run_id: str) -> bool:
        """Whether there is a run of this name: one that is going here, or what one has left. Who ended before there was
        a folder has left nothing to go on from."""
        return self._going(run_id) is not None or (self.root / run_id / "recipe.yaml").is_file()

    def folder(self, run_id: str) -> Path:
        """A run's folder, found among those that are there: an id is never taken for a path."""
        names = {path.parent.name: path.parent for path in self.root.glob("*/recipe.yaml")}
        if run_id not in names:
            raise U1Error(f"there is no run {run_id!r}{nearest(run_id, names)}")
        return names[run_id]

    def history(self, run_id: str) -> tuple[list[Point], list[Mark]]:
        """A run's losses by step, thinned to what a chart can show, and its validations and previews so far."""
        run = self._runs.get(run_id)
        points, marks = (list(run.points), list(run.marks)) if run else history_of(self.folder(run_id))
        return thinned(points), marks

    def preview(self, run_id: str, name: str) -> Path:
        """A preview's file, found among those that are there. Raises U1Error."""
        folder = self._runs[run_id].folder if run_id in self._runs else self.folder(run_id)
        for path in folder.glob("previews/*.png"):
            if path.name == name:
                return path
        raise U1Error(f"run {run_id} has no preview {name!r}")

    def wait(
        self,
        run_id: str,
        check: Callable[[], None],
        on_progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        """Until a run of this process has ended; neither it nor those before it in line give way meanwhile.

        `on_progress` is told of its steps. Raises what `check` or that raises, and U1Error if the run fails."""
        with self._lock:
            run = self._runs.get(run_id)
            awaited = self._line[: self._line.index(run) + 1] if run in self._line else []
            for each in awaited:
                each.job.awaited += 1
        if run is None:
            return
        told, ended = 0, False
        try:
            while not ended:
                check()
                ended = run.job.wait(0.1)
                if run.status.step != told:
                    told = run.status.step
                    on_progress(told, run.status.steps)
        finally:
            with self._lock:
                for each in awaited:
                    each.job.awaited -= 1
        if run.job.state == "failed":
            raise U1Error(f"run {run_id}: {run.status.message}")

    def newest_file(self, run_id: str, step: int = 0) -> Path:
        """The last LoRA that a run has saved, or its checkpoint of one step. Raises U1Error."""
        folder = self.folder(run_id)
        recipe = load_recipe(folder / "recipe.yaml")
        if step:
            saved = [checkpoints_path(recipe, folder) / f"step_{step:06}.safetensors"]
        else:
            saved = [folder / f"{run_id}.safetensors", folder / f"{run_id}.full.safetensors"]
            saved += reversed(checkpoints(folder, recipe))
        for path in saved:
            if path.is_file():
                return path
        raise U1Error(f"run {run_id} has saved no LoRA" + f" at step {step}" * bool(step) + " yet")

    def is_training(self, run_id: str) -> bool:
        """Whether a run of this process has weights to be looked at."""
        run = self._going(run_id)
        return run is not None and run.trainer is not None

    def live_adapter(self, run_id: str) -> Adapter | None:
        """A copy of the weights that a run of this process has now; None if it has ended or not begun."""
        run = self._going(run_id)
        session = run.session if run else None
        if session is None:
            return None
        with session.lease:
            return run.live_adapter() if run.trainer else None

    def sessions(self) -> list[Session]:
        """Those that runs are using."""
        with self._lock:
            return [run.session for run in self._runs.values() if run.session is not None]

    def at_work(self) -> bool:
        """Whether a run is between its first step and its last and is neither paused nor giving way."""
        with self._lock:
            return any(run.status.state in ("preparing", "running") for run in self._line)

    def device_is_ready(self) -> bool:
        """For a session's lease: whether the thread that asks may go on. A run may if the host lets it."""
        with self._lock:
            mine = [run for run in self._line if run.session is not None and run.job.is_this_thread()]
        return not mine or self._host.take_back(mine[0].session, mine[0].job.awaited > 0)

    def _going(self, run_id: str) -> Run | None:
        run = self._runs.get(run_id)
        return run if run and not run.job.ended else None

    def _begin(self, run: Run, opened: Opened, finish: Finish) -> Run:
        self._runs.pop(run.id, None)
        self._runs[run.id] = run
        self._line.append(run)
        run.job = RunJob(lambda job: self._work(run, opened, finish), self._host.busy)
        run.job.subscribe(Herald(run, self._host))
        self._host.tell(news_of(run, [], []))
        run.job.start()
        return run

    def _work(self, run: Run, opened: Opened, finish: Finish) -> Outcome | None:
        try:
            if not self._turn_comes(run):
                return None
            run.job.emit("opening")
            with opened(run) as session:
                run.session = session
                outcome = train(run.job, session, run.recipe, "checked" if run.resumed else "", run.begun)
                if outcome:
                    finish(run, outcome)
                return outcome
        finally:
            run.ended()
            with self._lock:
                self._line.remove(run)
            self._host.give_way()

    def _turn_comes(self, run: Run) -> bool:
        """Wait until the runs before it have ended. False if it has been told to stop."""
        while self._line[0] is not run and not run.job.stop_asked():
            time.sleep(POLL_S)
        return run.job.go_on()

    def _ended_name(self, name: str) -> str:
        if self._going(name) or alive(self.root / name):
            raise U1Error(f"run {name!r} is still going")
        return name

    def _free_name(self, name: str) -> str:
        free, number = name, 1
        while self._going(free) or (self.root / free).exists():
            number += 1
            free = f"{name}-{number}"
        return free
