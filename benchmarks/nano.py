"""The demo's style LoRA on U1-nano, measured on more captions and with more seeds: `python -m benchmarks.nano`.

For each seed another set of 24 pictures, other first values, noise and order. The measures are those of
tools/nano/style_measures.py, in 50 steps at cfg 4 and in 8 steps with the 8-step LoRA; a JSON line for each. What the
model itself can do is measured by tools/nano/evaluate.py.
"""

import argparse
import json
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import torch

from tools.nano.style_measures import draw_all, held_out_captions, measure
from tools.nano.style_run import STEPS, STYLE, TRIGGER, eight_step, set_pairs, train_style, write_set
from u1_core.lora.files import read_lora
from u1_core.session import Session
from u1_core.weights.download import resolve_model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--captions", type=int, default=48, help="held out; all are drawn")
    parser.add_argument("--steps", type=int, default=STEPS, help="of the training")
    parser.add_argument("--threads", type=int, help="of the CPU (default: torch's own choice)")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    for seed in args.seeds:
        with tempfile.TemporaryDirectory() as folder:
            run_seed(Path(folder), seed, args.captions, args.steps)


def run_seed(out: Path, seed: int, count: int, steps: int) -> None:
    """Train with this seed and print what comes of it."""
    session = Session.open(resolve_model("nano"), device="cpu")
    training = write_set(out / "pictures", session, STYLE, set_pairs(seed))
    begun = time.monotonic()
    run = train_style(out, STYLE, out / "pictures", TRIGGER, seed, steps)
    row = {"seed": seed, "train_s": round(time.monotonic() - begun, 1)}
    lora, captions = read_lora(run / f"{STYLE}.safetensors").adapter, held_out_captions(count)
    for sampling, cfg, fast in ((50, 4.0, []), (8, 1.0, [eight_step()])):
        drawn = draw_all(session, [lora], TRIGGER, captions, sampling, cfg, fast)
        found = measure(drawn, captions, STYLE, training)
        row[f"{sampling} steps"] = {name: round(value, 3) for name, value in asdict(found).items()}
    print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
