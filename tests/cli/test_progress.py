import io
import sys

import pytest

from u1_core.cli import progress
from u1_core.cli.progress import ProgressLine


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch):
    """A clock that a test sets."""
    times = iter([100.0, 103.0, 104.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(times))


def test_a_line_rewritten_in_place(monkeypatch, clock):
    """The first step's time, in which weights are read too, does not count."""
    monkeypatch.setattr(sys, "stderr", Terminal())
    line = ProgressLine("drawing")
    for done in (1, 2, 3):
        line.steps(done, 3)
    assert sys.stderr.getvalue().split("\r")[1:] == [
        "drawing  1/3\x1b[K",
        "drawing  2/3  3.00 s each\x1b[K",
        "drawing  3/3  2.00 s each\x1b[K\n",
    ]


def test_bytes(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    ProgressLine("reading").bytes(1_500_000_000, 3_000_000_000)
    ProgressLine("reading").bytes(3_000_000_000, 3_000_000_000)
    assert sys.stderr.getvalue() == "\rreading  1.5/3.0 GB\x1b[K\rreading  3.0/3.0 GB\x1b[K\n"


def test_silent_where_there_is_no_terminal(monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    ProgressLine("drawing").steps(1, 1)
    assert sys.stderr.getvalue() == ""
