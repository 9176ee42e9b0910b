"""Memory that a large parquet costs beyond a small one: both are trained on, each in a process of its own.

    python benchmarks/data_memory.py [--rows 200000] [--steps 100] [--turns 20000] [--group 1000]

Rows are small pictures with captions of their own, the model is a tiny random U1, everything else is the default.
After the steps, so many more turns are drawn without the model's pass: pictures decoded, prefixes built. Prints each
process's peak of resident memory, as Linux counts it.
"""

import argparse
import io
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import torch
from PIL import Image

from u1_core.jobs import Job
from u1_core.session import Session
from u1_core.train.prepare import prepare
from u1_core.train.recipe import Data, Recipe, Runtime, Style, Train
from u1_core.train.turn import draw_turn
from u1_core.weights.tiny import write_tiny_model

SMALL = 200
PICTURES = 500
"""Different ones; captions and ids are all different."""


def write_rows(path: Path, rows: int, group: int) -> None:
    numbers = np.random.default_rng(0)
    pictures = []
    for _ in range(PICTURES):
        file = io.BytesIO()
        Image.fromarray(numbers.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(file, "JPEG", quality=90)
        pictures.append(file.getvalue())
    schema = pyarrow.schema([("sample_id", "string"), ("caption", "string"), ("image", "binary")])
    with pyarrow.parquet.ParquetWriter(path, schema) as writer:
        for start in range(0, rows, group):
            ids = range(start, min(rows, start + group))
            columns = {
                "sample_id": [f"row-{i}" for i in ids],
                "caption": [
                    f"a scene with {i} things of kind {i * 7919 % 1009}, seen at {i % 24} o'clock" for i in ids
                ],
                "image": [pictures[i % PICTURES] for i in ids],
            }
            writer.write_table(pyarrow.table(columns, schema), row_group_size=group)


def peak_mb() -> float:
    """The most that has been resident of this process. (ru_maxrss would count its parent's memory at the fork.)"""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def train(table: Path, model: Path, steps: int, turns: int) -> None:
    """One process's work. Prints what it took as JSON."""
    torch.set_num_threads(1)
    recipe = Recipe(
        data=Data(data_dir=str(table), cap_max_pixels=64 * 64),
        style=Style(trigger="sty"),
        train=Train(steps=steps),
        runtime=Runtime(device="cpu"),
    )
    started = time.perf_counter()
    trainer = prepare(Job(print), Session.open(model, "cpu"), recipe)
    prepared = time.perf_counter()
    for step in range(1, steps + 1):
        trainer.step(step)
    stepped = time.perf_counter()
    for draw in range(steps, steps + turns):
        draw_turn(trainer.config, recipe.train, trainer.data, draw)
    facts = {
        "peak_mb": peak_mb(),
        "prepare_s": prepared - started,
        "step_s": (stepped - prepared) / max(1, steps),
        "turn_s": (time.perf_counter() - stepped) / max(1, turns),
        "prefixes_mb": trainer.data.prefixes.n_bytes / 1e6,
    }
    print(json.dumps({name: round(value, 4) for name, value in facts.items()}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--turns", type=int, default=20_000)
    parser.add_argument("--group", type=int, default=1000, help="rows in a row group")
    parser.add_argument("--train", nargs=2, type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.train:
        train(*args.train, args.steps, args.turns)
        return
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model"
        write_tiny_model(model, "u1")
        peaks = []
        for rows in (SMALL, args.rows):
            table = Path(folder) / f"{rows}.parquet"
            write_rows(table, rows, args.group)
            options = ["--steps", str(args.steps), "--turns", str(args.turns), "--train", str(table), str(model)]
            done = subprocess.run([sys.executable, __file__, *options], capture_output=True, text=True, check=True)
            facts = json.loads(done.stdout)
            peaks.append(facts["peak_mb"])
            print(f"{rows:>9,} rows, {table.stat().st_size / 1e6:.0f} MB: {facts}", flush=True)
        print(f"the larger takes {peaks[1] - peaks[0]:.0f} MB more")


if __name__ == "__main__":
    main()
