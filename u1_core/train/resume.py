"""Whether a run may go on: are recipe, data and model what they were, and does the disk have room for it."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from u1_core.errors import U1Error
from u1_core.train.checkpoint import State
from u1_core.train.recipe import Recipe
from u1_core.train.recipe_file import dump_recipe
from u1_core.train.run_folder import checkpoints_path, run_path, without_paths
from u1_core.train.step import Trainer

SHOWN = 3
MARGIN_BYTES = 50_000_000
"""Beside checkpoints: log, previews, report."""


@dataclass(frozen=True)
class About:
    """What a checkpoint belongs to: what matters of the recipe, and fingerprints."""

    recipe: str
    data: str
    model: str


def refuse_changes(folder: Path, state: State, now: About) -> None:
    """Raise U1Error with what has changed since `state` was saved and would make it another run; else do nothing."""
    # A setting that there was none of when the state was saved had the value that is its default now.
    texts = (dump_recipe(without_paths(Recipe())), state.recipe, now.recipe)
    default, was, is_now = (_flat(yaml.safe_load(text)) for text in texts)
    was = default | was
    if is_now["train.lr_schedule"] == "constant":
        was["train.steps"] = is_now["train.steps"]
    keys = [key for key in is_now if was.get(key) != is_now[key]]
    changed = [f"{key} was {was.get(key)} and is {is_now[key]}" for key in keys[:SHOWN]]
    changed += [f"{len(keys) - SHOWN} more settings changed"] * (len(keys) > SHOWN)
    changed += ["pictures or captions are not what they were"] * (state.data != now.data)
    changed += ["the model is another"] * (state.model != now.model)
    if changed:
        raise U1Error(f"{folder}: {'; '.join(changed)}; undo that, or say --resume-anyway to go on all the same")


def refuse_shorter(folder: Path, state: State, recipe: Recipe) -> None:
    """Raise U1Error if the run has gone further than this recipe's steps: it would never come to them."""
    if state.step > recipe.train.steps:
        raise U1Error(
            f"{folder}: the run is at step {state.step} already and train.steps is {recipe.train.steps}; give it more"
        )


def check_space(recipe: Recipe, trainer: Trainer) -> str:
    """Words of warning if the disk will not hold all checkpoints to be kept, or nothing.

    Raises U1Error if it does not hold one and the results. Adam's two moments are reckoned with, in fp32.
    """
    weights = 4 * sum(tensor.numel() for tensor in trainer.parameters.values())
    checkpoint = weights * (5 if trainer.ema else 4)
    chosen = checkpoints_path(recipe, run_path(recipe)).absolute()
    place = next(path for path in (chosen, *chosen.parents) if path.exists())
    free = shutil.disk_usage(place).free
    least = checkpoint + weights + MARGIN_BYTES
    if free < least:
        raise U1Error(
            f"{place}: {free / 1e9:.1f} GB are free, and a checkpoint and the results of this run take "
            f"{least / 1e9:.1f} GB; make room, or choose another folder (--out, train.checkpoint_dir)"
        )
    wanted = least + checkpoint * recipe.train.keep_last
    if free < wanted:
        return (
            f"{free / 1e9:.1f} GB are free, and all checkpoints to be kept take {wanted / 1e9:.1f} GB: lower keep_last"
        )
    return ""


def _flat(table: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found = {}
    for key, value in table.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return found
