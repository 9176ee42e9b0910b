"""A model's files read before anybody asks for them: the disk need not wait until Python has imported all it needs.

What is read is thrown away. The system keeps it in its page cache, and whoever asks for it later has it from there.
"""

import json
import os
import re
import threading
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from u1_core.model.config import GENERATION, UNDERSTANDING
from u1_core.weights.host_memory import host_memory_bytes

READERS = 4
"""Threads: one alone gets neither all that an SSD can give nor all that memory can."""
BLOCK_BYTES = 16 * 2**20
SHARE_OF_MEMORY = 0.5
"""At most so much of the host's memory is filled: what is pushed out before it is wanted was read for nothing."""

_LAYER = re.compile(r"\.layers\.(\d+)\.")
_under_way: "_ReadAhead | None" = None


def begin(model: Path, towers: Collection[str] = (UNDERSTANDING, GENERATION)) -> None:
    """Begin to read these towers of a snapshot folder or .safetensors file, understanding first; returns at once.

    Of a file that cannot be read nothing is said: whoever needs it will.
    """
    global _under_way
    _under_way = _ReadAhead(model, towers, int(SHARE_OF_MEMORY * host_memory_bytes()))


def on_to_generation() -> None:
    """Leave what is not yet read of the understanding tower: it is not needed, or later than the generation tower."""
    if _under_way:
        _under_way.towers -= {UNDERSTANDING}


class _Block(NamedTuple):
    tower: str
    file: Path
    start: int
    n_bytes: int


class _ReadAhead:
    """Threads that read `limit_bytes` at most. They end with the process, whatever they are at."""

    def __init__(self, model: Path, towers: Collection[str], limit_bytes: int) -> None:
        self.towers = frozenset(towers)
        self._model, self._left_bytes, self._lock = model, limit_bytes, threading.Lock()
        self._blocks: Iterator[_Block] | None = None
        self.threads = [
            threading.Thread(target=self._read_blocks, name="u1-reading-ahead", daemon=True) for _ in range(READERS)
        ]
        for thread in self.threads:
            thread.start()

    def _read_blocks(self) -> None:
        place = memoryview(bytearray(BLOCK_BYTES))
        try:
            while block := self._next():
                _read(block, place)
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):  # not (such) a file
            self._left_bytes = 0

    def _next(self) -> _Block | None:
        with self._lock:
            self._blocks = self._blocks or blocks_of(self._model)
            for block in self._blocks:
                if block.tower not in self.towers:
                    continue
                self._left_bytes -= block.n_bytes
                return block if self._left_bytes >= 0 else None
            return None


def blocks_of(model: Path) -> Iterator[_Block]:
    """Where both towers' bytes are, in the order in which they are needed. Reads headers."""
    spans = []
    for path in sorted(model.glob("*.safetensors")) if model.is_dir() else [model]:
        with path.open("rb") as file:
            # Not by weights/header.py, which imports PyTorch: that is what is not waited for here.
            header_bytes = int.from_bytes(file.read(8), "little")
            if header_bytes > path.stat().st_size:
                raise ValueError(f"{path} is no .safetensors file")
            header = json.loads(file.read(header_bytes))
        for name, entry in header.items():
            layer = _LAYER.search(name)
            if layer:
                start, end = (8 + header_bytes + offset for offset in entry["data_offsets"])
                spans.append((GENERATION in name, int(layer[1]), path, start, end))
    for generation, _, path, start, end in sorted(spans):
        tower = GENERATION if generation else UNDERSTANDING
        for at in range(start, end, BLOCK_BYTES):
            yield _Block(tower, path, at, min(BLOCK_BYTES, end - at))


def _read(block: _Block, place: memoryview) -> None:
    with block.file.open("rb", buffering=0) as file:
        # Its last byte: of what comes after something that has been read, the system has read the beginning too.
        if _is_cached(file, block.start + block.n_bytes - 1):
            return
        file.seek(block.start)
        done = 0
        while done < block.n_bytes and (count := file.readinto(place[done : block.n_bytes])):
            done += count


def _is_cached(file: BinaryIO, at: int) -> bool:
    """Whether the byte there is in the page cache; False where the system does not tell."""
    try:
        return os.preadv(file.fileno(), [bytearray(1)], at, os.RWF_NOWAIT) == 1
    except (OSError, AttributeError):
        return False
