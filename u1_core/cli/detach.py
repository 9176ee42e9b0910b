"""A training run in a process of its own, which outlives the terminal."""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

from u1_core.errors import U1Error
from u1_core.train.control import alive
from u1_core.train.recipe import Recipe
from u1_core.train.run_folder import free_run_path, run_path

COMMAND = "import sys; from u1_core.cli.main import main; sys.exit(main(sys.argv[1:]))"
PATIENCE_S = 20.0
"""How long to look whether it begins well; reading a large model takes longer, and is left to itself."""


def detach(recipe: Recipe, args: argparse.Namespace) -> int:
    """Start the run that these options ask for, and leave it. Raises U1Error if it ends at once."""
    path = run_path(recipe)
    if not (args.resume or args.resume_anyway):
        free_run_path(recipe)
    told = path.with_name(f"{path.name}.out.txt")
    told.parent.mkdir(parents=True, exist_ok=True)
    process = start_detached(["train", *_options(args)], told)
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline and process.poll() is None and not alive(path):
        time.sleep(0.1)
    if process.poll():
        lines = told.read_text(encoding="utf-8", errors="replace").strip().splitlines() or ["no reason was given"]
        raise U1Error(f"{path}: the run ended at once: {lines[-1].removeprefix('error: ')}")
    print(f'started as process {process.pid}; `u1 runs tail {path.name} --out "{path.parent}"` shows how it goes')
    print(f"what it says is in {told}")
    return 0


def start_detached(command: list[str], told: Path) -> subprocess.Popen:
    """`u1 COMMAND …` in a session of its own, with all that it says in the file `told`."""
    windows = os.name == "nt"
    flags = subprocess.DETACHED_PROCESS | subprocess.CREATE_NEW_PROCESS_GROUP if windows else 0
    with told.open("ab") as file:
        return subprocess.Popen(
            [sys.executable, "-c", COMMAND, *command],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=not windows,
            creationflags=flags,
        )


def _options(args: argparse.Namespace) -> list[str]:
    names = ("model", "name", "steps", "out", "device", "budget")
    named = [f"--{name}={getattr(args, name)}" for name in names if getattr(args, name)]
    switches = [f"--{name.replace('_', '-')}" for name in ("resume", "resume_anyway", "json") if getattr(args, name)]
    return [str(args.recipe), *named, *switches]
