"""A line of progress on standard error: rewritten in place on a terminal, silent elsewhere."""

import sys
import time


class ProgressLine:
    """Shows "LABEL  12/50  0.4 s each"; the last update ends the line."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._started = time.monotonic()
        self._shown = sys.stderr.isatty()

    def steps(self, done: int, total: int, note: str = "") -> None:
        """Tell how many of the steps are done."""
        each = (time.monotonic() - self._started) / max(1, done)
        self._show(f"{done}/{total}  {each:.2f} s each  {note}", done >= total)

    def bytes(self, done: int, total: int) -> None:
        """Tell how many of the bytes are done."""
        self._show(f"{done / 1e9:.1f}/{total / 1e9:.1f} GB", done >= total)

    def _show(self, text: str, last: bool) -> None:
        if self._shown:
            print(f"\r{self._label}  {text}\x1b[K", end="\n" if last else "", file=sys.stderr, flush=True)
