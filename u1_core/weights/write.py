"""Writing .safetensors files so that a reader never sees half of one, and nothing of the user's is lost."""

import errno
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from u1_core.errors import U1Error
from u1_core.model.config import Shape
from u1_core.weights.header import DTYPE_NAMES

Specs = Mapping[str, tuple[torch.dtype, Shape]]
"""Tensors to come: name -> (dtype, shape)."""

SHARD_BYTES = 5_000_000_000
"""Where a checkpoint is cut into shards unless told otherwise."""


class NoRoomError(U1Error):
    """The disk is full, or the user's share of it is: the same can be written once there is room."""


def cannot_write(path: Path, problem: OSError) -> U1Error:
    """The error for a file that the disk did not take."""
    kind = NoRoomError if problem.errno in (errno.ENOSPC, errno.EDQUOT) else U1Error
    return kind(f"{path}: cannot be written ({problem.strerror or problem})")


@contextmanager
def replacing(path: Path, overwrite: bool = False) -> Iterator[BinaryIO]:
    """A file to write in `path`'s stead: it takes the name only when the block has ended well and the disk has it.

    Raises U1Error if `path` is there and `overwrite` is false, or if it cannot be written (NoRoomError on a full disk).
    """
    _refuse_existing(path, overwrite)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            yield file
            _sync(file)
        _refuse_existing(path, overwrite)
        os.replace(part, path)
    except OSError as problem:
        raise cannot_write(path, problem) from None
    finally:
        if part.exists():
            part.unlink()


def write_safetensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None, overwrite: bool = False
) -> None:
    """Write one file, whole or not at all. Raises U1Error rather than replace a file, unless `overwrite`."""
    specs = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    header, _ = _lay_out(specs, metadata)
    with replacing(path, overwrite) as file:
        file.write(header)
        for name in _in_file_order(specs):
            file.write(_bytes_of(tensors[name]))


class SafetensorsWriter:
    """A snapshot folder written tensor by tensor, in any order; it appears under its name only when it is complete.

    Use it as a context manager. Inside, `folder` is where config.json and other files go beside the weights, and
    `write` takes each declared tensor once. One shard becomes model.safetensors; more get an index.
    """

    def __init__(
        self,
        folder: Path,
        specs: Specs,
        metadata: Mapping[str, str] | None = None,
        shard_bytes: int = SHARD_BYTES,
    ) -> None:
        """Raises U1Error if `folder` is there with anything in it. `metadata` goes into every shard."""
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise U1Error(f"{folder}: is already there and not empty; choose another folder")
        self._target, self._specs = folder, dict(specs)
        self.folder = folder.with_name(f"{folder.name}.{os.getpid()}.part")
        shards = list(_cut(self._specs, shard_bytes))
        self._shards = [_Shard(self.folder / _shard_name(i, len(shards)), shards[i]) for i in range(len(shards))]
        self._shard_of = {name: shard for shard in self._shards for name in shard.specs}
        self._metadata = metadata

    def __enter__(self) -> "SafetensorsWriter":
        try:
            self.folder.mkdir(parents=True)
        except OSError as problem:
            raise U1Error(f"{self._target}: cannot be made ({problem.strerror or problem})") from None
        return self

    def write(self, name: str, tensor: Tensor) -> None:
        """Put one declared tensor in its place on disk. Raises U1Error if the disk will not take it."""
        if (tensor.dtype, tuple(tensor.shape)) != self._specs[name]:
            raise ValueError(f"{name} was declared as {self._specs[name]}, not {tensor.dtype} {tuple(tensor.shape)}")
        try:
            self._shard_of[name].write(name, tensor, self._metadata)
        except OSError as problem:
            raise cannot_write(self._target, problem) from None

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._finish()
        finally:
            for shard in self._shards:
                shard.close()
            shutil.rmtree(self.folder, ignore_errors=True)

    def _finish(self) -> None:
        unwritten = [name for shard in self._shards for name in shard.due]
        if unwritten:
            raise ValueError(f"{len(unwritten)} declared tensors were not written, e.g. {unwritten[0]}")
        if len(self._shards) > 1:
            self._write_index()
        try:
            if self._target.exists():
                self._target.rmdir()
            os.replace(self.folder, self._target)
        except OSError as problem:
            raise U1Error(f"{self._target}: cannot be put in place ({problem.strerror or problem})") from None

    def _write_index(self) -> None:
        total = sum(_n_bytes(*spec) for spec in self._specs.values())
        weight_map = {name: self._shard_of[name].path.name for name in self._specs}
        text = json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=2)
        with replacing(self.folder / "model.safetensors.index.json") as file:
            file.write(text.encode())


class _Shard:
    """One file of a snapshot being written; open from its first tensor to its last."""

    def __init__(self, path: Path, specs: Specs) -> None:
        self.path, self.specs = path, specs
        self.due = set(specs)
        self._file: BinaryIO | None = None
        self._starts: dict[str, int] = {}

    def write(self, name: str, tensor: Tensor, metadata: Mapping[str, str] | None) -> None:
        self.due.remove(name)
        if self._file is None:
            self._file = self.path.open("wb")
            header, self._starts = _lay_out(self.specs, metadata)
            self._file.write(header)
        self._file.seek(self._starts[name])
        self._file.write(_bytes_of(tensor))
        if not self.due:
            _sync(self._file)
            self.close()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def _lay_out(specs: Specs, metadata: Mapping[str, str] | None) -> tuple[bytes, dict[str, int]]:
    """A file's header, and where in the file each tensor starts."""
    table: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    starts, end = {}, 0
    for name in _in_file_order(specs):
        dtype, shape = specs[name]
        starts[name], start = end, end
        end += _n_bytes(dtype, shape)
        table[name] = {"dtype": DTYPE_NAMES[dtype], "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(table, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    first = 8 + len(text)
    return len(text).to_bytes(8, "little") + text, {name: first + start for name, start in starts.items()}


def _in_file_order(specs: Specs) -> list[str]:
    """Wide dtypes first, so that each tensor starts at a multiple of its own item size."""
    return sorted(specs, key=lambda name: -specs[name][0].itemsize)


def _cut(specs: Specs, shard_bytes: int) -> Iterator[dict[str, tuple[torch.dtype, Shape]]]:
    """Runs of tensors, in the order declared, of at most `shard_bytes` each (or of one larger tensor)."""
    shard, size = {}, 0
    for name, spec in specs.items():
        if shard and size + _n_bytes(*spec) > shard_bytes:
            yield shard
            shard, size = {}, 0
        shard[name] = spec
        size += _n_bytes(*spec)
    yield shard


def _shard_name(index: int, count: int) -> str:
    return "model.safetensors" if count == 1 else f"model-{index + 1:05}-of-{count:05}.safetensors"


def _n_bytes(dtype: torch.dtype, shape: Shape) -> int:
    return math.prod(shape) * dtype.itemsize


def _bytes_of(tensor: Tensor) -> memoryview:
    return memoryview(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _refuse_existing(path: Path, overwrite: bool) -> None:
    if path.exists() and not overwrite:
        raise U1Error(f"{path}: is already there; choose another name, or say that it may be overwritten")
