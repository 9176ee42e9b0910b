"""`u1 ablate RECIPE --set KEY=A,B …`: a run for every combination of settings, and one report over them."""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from u1_core.cli.options import MODEL_HELP
from u1_core.cli.progress import ProgressLine
from u1_core.errors import U1Error
from u1_core.jobs import Job
from u1_core.session import Session
from u1_core.train.ablate import Cell, grid, parse_settings, write_ablation_report
from u1_core.train.loop import train
from u1_core.train.recipe_file import load_recipe
from u1_core.weights.download import resolve_model

STOPPED = 130


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", type=Path, help="what all runs have in common, a YAML file")
    parser.add_argument(
        "--set",
        action="append",
        required=True,
        metavar="KEY=A,B…",
        help="values of a field, e.g. train.loss_type=x0,v; may be given several times",
    )
    parser.add_argument("--out", type=Path, help="folder of the runs and the report (default: RUN_NAME_ablation)")
    parser.add_argument("--model", help=MODEL_HELP)
    parser.add_argument("--device", help="auto, cpu, cuda or cuda:N, in place of the recipe's runtime.device")
    parser.add_argument("--json", action="store_true", help="print what was done as JSON")


def run(args: argparse.Namespace) -> int:
    """Exit status 0 when all runs are done, 130 when stopped: the same command then goes on. Raises U1Error."""
    recipe = load_recipe(args.recipe)
    recipe = replace(recipe, model=args.model or recipe.model)
    recipe = replace(recipe, runtime=replace(recipe.runtime, device=args.device or recipe.runtime.device))
    if not recipe.model:
        raise U1Error(f"{args.recipe}: names no model; add a line `model: FOLDER` or give --model")
    out = args.out or Path(recipe.runtime.out_dir) / f"{recipe.run_name}_ablation"
    cells = grid(recipe, parse_settings(args.set), out)
    session = Session.open(
        resolve_model(recipe.model), recipe.runtime.device, on_progress=ProgressLine("reading").bytes
    )
    stopped = False
    for number, cell in enumerate(cells, start=1):
        print(f"[{number}/{len(cells)}] {cell.name}{': done already' if cell.finished else ''}", file=sys.stderr)
        if not cell.finished and not run_cell(session, cell):
            stopped = True
            break
        write_ablation_report(out, cells)
    _tell(out, cells, args.json)
    return STOPPED if stopped else 0


def run_cell(session: Session, cell: Cell) -> bool:
    """Train one cell, from its newest checkpoint if it has begun; whether it came to its end.

    Ctrl-C stops it, with its state saved. Raises what the run raised.
    """
    job = Job(lambda job: train(job, session, cell.recipe, resume="checked" if cell.begun else "")).start()
    line = ProgressLine("training")
    try:
        for event in job.follow():
            if event.kind == "step":
                line.steps(event.data["step"], event.data["steps"])
    except KeyboardInterrupt:
        job.stop()
        job.wait()
    if job.error:
        raise job.error
    return job.state == "finished"


def _tell(out: Path, cells: Sequence[Cell], as_json: bool) -> None:
    finished = [cell.name for cell in cells if cell.finished]
    if as_json:
        facts = {"out": str(out), "report": str(out / "report.html"), "finished": finished, "runs": len(cells)}
        print(json.dumps(facts, ensure_ascii=False, indent=1))
    else:
        print(f"{len(finished)} of {len(cells)} runs are done: {out / 'report.html'}")
