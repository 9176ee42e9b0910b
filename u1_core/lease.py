"""Who may use the device now: a lock that is handed on in the order in which it was asked for.

A plain lock lets a trainer that releases it between two steps take it again before a waiting sampler wakes up; with
this one the sampler is next.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType

WAIT_S, CHECK_S = 0.02, 0.1


class Lease:
    """A fair, reentrant lock: `with lease: …`. A thread that holds it may take it again."""

    def __init__(self) -> None:
        self.ready: Callable[[], bool] = lambda: True
        """Asked on a thread that has just come to hold the lease. False: what it needs is not on the device and cannot
        be brought there now; it gives the lease back and comes again."""
        self._changed = threading.Condition()
        self._queue: deque[object] = deque()
        self._owner: int | None = None
        self._depth = 0

    def acquire(self, check: Callable[[], None] = lambda: None) -> None:
        """Wait for this thread's turn, and until the device is ready for it. `check` is called a few times a second
        while waiting; what it raises ends the wait."""
        while True:
            self._take(check)
            try:
                ready = self._depth > 1 or self.ready()
            except BaseException:
                self.release()
                raise
            if ready:
                return
            self.release()
            time.sleep(WAIT_S)
            check()

    def release(self) -> None:
        """Hand the lease on. Only its holder may."""
        with self._changed:
            if self._owner != threading.get_ident():
                raise RuntimeError("the lease is held by another thread, or by none")
            self._depth -= 1
            if self._depth == 0:
                self._owner = None
                self._changed.notify_all()

    @contextmanager
    def held(self, check: Callable[[], None]) -> Iterator[None]:
        """As `with lease: …`, for who may be told to give up waiting."""
        self.acquire(check)
        try:
            yield
        finally:
            self.release()

    @contextmanager
    def as_it_is(self) -> Iterator[None]:
        """Hold the lease without asking whether the device is ready: for who moves things from it and to it."""
        self._take()
        try:
            yield
        finally:
            self.release()

    def __enter__(self) -> "Lease":
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def _take(self, check: Callable[[], None] = lambda: None) -> None:
        me = threading.get_ident()
        with self._changed:
            if self._owner != me:
                ticket = object()
                self._queue.append(ticket)
                try:
                    while not self._changed.wait_for(lambda: self._is_free_for(ticket), CHECK_S):
                        check()
                    self._owner = me
                finally:
                    self._queue.remove(ticket)
                    self._changed.notify_all()
            self._depth += 1

    def _is_free_for(self, ticket: object) -> bool:
        return self._owner is None and self._queue[0] is ticket
