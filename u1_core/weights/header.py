"""The header of a .safetensors file: names, dtypes, shapes and where the bytes lie, without reading a tensor.

Format: 8 bytes of length (little endian), that many bytes of JSON, then the tensors' bytes with no gaps.
https://github.com/huggingface/safetensors#format
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from u1_core.errors import U1Error

MAX_HEADER_BYTES = 100_000_000
"""The format's own limit."""

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor of a file. `key` is its name there; `start` is counted from the end of the header, in bytes."""

    file: Path
    key: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int

    @property
    def n_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class Header:
    """What a .safetensors file says it holds."""

    path: Path
    tensors: dict[str, TensorEntry]
    metadata: dict[str, str]
    declared_bytes: int
    """Size of the whole file as the header has it."""
    file_bytes: int

    @property
    def size_problem(self) -> str:
        """Words for a file that is shorter or longer than its header says, or nothing."""
        if self.file_bytes < self.declared_bytes:
            return f"{self.path.name} is truncated: {self.file_bytes:,} of {self.declared_bytes:,} bytes are there"
        if self.file_bytes > self.declared_bytes:
            return f"{self.path.name} is {self.file_bytes - self.declared_bytes:,} bytes longer than its header says"
        return ""


def read_header(path: Path) -> Header:
    """Read and check one file's header. Raises U1Error naming the file; a wrong file size is left to the caller."""
    try:
        with path.open("rb") as file:
            file_bytes = file.seek(0, 2)
            file.seek(0)
            prefix = file.read(8)
            length = int.from_bytes(prefix, "little")
            if len(prefix) < 8 or length > min(MAX_HEADER_BYTES, file_bytes - 8):
                raise U1Error(f"{path}: not a safetensors file, or cut off inside its header ({file_bytes:,} bytes)")
            text = file.read(length)
    except OSError as problem:
        raise U1Error(f"{path}: cannot be read ({problem.strerror or problem})") from None
    try:
        entries = json.loads(text.decode("utf-8"), object_pairs_hook=_no_duplicates)
        metadata = _metadata(entries.pop("__metadata__", {}))
        tensors = {key: _entry(path, key, value) for key, value in entries.items()}
        data_bytes = _without_gaps(tensors)
    except (ValueError, TypeError, AttributeError, RecursionError) as problem:
        raise U1Error(
            f"{path}: its safetensors header is damaged ({problem}); download or copy the file again"
        ) from None
    return Header(path, tensors, metadata, 8 + length + data_bytes, file_bytes)


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(key for i, (key, _) in enumerate(pairs) if any(key == other for other, _ in pairs[:i]))
        raise ValueError(f"{twice!r} stands there twice")
    return found


def _metadata(value: Any) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise ValueError("__metadata__ is not a table of texts")
    return value


def _entry(path: Path, key: str, value: Any) -> TensorEntry:
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{key!r} is not a tensor's entry")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise ValueError(f"{key!r} has the unknown dtype {dtype!r}")
    if not _whole_numbers(shape) or not _whole_numbers(offsets) or len(offsets) != 2:
        raise ValueError(f"{key!r} has shape {shape!r} at {offsets!r}")
    entry = TensorEntry(path, key, DTYPES[dtype], tuple(shape), offsets[0])
    if offsets[1] - offsets[0] != entry.n_bytes:
        raise ValueError(f"{key!r} of shape {shape} and dtype {dtype} does not fill {offsets}")
    return entry


def _whole_numbers(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)


def _without_gaps(tensors: dict[str, TensorEntry]) -> int:
    """Bytes of all tensors together, having checked that they lie one after the other."""
    end = 0
    for entry in sorted(tensors.values(), key=lambda entry: (entry.start, entry.n_bytes)):
        if entry.start != end:
            raise ValueError(f"{entry.key!r} starts at byte {entry.start} where {end} was due")
        end += entry.n_bytes
    return end
