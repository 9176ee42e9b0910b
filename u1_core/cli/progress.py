"""A line of progress on standard error: rewritten in place on a terminal, silent elsewhere."""

import sys
import time


class ProgressLine:
    """Shows "LABEL  12/50  0.4 s each"; the last update ends the line."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._first_done_at = 0.0
        self._shown = sys.stderr.isatty()

    def steps(self, done: int, total: int) -> None:
        """Tell how many of the steps are done. Their pace counts from the first one's end: before it, weights are read
        and prompts built."""
        now = time.monotonic()
        if done == 1:
            self._first_done_at = now
        pace = f"  {(now - self._first_done_at) / (done - 1):.2f} s each" if done > 1 else ""
        self._show(f"{done}/{total}{pace}", done >= total)

    def bytes(self, done: int, total: int) -> None:
        """Tell how many of the bytes are done."""
        self._show(f"{done / 1e9:.1f}/{total / 1e9:.1f} GB", done >= total)

    def _show(self, text: str, last: bool) -> None:
        if self._shown:
            print(f"\r{self._label}  {text}\x1b[K", end="\n" if last else "", file=sys.stderr, flush=True)
