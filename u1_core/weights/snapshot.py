"""A checkpoint on disk: which tensors it has and where, checked against its config before any of them is read."""

import hashlib
import json
import re
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from u1_core.errors import U1Error
from u1_core.model.config import FM_HEAD, Shape, U1Config, tensor_shapes
from u1_core.weights.header import DTYPE_NAMES, Header, TensorEntry, read_header

INDEX = "model.safetensors.index.json"
SUPPORTED_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
PICKLES = (".bin", ".pt", ".ckpt", ".pth", ".pkl")
GGUF = ".gguf"
KEY_PREFIXES = ("model.diffusion_model.", "diffusion_model.")
"""What single files made for ComfyUI put before every key."""

READ_BYTES = 16 * 2**20
"""Tensors that are wanted in another dtype or on a card pass through memory of this size."""

_SHARD = re.compile(r"(.+)-(\d+)-of-(\d+)\.safetensors")
_FINGERPRINT_SAMPLES, _SAMPLE_BYTES = 64, 4096


@dataclass(frozen=True)
class Snapshot:
    """An open checkpoint: its config and its tensors by the model's own names. Open one with `Snapshot.open`."""

    path: Path
    """The folder, or the single file."""
    config: U1Config
    """With the head as wide as these weights have it."""
    tensors: Mapping[str, TensorEntry]
    _files: "_OpenFiles" = field(default_factory=lambda: _OpenFiles(), repr=False, compare=False)

    @classmethod
    def open(cls, path: str | Path) -> "Snapshot":
        """Open a Hugging Face snapshot folder, or one .safetensors file with its config.json beside it.

        Reads headers only. Raises one U1Error with every problem: missing, unexpected or misshapen tensors,
        unsupported dtypes, missing, damaged or truncated shards, tensors that are there twice.
        """
        path = Path(path).expanduser()
        files, problems = _weight_files(path)
        folder = path if path.is_dir() else path.parent
        config = U1Config.from_file(folder / "config.json")
        headers = _read_headers(files, problems)
        tensors = _by_model_name(headers, problems)
        shapes = {name: entry.shape for name, entry in tensors.items()}
        problems += [header.size_problem for header in headers if header.size_problem]
        problems += check_shapes(config, shapes) + _check_dtypes(tensors)
        if problems:
            raise U1Error(f"{path}: {'; '.join(problems)}")
        return cls(path, config.with_head_width_of(shapes), tensors)

    @property
    def folder(self) -> Path:
        """Where config.json and the tokenizer's files are."""
        return self.path if self.path.is_dir() else self.path.parent

    @property
    def kind(self) -> str:
        """ "u1", "u1.5" or "a3b"."""
        return self.config.kind

    @property
    def total_bytes(self) -> int:
        """Bytes of all tensors as they are stored."""
        return sum(entry.n_bytes for entry in self.tensors.values())

    def read(self, name: str) -> Tensor:
        """One tensor, on the CPU, as it is stored. It is memory-mapped: pages are read when they are touched."""
        entry = self.tensors[name]
        try:
            return self._files.get(entry.file).get_tensor(entry.key)
        except (SafetensorError, OSError) as problem:
            raise U1Error(f"{entry.file}: cannot read {entry.key} ({problem})") from None

    def read_into(self, name: str, place: Tensor) -> None:
        """One tensor, rounded once to the dtype of `place`, wherever that is.

        Read, not mapped: from a disk that is several times as fast, and the file's pages are not counted as ours.
        """
        entry = self.tensors[name]
        if not place.is_contiguous():
            place.copy_(self.read(name))
        elif place.device.type == "cpu" and place.dtype == entry.dtype:
            self._files.read_bytes(entry, 0, _bytes_of(place))
        else:
            elements = READ_BYTES // entry.dtype.itemsize
            # Page-locked, a card fetches it at once; 16 MiB a reader, which PyTorch keeps for the next time.
            on_card = place.device.type == "cuda"
            piece = torch.empty(min(elements, place.numel()), dtype=entry.dtype, pin_memory=on_card)
            for start in range(0, place.numel(), elements):
                there = place.view(-1)[start : start + elements]
                self._files.read_bytes(entry, start * entry.dtype.itemsize, _bytes_of(piece[: len(there)]))
                there.copy_(piece[: len(there)])

    def fingerprint(self) -> str:
        """16 hex digits that tell this checkpoint from others wherever it lies: names, shapes, dtypes and samples.

        Fine-tuned checkpoints share every name and shape, so 64 samples of each file's bytes go in too.
        """
        digest = hashlib.sha256(self.kind.encode())
        for name, entry in sorted(self.tensors.items()):
            digest.update(f"{name} {DTYPE_NAMES[entry.dtype]} {entry.shape}\n".encode())
        paths = sorted({entry.file for entry in self.tensors.values()}, key=lambda path: path.name)
        with ThreadPoolExecutor(max(1, len(paths))) as readers:  # each waits for the disk at every sample
            for samples in readers.map(lambda path: b"".join(file_samples(path)), paths):
                digest.update(samples)
        return digest.hexdigest()[:16]


def _bytes_of(tensor: Tensor) -> memoryview:
    """The memory of a contiguous tensor on the CPU."""
    return memoryview(tensor.view(-1).view(torch.uint8).numpy())


class _OpenFiles:
    """The files' bytes, for any number of threads: mapped, each file opened once, or read."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._handles: dict[Path, Any] = {}
        self._data_starts: dict[Path, int] = {}

    def get(self, path: Path) -> Any:
        with self._lock:
            if path not in self._handles:
                self._handles[path] = safe_open(str(path), framework="pt", device="cpu")
            return self._handles[path]

    def read_bytes(self, entry: TensorEntry, start: int, place: memoryview) -> None:
        """Fill `place` with a tensor's bytes as they are stored, from byte `start` on."""
        try:
            with entry.file.open("rb", buffering=0) as file:
                if entry.file not in self._data_starts:
                    self._data_starts[entry.file] = 8 + int.from_bytes(file.read(8), "little")
                file.seek(self._data_starts[entry.file] + entry.start + start)
                while place:
                    count = file.readinto(place)
                    if not count:
                        raise OSError("it has become shorter")
                    place = place[count:]
        except OSError as problem:
            raise U1Error(f"{entry.file}: cannot read {entry.key} ({problem.strerror or problem})") from None


def file_samples(path: Path) -> Iterator[bytes]:
    """64 pieces of a file, evenly spread over it."""
    size = path.stat().st_size
    with path.open("rb") as file:
        for i in range(_FINGERPRINT_SAMPLES):
            file.seek(i * size // _FINGERPRINT_SAMPLES)
            yield file.read(_SAMPLE_BYTES)


def shared_prefix(keys: Iterable[str]) -> str:
    """What a file made for ComfyUI puts before every key, or nothing."""
    keys = list(keys)
    return next((prefix for prefix in KEY_PREFIXES if keys and all(key.startswith(prefix) for key in keys)), "")


def check_shapes(config: U1Config, shapes: Mapping[str, Shape]) -> list[str]:
    """Every way in which a checkpoint's names and shapes differ from what its config asks for; empty when none."""
    expected = tensor_shapes(config.with_head_width_of(shapes))
    mixed_up, explained = _mix_ups(config, shapes)
    missing = [name for name in expected if name not in shapes and not name.startswith(explained)]
    unexpected = [name for name in shapes if name not in expected and not name.startswith(explained)]
    misshapen = [
        f"{name} is {tuple(shapes[name])}, expected {shape}"
        for name, shape in expected.items()
        if name in shapes and tuple(shapes[name]) != shape
    ]
    differing = (("missing", missing), ("unexpected", unexpected), ("of wrong shape", misshapen))
    return mixed_up + [phrase for what, names in differing for phrase in listed(what, names)]


def _mix_ups(config: U1Config, shapes: Mapping[str, Shape]) -> tuple[list[str], tuple[str, ...]]:
    """Weights of one kind beside the config of another, said plainly, and the prefixes of names this explains."""
    pixel_head = f"{FM_HEAD}.conv1.weight" in shapes
    mlp_head = f"{FM_HEAD}.0.weight" in shapes
    advice = "take the config.json that belongs to these weights"
    if config.pixel_head and mlp_head and not pixel_head:
        text = f"the weights have U1's head but config.json says U1.5 (use_pixel_head is true): {advice}"
    elif not config.pixel_head and pixel_head and not mlp_head:
        text = f"the weights have U1.5's head but config.json says U1 (use_pixel_head is not true): {advice}"
    else:
        return [], ()
    return [text], (f"{FM_HEAD}.",)


def _check_dtypes(tensors: Mapping[str, TensorEntry]) -> list[str]:
    wrong = [
        f"{name} is {DTYPE_NAMES[entry.dtype]}"
        for name, entry in tensors.items()
        if entry.dtype not in SUPPORTED_DTYPES
    ]
    supported = ", ".join(DTYPE_NAMES[dtype] for dtype in SUPPORTED_DTYPES)
    return listed(f"of an unsupported dtype (supported: {supported})", wrong)


def listed(what: str, items: Sequence[str]) -> list[str]:
    """One phrase for many like problems: "384 tensors missing, e.g. a, b, c"."""
    if not items:
        return []
    noun = "tensor" if len(items) == 1 else "tensors"
    shown = ", ".join(items[:3])
    return [f"{len(items)} {noun} {what}{':' if len(items) <= 3 else ', e.g.'} {shown}"]


def _weight_files(path: Path) -> tuple[list[Path], list[str]]:
    """The .safetensors files of a checkpoint, and what is wrong with the set of them."""
    if path.is_file():
        return [_single_file(path)], []
    if not path.is_dir():
        raise U1Error(f"{path}: there is no such folder or file")
    if (path / INDEX).is_file():
        named, problems = _files_of_index(path / INDEX), []
    elif (path / "model.safetensors").is_file():
        return [path / "model.safetensors"], []
    else:
        named = sorted(path.glob("model*.safetensors")) or sorted(path.glob("*.safetensors"))
        problems = _missing_from_numbering(named)
    if not named:
        raise U1Error(f"{path}: {_why_no_weights(path)}")
    problems += [f"{file.name} is missing (the index names it)" for file in named if not file.is_file()]
    return [file for file in named if file.is_file()], problems


def _single_file(path: Path) -> Path:
    if path.suffix.lower() in PICKLES:
        raise U1Error(f"{path}: {_pickle_reason(path.suffix)}")
    if path.suffix.lower() == GGUF:
        raise U1Error(f"{path}: a {GGUF} file is for sampling; give the model's folder or .safetensors file here")
    if path.suffix.lower() != ".safetensors":
        raise U1Error(f"{path}: a model is a folder or a .safetensors file; give the folder that holds this file")
    if shard := _SHARD.fullmatch(path.name):
        raise U1Error(f"{path}: this is one of {int(shard[3])} shards; give the folder that holds them")
    return path


def _files_of_index(index: Path) -> list[Path]:
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as problem:
        raise U1Error(f"{index}: cannot be read as an index of shards ({problem!r})") from None
    for name in names:
        if not isinstance(name, str) or Path(name).name != name:
            raise U1Error(f"{index}: weight_map names {name!r}, which is not a file of this folder")
        if not name.endswith(".safetensors"):
            raise U1Error(f"{index}: weight_map names {name!r}: {_pickle_reason(Path(name).suffix)}")
    return [index.parent / name for name in sorted(names)]


def _missing_from_numbering(files: Iterable[Path]) -> list[str]:
    """Shards that the others' names (…-00001-of-00004) say there should be."""
    names = {file.name for file in files}
    due = {
        f"{shard[1]}-{number:0{len(shard[2])}}-of-{shard[3]}.safetensors"
        for shard in map(_SHARD.fullmatch, names)
        if shard and len(shard[3]) <= 5
        for number in range(1, int(shard[3]) + 1)
    }
    lacking = sorted(due - names)
    if len(lacking) > 3:
        return [f"{len(lacking)} shards are missing, e.g. {', '.join(lacking[:3])}"]
    return [f"{name} is missing (the other shards' names tell of it)" for name in lacking]


def _why_no_weights(folder: Path) -> str:
    ggufs = sorted(folder.glob(f"*{GGUF}"))
    if ggufs:
        return f"there are no .safetensors files in this folder; to sample from a {GGUF} file, give it: {ggufs[0]}"
    pickles = sorted(file.name for file in folder.iterdir() if file.suffix.lower() in PICKLES)
    if not pickles:
        return "there are no .safetensors files in this folder"
    return f"only {pickles[0]} and the like are here; {_pickle_reason(Path(pickles[0]).suffix)}"


def _pickle_reason(suffix: str) -> str:
    return f"{suffix} files are not read, as loading one can run any program in it; use the .safetensors form"


def _read_headers(files: Iterable[Path], problems: list[str]) -> list[Header]:
    headers = []
    for file in files:
        try:
            headers.append(read_header(file))
        except U1Error as problem:
            problems.append(str(problem))
    return headers


def _by_model_name(headers: Sequence[Header], problems: list[str]) -> dict[str, TensorEntry]:
    """All files' tensors by the model's names: without the prefix, if every key has the same one."""
    entries = [entry for header in headers for entry in header.tensors.values()]
    prefix = shared_prefix(entry.key for entry in entries)
    copies = Counter(entry.key for entry in entries)
    problems += listed("there twice", [key for key, count in copies.items() if count > 1])
    return {entry.key.removeprefix(prefix): entry for entry in entries}
