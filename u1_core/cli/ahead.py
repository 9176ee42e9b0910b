"""The model that a command is about to read is read into the system's memory while Python still imports PyTorch."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import yaml

from u1_core.errors import U1Error
from u1_core.model.config import GENERATION, UNDERSTANDING
from u1_core.weights import read_ahead
from u1_core.weights.download import resolve_model

BOTH = (UNDERSTANDING, GENERATION)
TOWERS_READ = {
    "sample": BOTH,
    "edit": BOTH,
    "interleave": BOTH,
    "compare": BOTH,
    "train": BOTH,
    "ask": (UNDERSTANDING,),
}
"""Command -> the towers that it reads."""


def begin(command: str, argv: Sequence[str]) -> None:
    """Begin to read the model that these arguments name, if that is quick to tell. What is wrong with them is told
    later, by the command."""
    if command not in TOWERS_READ or not {"-h", "--help", "--detach"}.isdisjoint(argv):
        return
    with suppress(OSError, ValueError, RecursionError, yaml.YAMLError, U1Error):
        if model := _named(argv):
            read_ahead.begin(resolve_model(model), TOWERS_READ[command])


def _named(argv: Sequence[str]) -> str:
    """What --model says, or else the recipe; empty if neither does."""
    for argument, after in zip(argv, [*argv[1:], ""], strict=True):
        option, equals, value = argument.partition("=")
        if option == "--model":
            return value if equals else after
    recipes = [argument for argument in argv if argument.endswith((".yaml", ".yml"))]
    raw = yaml.safe_load(Path(recipes[0]).read_text(encoding="utf-8-sig")) if recipes else None
    model = raw.get("model") if isinstance(raw, dict) else None
    return model if isinstance(model, str) else ""
