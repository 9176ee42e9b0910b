"""`u1 data check|pack|inspect`: what a set of pictures is worth before a run is spent on it."""

import argparse
import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

from u1_core.cli.options import check_out
from u1_core.cli.progress import ProgressLine
from u1_core.data.check import SEVERITIES, Finding, Rules, check_dataset, spread
from u1_core.data.dataset import Dataset, TableDataset, open_dataset
from u1_core.data.framing import Framing
from u1_core.data.pack import pack
from u1_core.data.picture_cache import training_pictures
from u1_core.data.pictures import save_png
from u1_core.data.sheet import MOST, contact_sheet
from u1_core.errors import U1Error
from u1_core.model.config import U1Config
from u1_core.text.tokenizer import Tokenizer
from u1_core.train.recipe import Data, Recipe, Style
from u1_core.train.recipe_file import load_recipe
from u1_core.weights.download import resolve_model

STOPS = 1
"""Exit status of a check that found what makes training impossible."""
SHOWN_STOPS = 20
TOKEN_PIXELS = 32
"""Of the released models, where no model is at hand to ask."""
SHOWN_CHARACTERS = 70


def add_arguments(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(dest="what", required=True, metavar="check|pack|inspect")
    check = commands.add_parser("check", help="find what will hurt, before the run", allow_abbrev=False)
    check.add_argument("source", type=Path, nargs="?", help="folder, .parquet or .arrow file (default: the recipe's)")
    check.add_argument("--recipe", type=Path, help="check it as this recipe trains on it")
    check.add_argument("--model", help="count captions with this model's tokenizer (default: the recipe's)")
    check.add_argument("--all", action="store_true", help="look at every picture of a very large set")
    check.add_argument("--sheet", type=Path, metavar="OUT.png", help="write a contact sheet of what the trainer sees")
    check.add_argument("--json", action="store_true", help="print the findings as JSON")
    packing = commands.add_parser("pack", help="write a set into one .parquet file", allow_abbrev=False)
    packing.add_argument("source", type=Path, help="folder, .parquet or .arrow file")
    packing.add_argument("--out", type=Path, required=True, metavar="FILE.parquet", help="file to write; must be new")
    packing.add_argument("--leave-out-bad", action="store_true", help="leave out what cannot be trained on")
    packing.add_argument("--json", action="store_true", help="print what was done as JSON")
    inspect = commands.add_parser("inspect", help="show what a set holds", allow_abbrev=False)
    inspect.add_argument("source", type=Path, help="folder, .parquet or .arrow file")
    inspect.add_argument("--rows", type=int, default=5, metavar="N", help="samples to show (default 5)")
    inspect.add_argument("--json", action="store_true", help="print it as JSON")


def run(args: argparse.Namespace) -> int:
    """Exit status 0; 1 if a check found what makes training impossible. Raises U1Error."""
    return {"check": _check, "pack": _pack, "inspect": _inspect}[args.what](args)


def _check(args: argparse.Namespace) -> int:
    if args.sheet:
        check_out(args.sheet)
    recipe = load_recipe(args.recipe) if args.recipe else Recipe()
    if not (args.source or args.recipe):
        raise U1Error("u1 data check: give a folder, a .parquet or .arrow file, or --recipe")
    data, style = recipe.data, recipe.style
    dataset = open_dataset((args.source or Path(data.data_dir)).expanduser(), data.n_samples)
    rules = _rules(data, style, _model_folder(args.model, recipe.model))
    pictures = training_pictures(dataset, rules.framing, data.masks, data.cache_mb * 10**6, data.workers)
    findings = check_dataset(dataset, pictures, rules, args.all, ProgressLine("looking at pictures").steps)
    sheet = None
    if args.sheet:
        image = contact_sheet(dataset, pictures, rules.framing, spread(len(dataset), MOST))
        sheet = save_png(image, args.sheet, {"source": dataset.source.name})
    pictures.close()
    sizes = _training_sizes(dataset, rules.framing)
    if args.json:
        _print_json(
            source=str(dataset.source),
            samples=len(dataset),
            turns=len(dataset.turns),
            sizes=sizes,
            findings=[asdict(finding) for finding in findings],
            sheet=str(sheet) if sheet else None,
        )
    else:
        _print_findings(dataset, sizes, findings)
        if sheet:
            print(f"contact sheet: {sheet}")
    return STOPS if any(finding.severity == "stops" for finding in findings) else 0


def _rules(data: Data, style: Style, model: Path | None) -> Rules:
    config = U1Config.from_file(model / "config.json") if model else None
    token_pixels, native = (config.token_pixels, config.native_pixels) if config else (TOKEN_PIXELS, 0)
    framing = Framing(data.cap_max_pixels, token_pixels, data.snap_bucket, data.fit, data.upscale)
    encode = Tokenizer.from_folder(model).encode if model else None
    return Rules(framing, style.trigger, data.masks, data.use_think_labels, encode, native)


def _model_folder(asked: str | None, of_recipe: str | None) -> Path | None:
    """The folder with the tokenizer: of the model asked for, or of the recipe's if it is on this machine."""
    if not (asked or of_recipe):
        return None
    try:
        path = Path(resolve_model(asked or of_recipe))
    except U1Error:
        if asked:
            raise
        return None
    folder = path if path.is_dir() else path.parent
    return folder if asked or folder.is_dir() else None


def _training_sizes(dataset: Dataset, framing: Framing) -> dict[str, int]:
    """How many of the pictures (of a large set, some spread over it) are trained at each size, the commonest first."""
    counts: Counter[str] = Counter()
    for number in spread(len(dataset), 2048):
        try:
            width, height = framing.frame(*dataset.size(number)).size
        except U1Error:
            continue
        counts[f"{width}x{height}"] += 1
    return dict(counts.most_common())


def _print_findings(dataset: Dataset, sizes: dict[str, int], findings: list[Finding]) -> None:
    turns = f", {len(dataset.turns)} turns an epoch" if len(dataset.turns) != len(dataset) else ""
    print(f"{dataset.source}: {len(dataset)} pictures with captions{turns}")
    if sizes:
        print(f"trained at {', '.join(f'{size} ({count})' for size, count in sizes.items())}")
    stops = [finding for finding in findings if finding.severity == "stops"]
    for finding in [*stops[:SHOWN_STOPS], *(finding for finding in findings if finding.severity != "stops")]:
        print(finding)
    if len(stops) > SHOWN_STOPS:
        print(f"stops: {len(stops) - SHOWN_STOPS} more such; --json lists them all")
    counts = Counter(finding.severity for finding in findings)
    told = ", ".join(f"{counts[severity]} {severity}" for severity in SEVERITIES if counts[severity])
    print(f"found: {told}" if told else "nothing found that would hurt")


def _pack(args: argparse.Namespace) -> int:
    done = pack(open_dataset(args.source.expanduser()), args.out, args.leave_out_bad, ProgressLine("packing").steps)
    if args.json:
        _print_json(file=str(done.path), rows=done.rows, bytes=done.n_bytes, left_out=done.left_out)
        return 0
    for name, words in done.left_out.items():
        print(f"left out: {name}: {words}")
    print(f"{done.path}: {done.rows} rows, {done.n_bytes / 1e6:.1f} MB")
    return 0


def _inspect(args: argparse.Namespace) -> int:
    dataset = open_dataset(args.source.expanduser())
    facts: dict[str, Any] = {"source": str(dataset.source), "samples": len(dataset), "turns": len(dataset.turns)}
    if isinstance(dataset, TableDataset):
        groups = dataset.table.groups
        facts |= {"columns": {name: str(kind) for name, kind in groups.columns.items()}, "groups": len(groups.rows)}
    facts["unusable"] = dataset.problems
    rows = [_row(dataset, number) for number in range(min(max(0, args.rows), len(dataset)))]
    if args.json:
        _print_json(**facts, rows=rows)
        return 0
    print(f"{facts['source']}: {facts['samples']} samples, {facts['turns']} turns an epoch")
    if "columns" in facts:
        print(
            f"columns {', '.join(f'{n} ({k})' for n, k in facts['columns'].items())}; {facts['groups']} groups of rows"
        )
    for name, words in dataset.problems.items():
        print(f"unusable: {name}: {words}")
    for row in rows:
        extras = "".join(f", {extra}" for extra in ("think", "mask") if row[extra])
        print(f"{row['id']}: {row['size']}, {row['bytes'] / 1e3:.0f} kB{extras}: {_shown(row['caption'])}")
    return 0


def _row(dataset: Dataset, number: int) -> dict[str, Any]:
    sample, picture = dataset[number], dataset.picture(number)
    try:
        size = "{}x{}".format(*dataset.size(number))
    except U1Error as problem:
        size = str(problem)
    return {
        "id": sample.id,
        "size": size,
        "bytes": len(picture) if isinstance(picture, bytes) else picture.stat().st_size,
        "caption": sample.caption,
        "think": sample.think,
        "repeats": sample.repeats,
        "mask": dataset.mask(number) is not None,
    }


def _shown(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[: SHOWN_CHARACTERS - 1]}…"


def _print_json(**facts: Any) -> None:
    print(json.dumps(facts, ensure_ascii=False, indent=1))
