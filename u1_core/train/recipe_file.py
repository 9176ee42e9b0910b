"""Recipes as YAML. Every mistake is one line with the file, the line, the key, the value and what is allowed."""

import dataclasses
import math
import types
import typing
from pathlib import Path
from typing import Any

import yaml

from u1_core.errors import U1Error, nearest
from u1_core.train.recipe import Recipe
from u1_core.train.settings import RecipeError, section_prefix

_NULL_TAG, _BOOL_TAG, _TEXT_TAG = (f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "str"))


def load_recipe(path: Path) -> Recipe:
    """Read and check a recipe file. Raises U1Error."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise U1Error(f"{path}: there is no such recipe") from None
    except UnicodeDecodeError as problem:
        raise U1Error(f"{path}: byte {problem.start} is not UTF-8; save the recipe as UTF-8 text") from None
    except OSError as problem:
        raise U1Error(f"{path}: cannot be read ({problem.strerror or problem})") from None
    return parse_recipe(text, str(path))


def parse_recipe(text: str, source: str) -> Recipe:
    """A recipe from YAML text; what it leaves out has its default. `source` names it in errors. Raises U1Error."""
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as problem:
        line = problem.problem_mark.line + 1
        raise U1Error(f"{source} line {line}: not valid YAML: {problem.problem}") from None
    except (yaml.YAMLError, RecursionError) as problem:
        raise U1Error(f"{source}: not valid YAML: {' '.join(str(problem).split())}") from None
    lines: dict[str, int] = {}
    try:
        return _read_section(Recipe, root, lines) if root else Recipe()
    except RecipeError as problem:
        place = f" line {lines[problem.key]}" if problem.key in lines else ""
        raise U1Error(f"{source}{place}: {problem}") from None


def dump_recipe(recipe: Recipe) -> str:
    """The whole recipe, defaults included, as YAML that `parse_recipe` gives back the same."""
    return yaml.safe_dump(_plain(dataclasses.asdict(recipe)), sort_keys=False, allow_unicode=True, width=120)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    return list(value) if isinstance(value, tuple) else value


def _read_section(kind: type, node: yaml.Node, lines: dict[str, int]) -> Any:
    """The dataclass `kind` from a YAML mapping. Notes in `lines` where each key stands. Raises RecipeError."""
    prefix = section_prefix(kind)
    if _is_empty(node):
        return kind()
    if not isinstance(node, yaml.MappingNode):
        name = prefix.rstrip(".") or "the recipe"
        lines[name] = _line(node)
        raise RecipeError(name, f"is {_shown(node)}; it is to be a table of `name: value` lines")
    hints = typing.get_type_hints(kind)
    values: dict[str, Any] = {}
    for key_node, value_node in node.value:
        name = key_node.value if isinstance(key_node, yaml.ScalarNode) else _shown(key_node)
        key = prefix + name
        lines[key] = _line(key_node)
        if name not in hints:
            raise RecipeError(key, f"is not a setting{_where_instead(name, kind)}")
        if name in values:
            raise RecipeError(key, "is set twice; keep one of the two")
        if dataclasses.is_dataclass(hints[name]):
            values[name] = _read_section(hints[name], value_node, lines)
        else:
            rule = kind.__dataclass_fields__[name].metadata["rule"]
            values[name] = _read_value(hints[name], value_node, key, rule.words, lines)
    return kind(**values)


def _read_value(hint: Any, node: yaml.Node, key: str, allowed: str, lines: dict[str, int]) -> Any:
    """One setting as its field's type has it; whether the value will do is the field's own business."""
    optional = isinstance(hint, types.UnionType)
    if optional and _is_empty(node):
        return None
    kind = typing.get_args(hint)[0] if optional else hint
    if typing.get_origin(kind) is tuple:
        if not isinstance(node, yaml.SequenceNode):
            raise RecipeError(key, f"is {_shown(node)}; allowed: a list, each item {allowed}")
        items = {f"{key}[{i}]": item for i, item in enumerate(node.value)}
        lines |= {name: _line(item) for name, item in items.items()}
        return tuple(_read_value(str, item, name, allowed, lines) for name, item in items.items())
    try:
        return _scalar(kind, node)
    except ValueError:
        raise RecipeError(key, f"is {_shown(node)}; allowed: {allowed}") from None


def _scalar(kind: type, node: yaml.Node) -> Any:
    """Read from the text itself: YAML 1.1 takes 5e-5 for a text, 010 for eight and 1:30 for ninety."""
    if not isinstance(node, yaml.ScalarNode) or _is_empty(node):
        raise ValueError
    if kind is str:
        return node.value
    if kind is bool:
        if node.tag != _BOOL_TAG:
            raise ValueError
        return yaml.SafeLoader.bool_values[node.value.lower()]
    number = float(node.value)
    if not math.isfinite(number) or (kind is int and not number.is_integer()):
        raise ValueError
    if kind is float:
        return number
    return int(node.value) if node.value.lstrip("+-").isdigit() else int(number)


def _where_instead(name: str, kind: type) -> str:
    """Words for an unknown name: the section it belongs to, or the nearest name here."""
    hints = typing.get_type_hints(Recipe)
    for section in [Recipe, *filter(dataclasses.is_dataclass, hints.values())]:
        if section is not kind and name in section.__dataclass_fields__:
            return (
                f"; {name} belongs under `{section.__name__.lower()}:`"
                if section is not Recipe
                else (f"; {name} belongs at the top, in no section")
            )
    return nearest(name, kind.__dataclass_fields__)


def _is_empty(node: yaml.Node) -> bool:
    return node.tag == _NULL_TAG


def _line(node: yaml.Node) -> int:
    return node.start_mark.line + 1


def _shown(node: yaml.Node) -> str:
    if not isinstance(node, yaml.ScalarNode):
        return "a list" if isinstance(node, yaml.SequenceNode) else "a table"
    if _is_empty(node):
        return "empty"
    shown = node.value if len(node.value) <= 80 else f"{node.value[:79]}…"
    return repr(shown) if node.tag == _TEXT_TAG else shown
