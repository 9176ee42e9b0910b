"""What the planner says of full-size U1-8B at several budgets, and what then comes of it: seconds a step and memory.

Each budget is enforced on the allocator; the peak is what it reserved. The weights are random, training is the default
recipe's. Figures are medians over the counted repeats after a warm-up, printed as a Markdown table.
"""

import gc
import json
import time
from collections.abc import Callable
from dataclasses import replace

import torch
from work import PREFIX_TOKENS, Row, Training, machine, measure, model_config, parser, placed, sampling_step

from u1_core.errors import U1Error
from u1_core.model.config import GENERATION, U1Config
from u1_core.model.views import Generation
from u1_core.plan.budget import GIB, Budget, enforce
from u1_core.plan.machine import model_here
from u1_core.plan.plan import Plan
from u1_core.plan.planner import choose_plan
from u1_core.plan.table import ladder_words
from u1_core.plan.work import SamplingWork, Work
from u1_core.train.recipe import Recipe
from u1_core.train.work import training_work
from u1_core.weights.arena import Arena
from u1_core.weights.random_model import RandomWeights
from u1_core.weights.store import load_generation


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--training", nargs="*", default=["32", "24", "16", "12", "7.2"], help="budgets")
    options.add_argument("--sampling", nargs="*", default=["32", "12", "5"], help="budgets")
    args = options.parse_args()
    device, config = torch.device(args.device), model_config(args)
    source = RandomWeights(config, device=device)
    arena = Arena(config, GENERATION, range(config.layers), torch.bfloat16)
    arena.fill(source, pin=True)
    recipe, size = Recipe(), (args.width, args.height)
    sampling = SamplingWork(
        config=config, dtype=torch.bfloat16, width=size[0], height=size[1], branches=2, prefix_tokens=PREFIX_TOKENS
    )
    training = training_work(config, recipe, size, PREFIX_TOKENS, device)
    rows = {}
    for work, budgets in ((sampling, args.sampling), (training, args.training)):
        started = time.perf_counter()
        base = model_here(device, work)
        print(f"measured in {time.perf_counter() - started:.1f} s: {base.costs}, {base.bus}")
        for budget in map(Budget.parse, budgets):
            name = f"{'sampling, cfg 4' if work is sampling else 'training, batch 1'}, {budget}"
            try:
                rows[name] = measured_row(config, work, arena, budget, args, recipe)
            except (U1Error, torch.OutOfMemoryError) as problem:
                rows[name] = {"problem": str(problem).partition(" GPU 0")[0]}
            print(name, rows[name], flush=True)
    print(f"\n{machine(device)}, {args.width}x{args.height}, prefix of {PREFIX_TOKENS} tokens")
    print(table(rows))
    if args.json:
        args.json.write_text(json.dumps({"machine": machine(device), "rows": rows}, indent=1), encoding="utf-8")


def measured_row(config: U1Config, work: Work, arena: Arena, budget: Budget, args, recipe: Recipe) -> Row:
    """A step as it is planned and as it is."""
    device = torch.device(args.device)
    gc.collect()
    torch.cuda.empty_cache()
    others = torch.cuda.memory_allocated(device)
    model = replace(model_here(device, work), fixed_bytes=model_here(device, work).fixed_bytes + others)
    plan = choose_plan(model, budget, 0)
    enforce(budget, device)
    about = f"{len(plan.placement.resident)} resident, {plan.placement.slots} slots, {ladder_words(plan.kept)}"
    print(f"{budget}: {plan.seconds:.3f} s, {plan.peak_bytes / GIB:.2f} GiB, {about}", flush=True)
    try:
        with placed(arena, plan.placement, device) as layers:
            ends = load_generation(RandomWeights(config, device=device), device, torch.bfloat16, resident=False)
            row = measure(a_step(config, replace(ends, layers=layers), work, plan, recipe), args, device)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device.index or 0)
    return {
        **row,
        "predicted_s": plan.seconds,
        "predicted_gib": plan.peak_bytes / GIB,
        "plan": about,
    }


def a_step(config: U1Config, weights: Generation, work: Work, plan: Plan, recipe: Recipe) -> Callable[[], object]:
    if isinstance(work, SamplingWork):
        return sampling_step(config, weights, work.width, work.height)
    training = Training.create(config, weights, recipe)
    turns = training.passes(1, work.width, work.height, weights.norm.device)
    return lambda: training.step(weights, turns, plan.kept)


def table(rows: dict[str, Row]) -> str:
    """The rows in Markdown."""
    lines = [
        "| work, budget | s per step: predicted | measured | off | GiB reserved: predicted | measured | off | plan |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for work, row in rows.items():
        if "problem" in row:
            lines.append(f"| {work} | {row['problem']} |")
            continue
        seconds, memory = ((row[p], row[m], row[p] / row[m] - 1) for p, m in PAIRS)
        lines.append(
            f"| {work} | {seconds[0]:.3f} | {seconds[1]:.3f} | {seconds[2]:+.1%} "
            f"| {memory[0]:.2f} | {memory[1]:.2f} | {memory[2]:+.1%} | {row['plan']} |"
        )
    return "\n".join(lines)


PAIRS = (("predicted_s", "seconds"), ("predicted_gib", "reserved_gib"))


if __name__ == "__main__":
    main()
