"""A recipe from a node's fields, with a recipe file or YAML laid over them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from u1_core.train.recipe import Recipe
from u1_core.train.recipe_file import load_recipe, parse_recipe


def lines_of(text: str) -> tuple[str, ...]:
    """A prompt a line; empty lines are none."""
    return tuple(line.strip() for line in text.splitlines() if line.strip())


def as_recipe(settings: dict[str, Any], more: str) -> Recipe:
    """The node's fields as a recipe; what `more` (a recipe file's path, or YAML) says goes first."""
    text = more.strip()
    if text and "\n" not in text and text.lower().endswith((".yaml", ".yml")):
        path = Path(text).expanduser()
        load_recipe(path)
        text = path.read_text(encoding="utf-8-sig")
    if text:
        parse_recipe(text, "recipe")
        settings = _laid_over(settings, yaml.safe_load(text) or {})
    return parse_recipe(yaml.safe_dump(settings, allow_unicode=True), "TrainStyleLoRA")


def _laid_over(below: dict[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        inner = isinstance(value, Mapping) and isinstance(merged.get(key), dict)
        merged[key] = _laid_over(merged[key], value) if inner else value
    return merged
