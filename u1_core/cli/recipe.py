"""`u1 recipe show | check | new`: what the settings of a run mean, whether a file will do, and a file to start from."""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from u1_core.errors import U1Error, nearest
from u1_core.train.recipe_file import load_recipe
from u1_core.train.recipe_text import commented_yaml, describe, find_fields
from u1_core.train.shipped import SHIPPED
from u1_core.weights.write import replacing


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    show = actions.add_parser("show", help="what a field, a section or every field means, and its default")
    show.add_argument("name", nargs="?", default="", metavar="FIELD|SECTION", help="such as train.lr, lr or train")
    show.add_argument("--json", action="store_true", help="print it as JSON")
    check = actions.add_parser("check", help="read a recipe and tell what is wrong with it, or what differs")
    check.add_argument("file", type=Path, metavar="FILE")
    check.add_argument("--json", action="store_true", help="print the whole recipe, defaults included, as JSON")
    shipped = "; ".join(f"{name}: {recipe.words}" for name, recipe in SHIPPED.items())
    new = actions.add_parser("new", help="write a recipe with every field and its meaning", description=shipped)
    new.add_argument(
        "--from", dest="source", default="style_default", metavar="NAME", help=f"one of {', '.join(SHIPPED)}"
    )
    new.add_argument("out", type=Path, metavar="OUT", help="a new .yaml file")


def run(args: argparse.Namespace) -> int:
    {"show": _show, "check": _check, "new": _new}[args.action](args)
    return 0


def _show(args: argparse.Namespace) -> None:
    found = find_fields(args.name)
    if args.json:
        print(json.dumps([asdict(doc) for doc in found], ensure_ascii=False, indent=1))
    else:
        print("\n\n".join("\n".join(describe(doc)) for doc in found))


def _check(args: argparse.Namespace) -> None:
    recipe = load_recipe(args.file)
    if args.json:
        print(json.dumps(asdict(recipe), ensure_ascii=False, indent=1))
        return
    print(f"{args.file}: a recipe that can be used")
    for doc in find_fields():
        value = recipe
        for part in doc.key.split("."):
            value = getattr(value, part)
        if value != doc.default:
            print(f"  {doc.key}: {value} (default {doc.default})")


def _new(args: argparse.Namespace) -> None:
    if args.source not in SHIPPED:
        known = ", ".join(SHIPPED)
        raise U1Error(
            f"--from {args.source}: is none of the recipes that come along ({known}){nearest(args.source, SHIPPED)}"
        )
    shipped = SHIPPED[args.source]
    heading = [f"{args.source}: {shipped.words}.", "Set model and data.data_dir, then: u1 train THIS_FILE"]
    with replacing(args.out) as file:
        file.write(commented_yaml(shipped.recipe, heading).encode("utf-8"))
    print(args.out)
