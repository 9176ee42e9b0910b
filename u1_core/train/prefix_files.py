"""Prefix K/V in files, bit for bit: the disk's share of keeping what is dear to build."""

import json
from collections.abc import Sequence
from pathlib import Path

from safetensors import SafetensorError, safe_open

from u1_core.model.views import KVChunk, PrefixKV
from u1_core.weights.write import write_safetensors

LAYOUT = "u1.prefixes"
"""Metadata key: for each prefix, the numbers of its chunks and its next t, as JSON."""


def write_prefixes(path: Path, prefixes: Sequence[PrefixKV]) -> None:
    """Write them into one file; a chunk that several share is written once. Raises U1Error if the disk will not."""
    chunks = list({id(chunk): chunk for prefix in prefixes for chunk in prefix.chunks}.values())
    number = {id(chunk): i for i, chunk in enumerate(chunks)}
    layout = [([number[id(chunk)] for chunk in prefix.chunks], prefix.next_t) for prefix in prefixes]
    tensors = {f"{i}.{name}": getattr(chunk, name) for i, chunk in enumerate(chunks) for name in ("k", "v")}
    write_safetensors(path, tensors, {LAYOUT: json.dumps(layout)}, overwrite=True)


def read_prefixes(path: Path) -> list[PrefixKV] | None:
    """The prefixes of a file, on the CPU, sharing what they shared; None if there is none that can be read."""
    try:
        with safe_open(str(path), framework="pt", device="cpu") as file:
            layout = json.loads(file.metadata()[LAYOUT])
            numbers = sorted({number for chunks, _ in layout for number in chunks})
            chunks = {i: KVChunk(file.get_tensor(f"{i}.k").clone(), file.get_tensor(f"{i}.v").clone()) for i in numbers}
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        return None
    return [PrefixKV(tuple(chunks[i] for i in members), next_t) for members, next_t in layout]
