"""What a run was made with and from: versions, hardware, and hashes of model, pictures and captions."""

import hashlib
import importlib.metadata
import json
import platform
import re
from pathlib import Path
from typing import Any

import torch

from u1_core import __version__
from u1_core.data.dataset import Dataset, FolderDataset
from u1_core.session import Session
from u1_core.weights.write import replacing

PACKAGES = ("torch", "safetensors", "transformers", "tokenizers", "pillow", "numpy", "pyyaml", "bitsandbytes")
_BLOB = re.compile(r"[0-9a-f]{64}")


def data_hashes(dataset: Dataset) -> dict[str, str]:
    """File -> SHA-256: of the pictures, captions and masks of a folder, or of the files of a table."""
    if isinstance(dataset, FolderDataset):
        files = {
            path for sample in dataset for path in (sample.path, sample.path.with_suffix(".txt"), sample.mask) if path
        }
    else:
        files = {path for path in (dataset.source, *dataset.source.rglob("*")) if path.is_file()}
    root = dataset.source if dataset.source.is_dir() else dataset.source.parent
    return {path.relative_to(root).as_posix(): _sha256(path) for path in sorted(files)}


def fingerprint(hashes: dict[str, str]) -> str:
    """16 hex digits for all of them together."""
    return hashlib.sha256(json.dumps(hashes, sort_keys=True).encode()).hexdigest()[:16]


def write_manifest(path: Path, session: Session, hashes: dict[str, str], optimizer: str) -> None:
    """Write manifest.json. A model file's SHA-256 is told where the hub's cache knows it; `fingerprint` is of samples
    of all files, as reading 35 GB would keep the run waiting."""
    cuda = session.device.type == "cuda"
    files = sorted({entry.file for entry in session.snapshot.tensors.values()})
    facts: dict[str, Any] = {
        "versions": {"u1_core": __version__, "python": platform.python_version(), **_packages()},
        "hardware": {
            "system": platform.platform(),
            "device": torch.cuda.get_device_name(session.device) if cuda else platform.processor() or "cpu",
            "device_bytes": torch.cuda.get_device_properties(session.device).total_memory if cuda else None,
            "threads": torch.get_num_threads(),
        },
        "model": {
            "kind": session.config.kind,
            "fingerprint": session.snapshot.fingerprint(),
            "files": {file.name: {"bytes": file.stat().st_size, "sha256": _known_sha256(file)} for file in files},
        },
        "optimizer": optimizer,
        "data": {"fingerprint": fingerprint(hashes), "files": hashes},
    }
    with replacing(path, overwrite=True) as file:
        file.write(json.dumps(facts, indent=1, ensure_ascii=False).encode("utf-8"))


def _packages() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _known_sha256(file: Path) -> str | None:
    """The hub's cache names a file's content by its hash."""
    name = file.resolve().name
    return name if _BLOB.fullmatch(name) else None
