"""Background runs: start, pause, resume, stop, and a stream of events that any thread may watch.

The work is a function that is handed its `Job`. Between two steps it calls `job.go_on()`, which is where a pause holds
it and where it learns that it is to stop; it tells what it did with `job.emit`.
"""

import logging
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from u1_core.errors import U1Error

KEPT_EVENTS = 10_000
ENDED = ("finished", "stopped", "failed")


class StopAsked(Exception):
    """Raised by `Job.check_stop`. Work that lets it through has stopped."""


@dataclass(frozen=True)
class Event:
    """Something that happened in a job: "started", "step", "checkpoint", "paused", "resumed", or how it ended."""

    number: int
    """Counts from 1."""
    kind: str
    time_s: float
    """Seconds since the epoch."""
    data: dict[str, Any]


class Job:
    """One run of `work(job)` on a thread of its own.

    `state` is "waiting", "running", "paused", and at the end "finished", "stopped" (asked to stop, and did) or
    "failed"; then `result` is what the work returned, `error` the exception and `traceback` its text, which is empty
    for a U1Error: that one's message says all.
    """

    def __init__(self, work: Callable[["Job"], Any]) -> None:
        self._work = work
        self._changed = threading.Condition()
        self._events: deque[Event] = deque(maxlen=KEPT_EVENTS)
        self._count = 0
        self._watchers: list[Callable[[Event], None]] = []
        self._pause_asked = self._stop_asked = self._stop_seen = False
        self._thread = threading.Thread(target=self._run, name="u1-job", daemon=True)
        self.state = "waiting"
        self.result: Any = None
        self.error: BaseException | None = None
        self.traceback = ""

    def start(self) -> "Job":
        """Begin, once. Returns the job itself."""
        self._thread.start()
        return self

    def pause(self) -> None:
        """Hold the work at its next step boundary."""
        self._ask(pause=True)

    def resume(self) -> None:
        """Let a paused job go on."""
        self._ask(pause=False)

    def stop(self) -> None:
        """Ask the work to save and end at its next step boundary; a paused job too."""
        self._ask(stop=True)

    @property
    def ended(self) -> bool:
        return self.state in ENDED

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for the end, `timeout` seconds at most. Returns whether it has come."""
        with self._changed:
            return self._changed.wait_for(lambda: self.ended, timeout)

    def subscribe(self, watcher: Callable[[Event], None]) -> None:
        """Have `watcher` called with each event from now on, on the job's own thread."""
        with self._changed:
            self._watchers.append(watcher)

    def events(self, after: int = 0) -> list[Event]:
        """The events kept so far whose number is greater than `after`."""
        with self._changed:
            return [event for event in self._events if event.number > after]

    def follow(self, after: int = 0) -> Iterator[Event]:
        """Each event as it comes, from the first kept after number `after` to the one that ends the job."""
        seen = after
        while True:
            with self._changed:
                # A wait without an end cannot be interrupted by Ctrl-C on Windows.
                while self._count <= seen:
                    self._changed.wait(timeout=0.2)
            for event in self.events(after=seen):
                yield event
                seen = event.number
                if event.kind in ENDED:
                    return

    def go_on(self) -> bool:
        """For the work, between two steps: waits out a pause; False once it is to save and return."""
        if self._pause_asked and not self._stop_asked:
            self._enter("paused")
            with self._changed:
                self._changed.wait_for(lambda: self._stop_asked or not self._pause_asked)
            if not self._stop_asked:
                self._enter("running", kind="resumed")
        self._stop_seen = self._stop_asked
        return not self._stop_asked

    def check_stop(self) -> None:
        """For the work, while it waits for something: raises StopAsked once it is to save and return."""
        if self._stop_asked:
            self._stop_seen = True
            raise StopAsked

    def emit(self, kind: str, **data: Any) -> None:
        """For the work: tell everyone who watches."""
        self._enter(self.state, kind, **data)

    def _ask(self, pause: bool | None = None, stop: bool = False) -> None:
        with self._changed:
            self._pause_asked = self._pause_asked if pause is None else pause
            self._stop_asked = self._stop_asked or stop
            self._changed.notify_all()

    def _enter(self, state: str, kind: str = "", **data: Any) -> None:
        """Take on a state and send an event, named after the state unless told otherwise. Watchers hear of it first."""
        event = Event(self._count + 1, kind or state, time.time(), data)
        with self._changed:
            watchers = list(self._watchers)
        for watcher in watchers:
            try:
                watcher(event)
            except Exception:
                logging.getLogger(__name__).exception("a watcher of the job failed; the job goes on")
        with self._changed:
            self.state, self._count = state, event.number
            self._events.append(event)
            self._changed.notify_all()

    def _run(self) -> None:
        self._enter("running", kind="started")
        try:
            self.result = self._work(self)
        except StopAsked:
            self._enter("stopped")
        except BaseException as problem:
            self.error = problem
            if not isinstance(problem, U1Error):
                self.traceback = traceback.format_exc()
            _let_go(problem)
            self._enter("failed", message=f"{problem}" if isinstance(problem, U1Error) else repr(problem))
        else:
            self._enter("stopped" if self._stop_seen else "finished")


def _let_go(problem: BaseException | None) -> None:
    """Clear what the frames of an error, and of those that led to it, hold: weights and activations among it."""
    while problem is not None:
        traceback.clear_frames(problem.__traceback__)
        problem = problem.__cause__ or problem.__context__
