"""A U1 model in one .gguf file, as tools for quantised models write it, checked against the config beside it.

The tensors have the checkpoint's own names, and the types of `weights/dequantise.py`. What GGUF has no room for lies
beside the file as it does beside .safetensors: config.json and the tokenizer.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import hashlib
import math
import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from u1_core.errors import U1Error
from u1_core.model.config import Shape, U1Config
from u1_core.weights.dequantise import FORMATS, UNQUANTISED, dequantise_into
from u1_core.weights.snapshot import check_shapes, file_samples, listed, shared_prefix

ORIGINAL_SHAPE = "comfy.gguf.orig_shape."
"""Metadata that gives the shape of a tensor stored in another one, so that its rows fill blocks (ComfyUI-GGUF)."""


@dataclass(frozen=True, slots=True)
class GgufEntry:
    """One tensor of a file. `type` is GGUF's name of its format; `start` is counted from the file's first byte."""

    type: str
    shape: Shape
    start: int
    n_bytes: int


@dataclass(frozen=True)
class GgufSource:
    """An open .gguf file. It stands where a `Snapshot` does. Open one with `GgufSource.open`."""

    path: Path
    config: U1Config
    """With the head as wide as these weights have it."""
    tensors: Mapping[str, GgufEntry]
    _mapped: Tensor = field(repr=False, compare=False)
    """The whole file in bytes, memory-mapped for reading only: writing to it is not allowed."""

    @classmethod
    def open(cls, path: str | Path) -> "GgufSource":
        """Open a .gguf file with its config.json beside it. Reads the header only.

        Raises one U1Error with every problem: missing, unexpected or misshapen tensors, types that cannot be read here.
        A file that is damaged or cut off, or without its config, is said to be so.
        """
        path = Path(path).expanduser()
        reader = _open_reader(path)
        if not (path.parent / "config.json").is_file():
            raise U1Error(
                f"{path}: there is no config.json beside it, and a .gguf has neither dimensions nor tokenizer; "
                f"copy config.json and the tokenizer's files of the model it was made from into {path.parent}"
            )
        config = U1Config.from_file(path.parent / "config.json")
        prefix = shared_prefix(tensor.name for tensor in reader.tensors)
        tensors = {tensor.name.removeprefix(prefix): _entry(reader, tensor) for tensor in reader.tensors}
        shapes = {name: entry.shape for name, entry in tensors.items()}
        problems = check_shapes(config, shapes) + _check_types(tensors)
        if problems:
            raise U1Error(f"{path}: {'; '.join(problems)}")
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            mapped = torch.from_numpy(reader.data)
        return cls(path, config.with_head_width_of(shapes), tensors, mapped)

    @property
    def folder(self) -> Path:
        """Where config.json and the tokenizer's files are."""
        return self.path.parent

    @property
    def kind(self) -> str:
        """ "u1", "u1.5" or "a3b"."""
        return self.config.kind

    @property
    def total_bytes(self) -> int:
        """Bytes of all tensors as they are stored."""
        return sum(entry.n_bytes for entry in self.tensors.values())

    @property
    def quantised_types(self) -> tuple[str, ...]:
        """The quantised formats in this file, most frequent first; none for one of F32, F16 and BF16 only."""
        counts = Counter(entry.type for entry in self.tensors.values() if entry.type not in UNQUANTISED)
        return tuple(name for name, _ in counts.most_common())

    def raw(self, name: str) -> Tensor:
        """One tensor's bytes as they are stored: flat, uint8, memory-mapped, not to be written to."""
        entry = self.tensors[name]
        return self._mapped[entry.start : entry.start + entry.n_bytes]

    def read(self, name: str) -> Tensor:
        """One tensor, on the CPU: dequantised to fp32, or in its own dtype if it is not quantised."""
        entry = self.tensors[name]
        own_dtype = {"F16": torch.float16, "BF16": torch.bfloat16}.get(entry.type, torch.float32)
        tensor = torch.empty(entry.shape, dtype=own_dtype)
        self.read_into(name, tensor)
        return tensor

    def read_into(self, name: str, place: Tensor) -> None:
        """One tensor, dequantised where `place` is and rounded once to its dtype. `place` is contiguous."""
        dequantise_into(place, self.raw(name), self.tensors[name].type)

    def fingerprint(self) -> str:
        """16 hex digits that tell this file from others wherever it lies: names, types, shapes and 64 samples."""
        digest = hashlib.sha256(self.kind.encode())
        for name, entry in sorted(self.tensors.items()):
            digest.update(f"{name} {entry.type} {entry.shape}\n".encode())
        for sample in file_samples(self.path):
            digest.update(sample)
        return digest.hexdigest()[:16]


def refuse_training_on_quantised(source: object) -> None:
    """Raise U1Error if the weights are quantised: what is trained on them learns their errors too."""
    if isinstance(source, GgufSource) and source.quantised_types:
        raise U1Error(
            f"{source.path}: training needs a base that is not quantised, and this one is "
            f"({', '.join(source.quantised_types)}): on 4- and 8-bit bases LoRAs came out with grid patterns and "
            "malformed limbs. Train on the model's .safetensors; the LoRA can then be used with this file"
        )


def _open_reader(path: Path) -> Any:
    """The gguf package's reader of a file's header. Raises U1Error without the package, or if it cannot be read."""
    if not path.is_file():
        raise U1Error(f"{path}: there is no such file")
    try:
        import gguf
    except ImportError:
        raise U1Error(
            f"{path}: .gguf files are read with the gguf package, which is not installed: pip install -U gguf"
        ) from None
    try:
        reader = gguf.GGUFReader(path)
        parts = max(_numbers(reader, "split.count"), default=1)
    except OSError as problem:
        raise U1Error(f"{path}: cannot be read ({problem.strerror or problem})") from None
    # The reader takes the file at its word; what it stumbles over depends on where the damage is.
    except (ValueError, IndexError, KeyError, TypeError, OverflowError) as problem:
        raise U1Error(
            f"{path}: not a GGUF file, or damaged or cut off ({path.stat().st_size:,} bytes are there; {problem}); "
            "download or copy it again"
        ) from None
    if reader.byte_order == "S":
        raise U1Error(f"{path}: its bytes are in the order of another kind of machine; take a little-endian file")
    if parts > 1:
        raise U1Error(f"{path}: this is one of {parts} parts; join them first (llama-gguf-split --merge)")
    return reader


def _numbers(reader: Any, key: str) -> list[int]:
    """The whole numbers under a key of the metadata; none where the key is not there."""
    found = reader.get_field(key)
    return [int(found.parts[index][0]) for index in found.data] if found else []


def _entry(reader: Any, tensor: Any) -> GgufEntry:
    """GGUF counts dimensions from the innermost, torch from the outermost."""
    shape = tuple(int(size) for size in reversed(tensor.shape))
    original = tuple(_numbers(reader, ORIGINAL_SHAPE + tensor.name))
    if original and math.prod(original) == math.prod(shape):
        shape = original
    return GgufEntry(tensor.tensor_type.name, shape, tensor.data_offset, tensor.n_bytes)


def _check_types(tensors: Mapping[str, GgufEntry]) -> list[str]:
    wrong = [f"{name} is {entry.type}" for name, entry in tensors.items() if entry.type not in FORMATS]
    return listed(f"of an unsupported type (supported: {', '.join(FORMATS)})", wrong)
