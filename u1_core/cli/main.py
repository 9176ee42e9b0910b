"""`u1 …`: one command a task. A command's module is imported only when it is asked for, so that help is instant."""

import argparse
import importlib
import os
import sys

from u1_core import __version__
from u1_core.cli import ahead
from u1_core.errors import U1Error, nearest

COMMANDS = {
    "sample": ("u1_core.cli.sample", "make pictures from a prompt"),
    "edit": ("u1_core.cli.edit", "change one to ten pictures as a prompt says"),
    "interleave": ("u1_core.cli.interleave", "text with pictures in between"),
    "ask": ("u1_core.cli.ask", "ask about pictures, or just talk"),
    "compare": ("u1_core.cli.compare", "one sheet: the same prompt and seed over LoRAs and numbers of steps"),
    "train": ("u1_core.cli.train", "train a style LoRA from a recipe"),
    "plan": ("u1_core.cli.plan", "what a training step takes on a card, before anything is loaded"),
    "data": ("u1_core.cli.data", "check, pack and inspect pictures and captions"),
    "recipe": ("u1_core.cli.recipe", "what a run's settings mean; check a recipe, write a new one"),
    "ablate": ("u1_core.cli.ablate", "a run for every combination of settings, and one report over them"),
    "report": ("u1_core.cli.report", "build a run's report.html anew"),
    "run": ("u1_core.cli.run", "run a workflow exported from ComfyUI, without ComfyUI"),
    "runs": ("u1_core.cli.runs", "list, follow, pause, resume and stop training runs"),
    "doctor": ("u1_core.cli.doctor", "this machine in one page, and whether it computes gradients as it should"),
    "lora": ("u1_core.cli.lora", "inspect, plan, merge and export LoRA files"),
    "download": ("u1_core.cli.download", "fetch a model from the hub"),
    "parity": ("u1_core.cli.parity", "compare with what the official code computed"),
}
"""Command -> the module with its `add_arguments(parser)` and `run(args) -> exit status`, and one line of help."""


NOBODY_READS = 141
"""Exit status where whoever read the output has gone: what a shell gives for SIGPIPE."""


def main(argv: list[str] | None = None) -> int:
    """Run one command. The user's mistakes are printed as one line, with exit status 2."""
    try:
        status = _run(argv)
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # as in `u1 … | head`
        # What is still in the buffer goes nowhere, or Python would fail once more when it flushes at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return NOBODY_READS


def _run(argv: list[str] | None) -> int:
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # a model may say what the terminal's encoding lacks
    argv = sys.argv[1:] if argv is None else argv
    name = argv[0] if argv else ""
    if name in ("", "-h", "--help"):
        print(_overview())
        return 0
    if name == "--version":
        print(f"u1 {__version__}")
        return 0
    try:
        if name not in COMMANDS:
            raise U1Error(f"u1: there is no command {name!r}{nearest(name, COMMANDS)} (`u1 --help` lists them)")
        module_name, help_line = COMMANDS[name]
        ahead.begin(name, argv[1:])
        module = importlib.import_module(module_name)
        parser = argparse.ArgumentParser(prog=f"u1 {name}", description=help_line, allow_abbrev=False)
        module.add_arguments(parser)
        args = parser.parse_args(argv[1:])
        args.command = name
        return module.run(args)
    except U1Error as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _overview() -> str:
    lines = [f"  {name:<12}{help_line}" for name, (_, help_line) in COMMANDS.items()]
    return "\n".join(["usage: u1 COMMAND [options]    (u1 COMMAND --help tells more)", "", *lines])
