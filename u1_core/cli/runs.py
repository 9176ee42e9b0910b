"""`u1 runs`: which runs there are and how they go; pause, resume, stop, or ask for a checkpoint or a preview."""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from u1_core.cli.detach import start_detached
from u1_core.errors import U1Error, nearest
from u1_core.train.control import alive, ask, read_status

ACTIONS = ("list", "tail", "pause", "resume", "stop", "save", "preview")
LINES = 10


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "action", choices=ACTIONS, help="resume goes on with a paused run, or begins anew one that stopped or died"
    )
    parser.add_argument("name", nargs="?", help="which run; not for list")
    parser.add_argument("--out", type=Path, default=Path("runs"), help="folder of the runs (default runs)")
    parser.add_argument("--follow", action="store_true", help="tail: go on until the run ends")


def run(args: argparse.Namespace) -> int:
    """Exit status 0. Raises U1Error."""
    if args.action == "list":
        for folder in _runs(args.out):
            print(_line(folder))
        return 0
    folder = _find(args.out, args.name)
    if args.action == "tail":
        _tail(folder, args.follow)
    elif args.action == "resume" and not alive(folder):
        told = folder.with_name(f"{folder.name}.out.txt")
        options = [str(folder / "recipe.yaml"), "--name", folder.name, "--out", str(args.out), "--resume"]
        process = start_detached(["train", *options], told)
        print(f"{folder.name}: started again as process {process.pid}; what it says is in {told}")
    else:
        ask(folder, args.action)
        print(f"{folder.name}: asked to {args.action}")
    return 0


def _runs(out: Path) -> list[Path]:
    if not out.is_dir():
        raise U1Error(f"{out}: there is no such folder of runs; give it with --out")
    return sorted(path.parent for path in out.glob("*/recipe.yaml"))


def _find(out: Path, name: str | None) -> Path:
    names = [folder.name for folder in _runs(out)]
    if name is None:
        raise U1Error(f"u1 runs: say which run of {out}: {', '.join(names) or 'there is none'}")
    if name not in names:
        raise U1Error(f"{out}: there is no run {name!r}{nearest(name, names)} (`u1 runs list --out {out}` shows them)")
    return out / name


def _line(folder: Path) -> str:
    facts = read_status(folder)
    steps = f"{facts['step']}/{facts['steps']}" if facts.get("steps") else "-"
    loss = f"loss {facts['loss']:.4f}" if "loss" in facts else ""
    return f"{folder.name:<24} {facts['state']:<9} {steps:>13}  {loss}".rstrip()


def _tail(folder: Path, follow: bool) -> None:
    """The last lines of the log, and with `follow` those that come, to the run's end."""
    log, shown = folder / "log.jsonl", 0
    while True:
        going = alive(folder)
        # A last line without its end is still being written.
        lines = log.read_bytes().split(b"\n")[:-1] if log.is_file() else []
        for line in lines[max(shown, 0 if shown else len(lines) - LINES) :]:
            print(_told(json.loads(line)), flush=True)
        shown = len(lines)
        if not (follow and going):
            print(_line(folder), file=sys.stderr)
            return
        time.sleep(0.5)


def _told(record: dict[str, Any]) -> str:
    if "event" in record:
        more = record.get("message") or record.get("failed") or ", ".join(record.get("files", ()))
        return f"step {record['step']}: {record['event']}" + f": {more}" * bool(more)
    words = f"step {record['step']}: loss {record['loss']:.4f}, t {record['t']:.3f}, {record['seconds']:.2f} s"
    return words + (f", skipped: {record['skipped']}" if "skipped" in record else "")
