"""Loss curves of the same run within several budgets: a plan changes what a step costs, and never what it computes.

A model of a few layers of U1-8B's width, with random weights, is trained on made-up pictures by the ordinary loop, once
for each of five budgets. They are named for those of a full-size model and lie between all streamed with nothing kept
and all resident with everything kept, so that every plan differs. One more run has its memory cut to the smallest of
them in the middle, so that it really runs out. Two runs of one seed tell the noise of the card's arithmetic, a run of
another seed that of training. Prints a table and, with --json and --png, writes the curves and a picture of them.

On a CPU, whose memory nobody plans, the same is done with five plans from all resident to all streamed.
"""

import argparse
import gc
import json
import math
import statistics
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from work import machine

from u1_core.jobs import Event, Job
from u1_core.model.stack import Keep
from u1_core.plan.budget import Budget, enforce
from u1_core.plan.machine import model_here
from u1_core.plan.plan import RUNGS, Cost, Plan
from u1_core.plan.planner import least_plan
from u1_core.released import RELEASED
from u1_core.session import Session
from u1_core.train.loop import train
from u1_core.train.recipe import Data, Previews, Recipe, Runtime, Train, Validation
from u1_core.train.step import Trainer
from u1_core.train.work import training_work
from u1_core.weights.placement import Placement
from u1_core.weights.random_model import write_random_snapshot
from u1_core.weights.tiny import TINY_VOCABULARY, tiny_config, write_tiny_model, write_tiny_tokenizer

SHARES = {"32": 1.0, "24": 0.6, "16": 0.35, "12": 0.15, "8": 0.0}
"""Budget of a full-size model -> where between the least and the most that this model's step can use it lies."""
MARGIN = 1.08
"""Above what is predicted: as near as predictions are meant to be."""
PROMPT_TOKENS = 320
SMOOTHED_OVER = 15

Limit = Budget | Plan
"""What a run is to keep to: the plan itself on a CPU."""
Curve = list[float]
"""Mean loss of each step's pictures."""


def main() -> None:
    args = _arguments()
    device = torch.device(args.device)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _write_model(folder / "model", args, device)
        _write_pictures(folder / "pictures", args)
        recipe = _recipe(folder, args)
        limits = _limits(folder / "model", recipe, args, device)
        first, *_, last = limits
        other = replace(recipe, train=replace(recipe.train, seed=recipe.train.seed + 1))
        kinds = {f"budget {name}": (recipe, limit, None) for name, limit in limits.items()}
        kinds["again"] = (recipe, limits[first], None)
        kinds["memory cut"] = (recipe, limits[first], (args.steps // 3, limits[last]))
        kinds["another seed"] = (other, limits[first], None)
        found = {"machine": machine(device) if device.type == "cuda" else "CPU", "about": _about(args), "runs": {}}
        for name in (name for name in kinds if name in args.runs or not args.runs):
            found["runs"][name] = _run(*kinds[name], name)
            if args.json:
                args.json.write_text(json.dumps(found), encoding="utf-8")
    print(f"{found['machine']}; {found['about']}\n{_table(found['runs'])}")
    if args.png:
        draw(found, args.png)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=8, help="of U1-8B's width; 0 is the tiny model")
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--pictures", type=int, default=24)
    parser.add_argument("--accumulated", type=int, default=2)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--runs", nargs="*", help="names of the runs to make (default: all)")
    parser.add_argument("--json", type=Path, help="write the curves here")
    parser.add_argument("--png", type=Path, help="draw them here; needs matplotlib")
    return parser.parse_args()


def _about(args: argparse.Namespace) -> str:
    model = f"{args.layers} layers of width 4096" if args.layers else "the tiny model"
    return (
        f"{model}, {args.pictures} pictures of {args.size}x{args.size}, {args.accumulated} a step, {args.steps} steps "
        "of the default recipe at learning rate 2e-4"
    )


def _write_model(folder: Path, args: argparse.Namespace, device: torch.device) -> None:
    if not args.layers:
        write_tiny_model(folder)
        return
    tiny = tiny_config()
    real = RELEASED["U1-8B"]
    llm = {**tiny["llm_config"], **real["llm_config"], "num_hidden_layers": args.layers, "vocab_size": TINY_VOCABULARY}
    vision = {**tiny["vision_config"], **real["vision_config"], "llm_hidden_size": llm["hidden_size"]}
    config = {**tiny, "patch_size": real["patch_size"], "llm_config": llm, "vision_config": vision}
    write_random_snapshot(folder, config, device=device)
    write_tiny_tokenizer(folder)


def _write_pictures(folder: Path, args: argparse.Namespace) -> None:
    """Soft blocks of few colours, as a style has; each with a caption."""
    folder.mkdir()
    numbers = np.random.default_rng(0)
    palette = numbers.integers(0, 256, (5, 3), dtype=np.uint8)
    for index in range(args.pictures):
        blocks = Image.fromarray(palette[numbers.integers(0, len(palette), (4, 4))])
        blocks.resize((args.size, args.size), Image.Resampling.BICUBIC).save(folder / f"{index:02}.png")
        (folder / f"{index:02}.txt").write_text(f"blocks of colour, number {index}", encoding="utf-8")


def _recipe(folder: Path, args: argparse.Namespace) -> Recipe:
    return Recipe(
        model=str(folder / "model"),
        data=Data(data_dir=str(folder / "pictures"), cap_max_pixels=args.size**2),
        train=Train(steps=args.steps, lr=2e-4, grad_accum=args.accumulated, checkpoint_every=0, checkpoint_minutes=0),
        runtime=Runtime(out_dir=str(folder / "runs"), device=args.device, prefix_dir=str(folder / "prefixes")),
        validation=Validation(every=0),
        previews=Previews(every=0),
    )


def _limits(model: Path, recipe: Recipe, args: argparse.Namespace, device: torch.device) -> dict[str, Limit]:
    session = Session.open(model, args.device)
    if device.type == "cpu":
        return {name: _plan(session.config.layers, args.accumulated, share) for name, share in SHARES.items()}
    config, size = session.config, (args.size, args.size)
    costs = model_here(device, training_work(config, recipe, size, PROMPT_TOKENS, device, session.dtype))
    everywhere = Placement(frozenset(range(config.layers)))
    least = least_plan(costs).peak_bytes
    most = costs.predict(everywhere, (Keep.ALL,) * config.layers, args.accumulated).peak_bytes
    return {name: Budget("", int(MARGIN * (least + share * (most - least)))) for name, share in SHARES.items()}


def _plan(layers: int, accumulated: int, share: float) -> Plan:
    """Between all streamed with nothing kept and all resident with everything kept, all micro-batches together."""
    placement = Placement.spread(layers, round(share * layers), slots=2 if share else 1)
    keep, together = RUNGS[round(share * (len(RUNGS) - 1))], max(1, math.ceil(share * accumulated))
    return Plan.of(placement, (keep,) * layers, together, lambda *_: Cost(1, 1.0))


def _run(recipe: Recipe, limit: Limit, cut: tuple[int, Limit] | None, name: str) -> dict[str, Any]:
    """Train to the end within a limit, which `cut` (a step, a limit) makes smaller on the way."""
    planned = isinstance(limit, Plan)
    within = {"placement": limit.placement} if planned else {"budget": limit}
    session = Session.open(recipe.model, recipe.runtime.device, **within)
    device = session.device
    recipe = replace(recipe, run_name=name.replace(" ", "_"))
    told: dict[str, list[dict[str, Any]]] = {"plan": [], "out_of_memory": []}
    trainers: list[Trainer] = []

    def keep_to(limit: Limit) -> None:
        if planned:
            trainers[0].plan = replace(limit, placement=trainers[0].plan.placement)
        else:
            enforce(limit, device)
            torch.cuda.empty_cache()  # what is cached would do for all steps to come

    def begin(trainer: Trainer, _: Path) -> None:
        trainers.append(trainer)
        trainer.plan = limit if planned else trainer.plan

    def watch(event: Event) -> None:
        if event.kind in told:
            told[event.kind].append(event.data)
        if cut and event.kind == "step" and event.data["step"] == cut[0]:
            keep_to(cut[1])

    if not planned:
        enforce(limit, device)
    job = Job(partial(train, session=session, recipe=recipe, begun=begin))
    job.subscribe(watch)
    job.start().wait()
    if job.error:
        raise job.error
    if device.type == "cuda":
        torch.cuda.set_per_process_memory_fraction(1.0)
    records = _read_log(Path(recipe.runtime.out_dir) / recipe.run_name / "log.jsonl")
    found = {
        "budget": "" if planned else str(limit),
        "plans": told["plan"],
        "ran_out": [each["given_up"] for each in told["out_of_memory"]],
    }
    found |= _summary(records)
    print(name, json.dumps({key: value for key, value in found.items() if key != "losses"}), flush=True)
    del session, job, trainers[:]
    gc.collect()
    torch.cuda.empty_cache()
    return found


def _read_log(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _summary(records: list[dict[str, Any]]) -> dict[str, Any]:
    pictures = [record for record in records if "event" not in record]
    by_step: dict[int, list[float]] = {}
    for record in pictures:
        by_step.setdefault(record["step"], []).append(record["loss"])
    losses = [statistics.fmean(values) for _, values in sorted(by_step.items())]
    return {
        "losses": losses,
        "seconds": statistics.median(record["seconds"] for record in pictures),
        "reserved_gib": max((record["reserved_bytes"] or 0) for record in pictures) / 2**30,
    }


def _table(runs: dict[str, dict[str, Any]]) -> str:
    """Each run beside the first: its plan, and how far its losses are from the first's, step by step."""
    lines = [
        "| run | budget | layers resident | kept | together | s a step | GiB reserved | loss, last tenth | "
        "difference, mean | at most | ran out |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    reference = next(iter(runs.values()))["losses"]
    for name, run in runs.items():
        plan = run["plans"][0] if run["plans"] else {"resident": "", "kept": {}, "together": ""}
        kept = ", ".join(f"{count} {rung}" for rung, count in plan["kept"].items())
        differences = [abs(ours / theirs - 1) for ours, theirs in zip(run["losses"], reference, strict=True)]
        last = statistics.fmean(run["losses"][-max(1, len(reference) // 10) :])
        lines.append(
            f"| {name} | {run['budget']} | {plan['resident']} | {kept} | {plan['together']} | {run['seconds']:.3f} | "
            f"{run['reserved_gib']:.2f} | {last:.5f} | {statistics.fmean(differences):.2e} | {max(differences):.2e} | "
            f"{len(run['ran_out']) or ''} |"
        )
    return "\n".join(lines)


def draw(found: dict[str, Any], path: Path) -> None:
    """The smoothed curves, one on the other, and below how far each is from the first."""
    from matplotlib import pyplot

    figure, (above, below) = pyplot.subplots(2, 1, figsize=(9, 6.5), sharex=True, height_ratios=(2, 1))
    runs = found["runs"]
    reference = _smoothed(next(iter(runs.values()))["losses"])
    for name, run in runs.items():
        curve = _smoothed(run["losses"])
        style = {"color": "0.7", "zorder": 0} if name == "another seed" else {}
        above.plot(curve, label=name, linewidth=1.2, **style)
        below.plot(np.maximum(np.abs(curve / reference - 1), 1e-9), linewidth=1.0, **style)
    above.set_ylabel(f"loss, mean of {SMOOTHED_OVER} steps")
    above.legend(ncols=2, fontsize=8)
    below.set_ylabel("difference from the first")
    below.set_yscale("log")
    below.set_xlabel("step")
    figure.text(0.01, 0.005, f"{found['machine']}; {found['about']}", fontsize=6)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def _smoothed(losses: Curve) -> np.ndarray:
    return np.convolve(losses, np.ones(SMOOTHED_OVER) / SMOOTHED_OVER, mode="valid")


if __name__ == "__main__":
    main()
