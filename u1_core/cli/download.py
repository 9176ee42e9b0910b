"""`u1 download ID`: fetch a model from the hub."""

import argparse
from pathlib import Path

from u1_core.weights.download import download, source_of
from u1_core.weights.snapshot import Snapshot


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("id", help="the model on the hub, e.g. sensenova/SenseNova-U1-8B-MoT")
    parser.add_argument("--revision", metavar="R", help="a branch, tag or commit (default: the main branch)")
    parser.add_argument("--to", type=Path, metavar="DIR", help="a folder of its own (default: the hub's shared cache)")


def run(args: argparse.Namespace) -> int:
    folder = download(args.id, args.revision, args.to)
    snapshot = Snapshot.open(folder)
    revision = source_of(folder)["revision"]
    print(f"{args.id} at {revision}: {snapshot.kind}, {snapshot.total_bytes / 1e6:,.0f} MB in {folder}")
    return 0
