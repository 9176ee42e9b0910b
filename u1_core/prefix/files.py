"""Prefix K/V on disk: a file for prompts that were built together, of which each is read by itself.

A file is found by what its K/V depends on (`prefix/keys.py`), and believed only as far as its checksums go: shapes,
dtype and all else are what the reader expects, or the file is as good as none.
"""

import json
import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from u1_core.errors import U1Error
from u1_core.model.config import Shape
from u1_core.model.views import KVChunk
from u1_core.weights.header import Header, read_header
from u1_core.weights.user_cache import cache_folder
from u1_core.weights.write import write_safetensors

CHECKSUMS = "u1.prefix_checksums"
"""Metadata key: CRC-32 of every tensor's bytes by its name, as JSON."""


def default_folder() -> Path:
    """Where K/V is kept unless told otherwise."""
    return cache_folder() / "prefixes"


@dataclass
class PrefixFolder:
    """Files of K/V in one folder. When there are more than `budget_bytes`, those used longest ago are deleted."""

    path: Path
    budget_bytes: int

    def open(self, key: str) -> "PrefixFile | None":
        """The file of that key, which now counts as just used; None if there is none that is whole."""
        path = self.path / f"{key}.safetensors"
        try:
            header = read_header(path)
            checksums = json.loads(header.metadata[CHECKSUMS])
            os.utime(path)
        except (U1Error, OSError, KeyError, ValueError):
            return None
        if header.size_problem or not isinstance(checksums, dict):
            return None
        return PrefixFile(header, checksums)

    def write(self, key: str, chunks: Sequence[KVChunk]) -> None:
        """Keep these, numbered from 0, in place of what the key stood for. Raises U1Error if the disk will not."""
        tensors = {f"{i}.{name}": getattr(chunk, name).cpu() for i, chunk in enumerate(chunks) for name in ("k", "v")}
        checksums = {name: zlib.crc32(_bytes_of(tensor)) for name, tensor in tensors.items()}
        write_safetensors(self.path / f"{key}.safetensors", tensors, {CHECKSUMS: json.dumps(checksums)}, overwrite=True)
        self._trim()

    def _trim(self) -> None:
        """Delete what was used longest ago until the rest is within the budget; the newest file stays."""
        found = []
        for path in self.path.glob("*.safetensors"):
            try:
                about = path.stat()
            except OSError:
                continue  # another run has just deleted it
            found.append((about.st_mtime_ns, about.st_size, path))
        held = sum(size for _, size, _ in found)
        for _, size, path in sorted(found)[:-1]:
            if held <= self.budget_bytes:
                break
            try:
                path.unlink()
            except OSError:
                continue  # being read on Windows: its turn comes another time
            held -= size


@dataclass(frozen=True)
class PrefixFile:
    """An open file of K/V: its header is sound, its numbers are checked as they are read."""

    header: Header
    checksums: dict[str, int]

    def read(self, number: int, shape: Shape, dtype: torch.dtype) -> KVChunk | None:
        """K/V number `number`, on the CPU; None if it is not what it should be, or not what was written."""
        k, v = (self._tensor(f"{number}.{name}", shape, dtype) for name in ("k", "v"))
        return None if k is None or v is None else KVChunk(k, v)

    def _tensor(self, name: str, shape: Shape, dtype: torch.dtype) -> Tensor | None:
        entry = self.header.tensors.get(name)
        if entry is None or entry.shape != shape or entry.dtype != dtype:
            return None
        tensor = torch.empty(shape, dtype=dtype)
        data_start = self.header.declared_bytes - sum(each.n_bytes for each in self.header.tensors.values())
        try:
            with self.header.path.open("rb", buffering=0) as file:
                file.seek(data_start + entry.start)
                whole = file.readinto(_bytes_of(tensor)) == tensor.nbytes
        except OSError:
            return None
        return tensor if whole and zlib.crc32(_bytes_of(tensor)) == self.checksums.get(name) else None


def _bytes_of(tensor: Tensor) -> memoryview:
    return memoryview(tensor.contiguous().view(-1).view(torch.uint8).numpy())
