"""How much of a card's memory may be used: in bytes, or by a name that people know."""

import re
from dataclasses import dataclass

import torch

from u1_core.errors import U1Error, nearest

GIB = 2**30
MODES = {
    "auto": "what is free on the card, with room left for the desktop",
    "full": "the whole tower on the card",
    "balanced": "the least memory that is at most a tenth slower than any",
    "low": "the least memory that arithmetic still hides the copies of",
}
"""Budgets by name, and what they mean."""

_AMOUNT = re.compile(r"(\d+(?:\.\d+)?|\.\d+)\s*(gb|gib|g|mb|mib|m)?", re.IGNORECASE)
_UNITS = {"": GIB, "g": GIB, "gib": GIB, "gb": 10**9, "m": 2**20, "mib": 2**20, "mb": 10**6}
_LEAST_BYTES = 64 * 2**20
_DESKTOP_SHARE, _DESKTOP_BYTES = 1 / 16, GIB


@dataclass(frozen=True)
class Budget:
    """A mode, or (`mode` empty) an amount."""

    mode: str = "auto"
    n_bytes: int = 0

    @classmethod
    def parse(cls, text: "str | Budget") -> "Budget":
        """From "12GB" (10^9), "12GiB" (2^30), a plain "7.2" (GiB) or one of `MODES`. Raises U1Error for another."""
        if isinstance(text, Budget):
            return text
        name = text.strip().lower()
        if name in MODES:
            return cls(name)
        amount = _AMOUNT.fullmatch(name)
        if not amount:
            raise U1Error(
                f"budget {text!r} is neither an amount of memory (12GB, 12GiB, or 7.2 for GiB) nor one of "
                f"{', '.join(MODES)}{nearest(name, MODES)}"
            )
        n_bytes = int(float(amount[1]) * _UNITS[amount[2] or ""])
        if n_bytes < _LEAST_BYTES:
            raise U1Error(f"budget {text!r} is {n_bytes:,} bytes, too little for any layer; a plain number counts GiB")
        return cls("", n_bytes)

    def __str__(self) -> str:
        return self.mode or gib(self.n_bytes)


AUTO = Budget()


def gib(n_bytes: float) -> str:
    """ "7.20 GiB"."""
    return f"{n_bytes / GIB:.2f} GiB"


def free_bytes(device: torch.device) -> int:
    """What this process may have of a card's memory: what nobody uses now and what it holds itself, less some room.

    A desktop's use goes up and down: a sixteenth of the card, 1 GiB at most, is left to it.
    """
    free, total = torch.cuda.mem_get_info(device)
    return max(0, free + torch.cuda.memory_reserved(device) - desktop_bytes(total))


def desktop_bytes(card_bytes: int) -> int:
    """The room that is left on a card of this size."""
    return min(_DESKTOP_BYTES, int(card_bytes * _DESKTOP_SHARE))


def enforce(budget: Budget, device: torch.device) -> None:
    """Have the allocator keep to a budget that names an amount: what it has cached is given back before it takes more.

    A limit on the whole process; for a command, which is alone in it.
    """
    if budget.n_bytes and device.type == "cuda":
        share = min(1.0, budget.n_bytes / torch.cuda.mem_get_info(device)[1])
        torch.cuda.set_per_process_memory_fraction(share, device.index or 0)
