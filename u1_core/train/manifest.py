"""What a run was made with and from: versions, hardware, and hashes of model, pictures and captions."""

import hashlib
import importlib.metadata
import json
import platform
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from u1_core import __version__
from u1_core.data.dataset import Dataset, FolderDataset
from u1_core.errors import U1Error
from u1_core.session import Session
from u1_core.train.file_hashes import FileHashes
from u1_core.weights.write import replacing

PACKAGES = ("torch", "safetensors", "transformers", "tokenizers", "pillow", "numpy", "pyyaml", "bitsandbytes")


def data_hashes(dataset: Dataset, hashes: FileHashes) -> dict[str, str]:
    """File -> SHA-256: of the pictures, captions and masks of a folder, or of the files of a table."""
    if isinstance(dataset, FolderDataset):
        files = {
            path for sample in dataset for path in (sample.path, sample.path.with_suffix(".txt"), sample.mask) if path
        }
    else:
        files = {path for path in (dataset.source, *dataset.source.rglob("*")) if path.is_file()}
    root = dataset.source if dataset.source.is_dir() else dataset.source.parent
    return {path.relative_to(root).as_posix(): hashes.of(path) for path in sorted(files)}


def fingerprint(hashes: dict[str, str]) -> str:
    """16 hex digits for all of them together."""
    return hashlib.sha256(json.dumps(hashes, sort_keys=True).encode()).hexdigest()[:16]


class Manifest:
    """manifest.json of a run. It is there from the start; the model's files are hashed while the run trains."""

    def __init__(self, path: Path, session: Session, hashes: FileHashes, data: dict[str, str], optimizer: str) -> None:
        """Write it with the hashes that are at hand, and begin to read what else there is to hash."""
        self._path, self._hashes = path, hashes
        self._files = sorted({entry.file for entry in session.snapshot.tensors.values()})
        self._facts: dict[str, Any] = {
            "versions": {"u1_core": __version__, "python": platform.python_version(), **_packages()},
            "hardware": _hardware(session.device),
            "model": {
                "kind": session.config.kind,
                "fingerprint": session.snapshot.fingerprint(),
                "files": {
                    file.name: {"bytes": file.stat().st_size, "sha256": hashes.at_hand(file)} for file in self._files
                },
            },
            "optimizer": optimizer,
            "data": {"fingerprint": fingerprint(data), "files": data},
            "plan": {},
        }
        self._write()
        self._thread = threading.Thread(target=self._hash_files, name="u1-hashes", daemon=True)
        self._thread.start()

    def tell_plan(self, plan: dict[str, Any]) -> None:
        """How steps are run, what they were predicted to take, and did take: for when the file is written next."""
        self._facts["plan"] = plan

    def finish(self) -> None:
        """Wait until every file has been hashed, and write it with all of them. Raises U1Error if the disk refuses."""
        self._thread.join()
        self._write()

    def _hash_files(self) -> None:
        for file in self._files:
            told = self._facts["model"]["files"][file.name]
            try:
                told["sha256"] = self._hashes.of(file)
            except U1Error as problem:
                told["not_hashed"] = str(problem)
        try:
            self._write()
        except U1Error:  # `finish` tries again
            return

    def _write(self) -> None:
        with suppress(U1Error):  # it only spares later runs some reading
            self._hashes.save()
        with replacing(self._path, overwrite=True) as file:
            file.write(json.dumps(self._facts, indent=1, ensure_ascii=False).encode("utf-8"))


def _hardware(device: torch.device) -> dict[str, Any]:
    cuda = device.type == "cuda"
    return {
        "system": platform.platform(),
        "device": torch.cuda.get_device_name(device) if cuda else platform.processor() or "cpu",
        "device_bytes": torch.cuda.get_device_properties(device).total_memory if cuda else None,
        "threads": torch.get_num_threads(),
    }


def _packages() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
