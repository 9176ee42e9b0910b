"""`u1 lora export`: a LoRA in the one form that loads everywhere, with the tensors trained whole folded into it."""

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from u1_core.cli.progress import ProgressLine
from u1_core.errors import U1Error
from u1_core.lora.export import Folded, fold_full
from u1_core.lora.files import FULL_FILE, LoraFile, read_lora, write_lora
from u1_core.session import Session
from u1_core.train.judge import validate
from u1_core.train.recipe import Recipe
from u1_core.train.recipe_file import load_recipe
from u1_core.weights.download import resolve_model

FOLDED_RANK = "u1.folded_rank"
"""Metadata key: the rank that tensors trained whole were folded at."""


def add_export(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", type=Path, metavar="RUN|FILE", help="a run's folder, or a LoRA file")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="a new .safetensors file")
    parser.add_argument("--fold-full", action="store_true", help="fold the tensors trained whole into the LoRA by SVD")
    parser.add_argument("--rank", type=int, default=64, help="rank of the folded terms (default 64)")
    parser.add_argument(
        "--linear-only", action="store_true", help="leave convolutions out, as the official scripts fail on them"
    )
    parser.add_argument("--model", help="the base model, to fold; default: the run's own")
    parser.add_argument("--device", default="auto", help="where SVDs are computed: auto, cpu, cuda or cuda:N")
    parser.add_argument("--json", action="store_true", help="print what was done as JSON")


def export(args: argparse.Namespace) -> None:
    """Raises U1Error before anything is written."""
    file, recipe = find_lora(args.source)
    adapter, folded, validation = file.adapter, [], {}
    if len(adapter.kinds) != 1:
        raise U1Error(f"{file.path}: does not say which model it is for, so it cannot be written anew")
    metadata = {key: value for key, value in file.metadata.items() if key != FULL_FILE}
    if args.fold_full:
        model = args.model or (recipe.model if recipe else None)
        if not model:
            raise U1Error(f"{args.source}: folding needs the base model; give --model")
        session = Session.open(resolve_model(model), args.device, on_progress=ProgressLine("reading weights").bytes)
        adapter.check(session.config)
        device, snapshot = session.device, session.snapshot
        adapter, folded = fold_full(adapter, snapshot.read, args.rank, not args.linear_only, device)
        metadata[FOLDED_RANK] = str(args.rank)
        if recipe:
            validation = validate(session, recipe, {"the run": file.adapter, "the export": adapter})
    write_lora(args.out, adapter, metadata)
    left_out = [] if args.fold_full else sorted(file.adapter.full)
    facts = {"out": str(args.out), "modules": len(adapter.modules), "folded": [asdict(one) for one in folded]}
    if args.json:
        print(json.dumps({**facts, "left_out": left_out, "validation": validation}, ensure_ascii=False, indent=1))
    else:
        print("\n".join([f"{args.out}: {len(adapter.modules)} modules", *_lines(folded, left_out, validation)]))


def find_lora(source: Path) -> tuple[LoraFile, Recipe | None]:
    """A LoRA file; of a run's folder, its result and its recipe. Raises U1Error."""
    if not source.is_dir():
        return read_lora(source), None
    if not (source / "recipe.yaml").is_file():
        raise U1Error(f"{source}: is no run: there is no recipe.yaml in it; give a run's folder or a LoRA file")
    recipe = load_recipe(source / "recipe.yaml")
    for name in (f"{recipe.run_name}.safetensors", f"{recipe.run_name}.full.safetensors"):
        if (source / name).is_file():
            return read_lora(source / name), recipe
    raise U1Error(f"{source}: is not finished, it has no {recipe.run_name}.safetensors; give a LoRA file instead")


def _lines(folded: list[Folded], left_out: list[str], validation: dict[str, Any]) -> list[str]:
    lines = []
    if folded:
        lines.append(f"  {'trained whole':<58}{'|change|':>10}{'rank':>6}{'lost':>9}")
    for one in folded:
        rank = str(one.rank) if one.rank else ""
        lines.append(f"  {one.name:<58}{one.change:>10.4g}{rank:>6}{one.error:>9.2%}" + f"  {one.reason}".rstrip())
    if left_out:
        lines.append(f"  left out: {len(left_out)} tensors trained whole (--fold-full takes them along)")
    for name, share in validation.items():
        band = f"{share['low']:.1f} to {share['high']:.1f}"
        lines.append(f"  validation, {name}: {share['percent']:.2f} % of the base model's x0-MSE ({band})")
    return lines
