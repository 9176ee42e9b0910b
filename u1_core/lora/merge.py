"""LoRAs written into the weights: a new snapshot folder, made tensor by tensor."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from u1_core.errors import U1Error
from u1_core.lora.adapter import Adapter
from u1_core.lora.full import refuse_twice, toward_full
from u1_core.lora.kinds import BASE_KIND
from u1_core.weights.download import SOURCE_FILE
from u1_core.weights.header import TensorEntry
from u1_core.weights.snapshot import INDEX, PICKLES, Snapshot
from u1_core.weights.write import SHARD_BYTES, SafetensorsWriter

MERGED = "u1.merged_loras"
"""Metadata key of a merged snapshot: a JSON list of [LoRA file's name, strength]."""

_WEIGHT_FILES = (".safetensors", ".gguf", *PICKLES)
_MODEL_FILES = ("config.json", "generation_config.json", "vocab.json", "merges.txt", "added_tokens.json")
_MODEL_FILES += ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")


@torch.no_grad()
def merge_loras(
    snapshot: Snapshot,
    adapters: Sequence[Adapter],
    out: Path,
    dtype: torch.dtype | None = None,
    shard_bytes: int = SHARD_BYTES,
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Write `snapshot` with every adapter added at its strength to the folder `out`; -> how many tensors changed.

    A tensor becomes base + Σ strength * (alpha / rank * up @ down) + Σ strength * (full - base), summed in fp32 and
    rounded once: to `dtype`, or to its own where that is None. One tensor is in memory at a time. Config, tokenizer and
    the like are copied. `progress` is called with (bytes done, bytes in all). Raises U1Error for a LoRA that does not
    fit, and for a folder that has anything in it; `out` appears only when it is whole.
    """
    refuse_twice(adapters)
    for adapter in adapters:
        adapter.check(snapshot.config, live=False)
    # In the order in which they lie on disk, so that it is read straight through.
    entries = dict(sorted(snapshot.tensors.items(), key=lambda item: (item[1].file.name, item[1].start)))
    specs = {name: (dtype or entry.dtype, entry.shape) for name, entry in entries.items()}
    merged = json.dumps([[adapter.name, adapter.strength] for adapter in adapters])
    metadata = {"format": "pt", BASE_KIND: snapshot.kind, MERGED: merged}
    done, changed = 0, 0
    with SafetensorsWriter(out, specs, metadata, shard_bytes) as writer:
        _copy_other_files(snapshot, writer.folder)
        for name, entry in entries.items():
            base = _read_apart(entry)
            tensor = merged_tensor(name, base, adapters)
            changed += tensor is not base
            writer.write(name, rounded(name, tensor, dtype or entry.dtype))
            done += entry.n_bytes
            if progress:
                progress(done, snapshot.total_bytes)
    return changed


def merged_tensor(name: str, base: Tensor, adapters: Sequence[Adapter]) -> Tensor:
    """`base` itself if nothing touches it, else fp32: base + every adapter's share."""
    module_path, weight = name.removesuffix(".weight"), base
    for adapter in adapters:
        if not adapter.strength:
            continue
        if name in adapter.full:
            so_far = None if weight is base else weight
            weight = toward_full(so_far, base, adapter.full[name], adapter.strength)
        if name.endswith(".weight") and module_path in adapter.modules:
            delta = adapter.modules[module_path].delta().view(base.shape)
            weight = delta.mul_(adapter.strength).add_(weight)
    return weight


def _read_apart(entry: TensorEntry) -> Tensor:
    """One tensor through a mapping of its own, so that the pages read go when the tensor does."""
    try:
        with safe_open(str(entry.file), framework="pt", device="cpu") as file:
            return file.get_tensor(entry.key)
    except (SafetensorError, OSError) as problem:
        raise U1Error(f"{entry.file}: cannot read {entry.key} ({problem})") from None


def rounded(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """A merged tensor in `dtype`. Raises U1Error if that cannot hold its numbers."""
    result = tensor.to(dtype)
    if result is not tensor and not result.isfinite().all():
        raise U1Error(f"merging: {name} does not fit into {str(dtype).removeprefix('torch.')}; choose another --dtype")
    return result


def _copy_other_files(snapshot: Snapshot, folder: Path) -> None:
    """Everything of the model but its weights and the note where it came from, which is no longer true."""
    for file in sorted(snapshot.folder.iterdir()):
        other = file.suffix.lower() in _WEIGHT_FILES or file.name in (INDEX, SOURCE_FILE)
        # A single file may lie among other models' files: then only what is known by name is its own.
        if file.is_file() and not other and (snapshot.path.is_dir() or file.name in _MODEL_FILES):
            shutil.copyfile(file, folder / file.name)
