"""How others talk to a run, through two small files in its folder: `control`, a word for it, and `status.json`.

A thread of the run looks for words twice a second and tells how the run is; that works the same on every system, for a
run in this process or in another, and for one that is paused.
"""

import json
import os
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from u1_core.errors import U1Error
from u1_core.jobs import Event, Job
from u1_core.train.run_log import last_step
from u1_core.weights.write import replacing

STATUS = "status.json"
WORDS = ("pause", "resume", "stop", "save", "preview")
POLL_S, SILENT_S = 0.5, 15.0
"""How often a run looks and tells, and after how long without a word from it it is taken to be gone."""


class Control:
    """Obeys and tells while its block runs: `with Control(folder, job): …`."""

    def __init__(self, folder: Path, job: Job) -> None:
        self._folder, self._job = folder, job
        self._over, self._facts = threading.Event(), {"pid": os.getpid(), "step": 0, "steps": 0}
        self.save_asked, self.preview_asked = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._watch, name="u1-control", daemon=True)

    def __enter__(self) -> "Control":
        refuse_going(self._folder)
        (self._folder / "control").unlink(missing_ok=True)
        self._job.subscribe(self._hear)
        self._tell("running")
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()
        done = self._facts["step"] >= self._facts["steps"] > 0
        self._tell("failed" if kind else "finished" if done else "stopped", **({"reason": str(error)} if kind else {}))

    def _hear(self, event: Event) -> None:
        if event.kind in ("step", "resumed_from"):
            self._facts |= {key: event.data[key] for key in ("step", "steps", "loss") if key in event.data}

    def _watch(self) -> None:
        while not self._over.wait(POLL_S):
            self._obey()
            self._tell("paused" if self._job.state == "paused" else "running")

    def _obey(self) -> None:
        path = self._folder / "control"
        try:
            word = path.read_bytes().decode("utf-8", "replace").strip()
            path.unlink()
        except OSError:
            return
        if word in ("save", "preview"):
            (self.save_asked if word == "save" else self.preview_asked).set()
        elif word in WORDS:
            getattr(self._job, word)()

    def _tell(self, state: str, **more: str) -> None:
        part, status = self._folder / f"{STATUS}.part", self._folder / STATUS
        with suppress(OSError):
            try:
                part.write_text(json.dumps({**self._facts, "state": state, **more}), encoding="utf-8")
                os.replace(part, status)
            except OSError:  # a full disk, or a reader on Windows: it is enough to be known to be alive
                part.unlink(missing_ok=True)
                os.utime(status)


def read_status(folder: Path) -> dict[str, Any]:
    """How a run is: "state" ("running", "paused", "finished", "stopped", "failed", or "dead" if it fell silent or
    never spoke), and "step", "steps", "pid", "loss" where they are known."""
    facts: dict[str, Any] = {"state": "dead"}
    with suppress(OSError, ValueError, KeyError, TypeError):
        status = folder / STATUS
        told = json.loads(status.read_text(encoding="utf-8"))
        silent = time.time() - status.stat().st_mtime > SILENT_S or not _process_is_there(told["pid"])
        facts = {**told, "state": "dead"} if told["state"] in ("running", "paused") and silent else told
    # What a run says of itself now and then is behind its log when it is killed.
    if facts["state"] == "dead" and (last := last_step(folder)):
        facts |= {"step": last["step"], "loss": last["loss"]}
    return facts


def alive(folder: Path) -> bool:
    return read_status(folder)["state"] in ("running", "paused")


def refuse_going(folder: Path) -> None:
    """Raise U1Error if someone is at this run: two would write over each other."""
    if alive(folder):
        raise U1Error(f"{folder}: the run is still going; `u1 runs stop` ends it")


def ask(folder: Path, word: str) -> None:
    """Leave a word for a run. Raises U1Error if nobody is there to hear it, or the disk does not take it."""
    if not alive(folder):
        raise U1Error(f"{folder}: the run is {read_status(folder)['state']}, so it cannot {word}")
    with replacing(folder / "control", overwrite=True) as file:
        file.write(word.encode())


def _process_is_there(pid: int) -> bool:
    """Where that can be asked without harm; on Windows only time will tell."""
    if os.name == "nt":
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
