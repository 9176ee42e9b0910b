"""SHA-256 of files. What takes long to read is read once and known again by its size and time of change."""

import hashlib
import json
import re
from pathlib import Path

from u1_core.errors import U1Error
from u1_core.weights.write import replacing

HASHES = ".hashes.json"
"""The memory's name, in the folder of all runs."""
LARGE_BYTES = 64 * 2**20
"""Only files so large are remembered."""
_BLOCK_BYTES = 1 << 20
_BLOB = re.compile(r"[0-9a-f]{64}")


class FileHashes:
    """Hashes of files, with a memory that later runs share."""

    def __init__(self, memory: Path) -> None:
        """`memory` is the file that remembers, as JSON; what is wrong with it is as if it were not there."""
        self._memory = memory
        self._known = _read(memory)

    def at_hand(self, path: Path) -> str | None:
        """The file's SHA-256 if it need not be read for it: the hub's cache names contents by their hashes, and what
        was hashed before is remembered."""
        real = path.resolve()
        if _BLOB.fullmatch(real.name):
            return real.name
        found = self._known.get(str(real))
        return found[2] if found and found[:2] == _stamp(real) else None

    def of(self, path: Path) -> str:
        """The file's SHA-256. Raises U1Error if it cannot be read."""
        if known := self.at_hand(path):
            return known
        digest = hashlib.sha256()
        try:
            stamp = _stamp(path)
            with path.open("rb") as file:
                while block := file.read(_BLOCK_BYTES):
                    digest.update(block)
        except OSError as problem:
            raise U1Error(f"{path}: cannot be read ({problem.strerror or problem})") from None
        if stamp[0] >= LARGE_BYTES:
            self._known[str(path.resolve())] = [*stamp, digest.hexdigest()]
        return digest.hexdigest()

    def save(self) -> None:
        """Remember. Raises U1Error if the disk does not take it."""
        if self._known != _read(self._memory):
            with replacing(self._memory, overwrite=True) as file:
                file.write(json.dumps(self._known, indent=1).encode("utf-8"))


def _stamp(path: Path) -> list[int]:
    """[size, time of change in ns]"""
    facts = path.stat()
    return [facts.st_size, facts.st_mtime_ns]


def _read(memory: Path) -> dict[str, list]:
    try:
        known = json.loads(memory.read_text(encoding="utf-8"))
        return {path: [int(size), int(changed), str(digest)] for path, (size, changed, digest) in known.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}
