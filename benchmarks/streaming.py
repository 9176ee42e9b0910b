"""Full-size U1 with its layers streamed from host memory, against the same with all of them resident.

A sampling step at cfg 4, a training step on each rung of the ladder, and four small pictures accumulated. The weights
are random. Figures are medians over the counted repeats after a warm-up, printed as a Markdown table and, with --json
FILE, written with how the host memory was taken.
"""

import json
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch
from work import PREFIX_TOKENS, Row, Training, machine, measure, model_config, parser, placed, sampling_step, table

from u1_core.model.config import GENERATION, U1Config
from u1_core.model.stack import Keep
from u1_core.model.views import Generation
from u1_core.train.recipe import Recipe
from u1_core.weights.arena import Arena
from u1_core.weights.placement import Placement
from u1_core.weights.random_model import RandomWeights
from u1_core.weights.store import load_generation

SMALL = 1024
ACCUMULATED = 4


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--slots", type=int, nargs="*", default=[3], help="all but the first: only fully streamed")
    options.add_argument("--streamed-only", action="store_true", help="leave out what is resident, and rungs but one")
    args = options.parse_args()
    device, config = torch.device(args.device), model_config(args)
    source = RandomWeights(config, device=device)
    # All that is not in the layers; these come from the arena below.
    ends = load_generation(source, device, torch.bfloat16, resident=False)
    before = host_bytes()
    arena = Arena(config, GENERATION, range(config.layers), torch.bfloat16)
    host = {"arena_gib": arena.n_bytes / 2**30, "fill_s": timed(lambda: arena.fill(source))}
    first, *others = args.slots
    rows = {}

    def add(name: str, resident: int, slots: int, everything: bool = False) -> None:
        with placed(arena, Placement.spread(config.layers, resident, slots), device) as layers:
            found = measure_placement(config, replace(ends, layers=layers), args, everything)
            for work, row in found:
                rows[f"{work}, {name}"] = row
                print(f"{work}, {name}", row, flush=True)

    add(f"all streamed, {first} slots, pageable memory", 0, first)
    host["pin_s"] = timed(lambda: arena.fill(Filled(config), pin=True))
    host |= {"pinned_layers": len(arena.pinned), "resident_gib": (host_bytes() - before) / 2**30}
    for slots in others:
        add(f"all streamed, {slots} slots", 0, slots)
    add(f"all streamed, {first} slots", 0, first, not args.streamed_only)
    if not args.streamed_only:
        add(f"{config.layers // 2} resident, {first} slots", config.layers // 2, first)
        add("all resident", config.layers, first, everything=True)
    host["given_back_gib"] = give_back(arena)
    print(f"\n{machine(device)}, {args.width}x{args.height}, prefix of {PREFIX_TOKENS} tokens")
    print(table(rows))
    print(json.dumps(host))
    if args.json:
        found = {"machine": machine(device), "host": host, "rows": rows}
        args.json.write_text(json.dumps(found, indent=1), encoding="utf-8")


def measure_placement(
    config: U1Config, weights: Generation, args: Namespace, everything: bool
) -> Iterator[tuple[str, Row]]:
    """Sampling, then training, so that the first does not hold what is trained."""
    device = weights.norm.device
    yield "sampling, cfg 4", measure(sampling_step(config, weights, args.width, args.height), args, device)
    training = Training.create(config, weights, Recipe())
    for work, step in training_steps(config, weights, training, args, everything):
        yield work, measure(step, args, device)


def training_steps(
    config: U1Config, weights: Generation, training: Training, args: Namespace, everything: bool
) -> Iterator[tuple[str, Callable[[], object]]]:
    """A step with all recomputed; of `everything`, the other rungs and small pictures too."""
    device = weights.norm.device
    large = training.passes(1, args.width, args.height, device)
    for keep in Keep if everything else [Keep.INPUT]:
        yield f"training, keeping {keep.value}", lambda keep=keep: training.step(weights, large, [keep] * config.layers)
    if everything:
        small, kept = training.passes(ACCUMULATED, SMALL, SMALL, device), [Keep.INPUT] * config.layers
        size = f"{ACCUMULATED} pictures of {SMALL}x{SMALL}"
        yield f"{size}, layer by layer", lambda: training.step(weights, small, kept)
        yield f"{size}, one by one", lambda: one_by_one(training, weights, small, kept)


def one_by_one(training: Training, weights: Generation, turns: list, kept: list[Keep]) -> None:
    for turn in turns[:-1]:
        training.add_gradients(weights, [turn], kept)
    training.step(weights, turns[-1:], kept)


class Filled:
    """A source that leaves everything as it is: what remains of filling an arena is the page-locking."""

    def __init__(self, config: U1Config) -> None:
        self.config = config

    def read_into(self, name: str, place: torch.Tensor) -> None:
        pass


def give_back(arena: Arena) -> float:
    """Close the arena; how much less of the host's memory this process takes, in GiB."""
    before = host_bytes()
    arena.close()
    return (before - host_bytes()) / 2**30


def host_bytes() -> int:
    """Memory of this process that is really in use, or 0 where /proc does not tell."""
    status = Path("/proc/self/status")
    if not status.is_file():
        return 0
    line = next(line for line in status.read_text(encoding="ascii").splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) * 1024


def timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
