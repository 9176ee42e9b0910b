"""What benchmarks need on disk: a full-size model with random weights in its published form, and captioned pictures."""

import argparse
import itertools
import json
import os
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from u1_core.model.config import Shape, U1Config, tensor_shapes
from u1_core.released import RELEASED
from u1_core.weights.random_model import RandomWeights
from u1_core.weights.snapshot import INDEX
from u1_core.weights.write import SHARD_BYTES, write_safetensors

WRITERS = 4
WORDS = "amber birch cloud dune ember fjord grove heron island jetty kelp lagoon meadow night ocean pine quarry river"


def model_options(made: argparse.ArgumentParser, budget: str) -> None:
    """Where the model is, and what of the card may be taken."""
    made.add_argument("--model", type=Path, required=True, help="folder of the model")
    made.add_argument("--tokenizer", type=Path, help="folder of the tokenizer's files, to write the model with")
    made.add_argument("--budget", default=budget, help=f"what may be taken of the card's memory (default {budget})")


def have_model(args: argparse.Namespace) -> None:
    """Write the model if there is none."""
    if not args.model.exists():
        print(f"model written in {write_model(args.model, args.tokenizer, args.device):.1f} s", flush=True)


def write_model(folder: Path, tokenizer: Path, device: str) -> float:
    """U1-8B in bf16 shards with its index, the weights made on `device`; returns the seconds it took."""
    started, raw = time.perf_counter(), RELEASED["U1-8B"]
    config = U1Config.from_dict(raw)
    folder.mkdir(parents=True)
    shutil.copytree(tokenizer, folder, dirs_exist_ok=True)
    (folder / "config.json").write_text(json.dumps(raw), encoding="utf-8")
    source, shards = RandomWeights(config, device=device), list(_cut(tensor_shapes(config)))
    paths = [folder / f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]

    def write(path: Path, names: list[str]) -> None:
        write_safetensors(path, {name: source.read(name).to(torch.bfloat16).cpu() for name in names}, {"format": "pt"})

    with ThreadPoolExecutor(WRITERS) as writers:
        list(writers.map(write, paths, shards))
    weight_map = {name: path.name for path, names in zip(paths, shards, strict=True) for name in names}
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}), encoding="utf-8")
    torch.cuda.empty_cache()  # what is measured next finds the card as empty as if the model had been there
    return time.perf_counter() - started


def write_pictures(folder: Path, count: int, pixels: int) -> None:
    """Soft pictures of `pixels` x `pixels` as JPEG, each with a caption of its own of some 30 tokens."""
    folder.mkdir(parents=True)
    numbers, words = np.random.default_rng(0), WORDS.split()
    for index in range(count):
        cells = Image.fromarray(numbers.integers(0, 256, (24, 24, 3), dtype=np.uint8))
        cells.resize((pixels, pixels), Image.Resampling.BICUBIC).save(folder / f"{index:03}.jpg", quality=90)
        caption = f"picture {index}: " + ", ".join(words[number] for number in numbers.permutation(len(words))[:11])
        (folder / f"{index:03}.txt").write_text(caption, encoding="utf-8")


def forget_files(folder: Path) -> bool:
    """Have this folder's files be read from the disk again; False where the system offers no such thing."""
    if not hasattr(os, "posix_fadvise"):
        return False
    os.sync()  # only what has been written can be forgotten
    for path in filter(Path.is_file, folder.rglob("*")):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return True


def forget_all_files() -> bool:
    """The same of all files there are, Python's among them; False where the system does not let us (it takes root on
    Linux)."""
    os.sync()
    try:
        Path("/proc/sys/vm/drop_caches").write_text("3", encoding="ascii")
    except OSError:
        return False
    return True


def _cut(shapes: dict[str, Shape]) -> Iterator[list[str]]:
    """The tensors in order of their names, as published checkpoints have them, in shards of at most 5 GB."""
    sizes = {name: 2 * int(np.prod(shape)) for name, shape in sorted(shapes.items())}
    ends = itertools.accumulate(sizes.values())
    numbered = zip(sizes, (end // SHARD_BYTES for end in ends), strict=True)
    for _, group in itertools.groupby(numbered, key=lambda pair: pair[1]):
        yield [name for name, _ in group]
