"""A recipe's fields in words: for `u1 recipe show`, and as comments in the recipes that `u1 recipe new` writes."""

import dataclasses
import textwrap
from collections.abc import Sequence

import yaml

from u1_core.errors import U1Error, nearest
from u1_core.train.recipe import FieldDoc, Recipe, field_docs

WIDTH = 110


def find_fields(name: str = "") -> list[FieldDoc]:
    """The fields of a section ("train"), one field by its dotted key ("train.lr") or last name ("lr"), or all of them.

    Raises U1Error with the nearest name if there is none of that name.
    """
    docs = list(field_docs())
    if not name:
        return docs
    found = [doc for doc in docs if name in (doc.key, doc.key.partition(".")[0], doc.key.rpartition(".")[2])]
    if not found:
        known = [part for doc in docs for part in (doc.key, doc.key.rpartition(".")[2], doc.key.partition(".")[0])]
        raise U1Error(f"a recipe has no field or section {name!r}{nearest(name, known)}")
    return found


def describe(doc: FieldDoc) -> list[str]:
    """Some lines on one field: its key and default, what it means, what it may be."""
    unit = f" {doc.unit}" if doc.unit and doc.default is not None else ""
    lines = [
        f"{doc.key} = {_yaml(doc.default)}{unit}",
        *textwrap.wrap(doc.meaning, WIDTH - 4),
        f"allowed: {doc.allowed}",
    ]
    return [lines[0], *(f"    {line}" for line in lines[1:])]


def commented_yaml(recipe: Recipe, heading: Sequence[str] = ()) -> str:
    """The whole recipe as YAML that `parse_recipe` gives back the same, every field with its meaning above it."""
    docs = {doc.key: doc for doc in field_docs()}
    lines = [f"# {line}" for line in heading]
    for one in dataclasses.fields(recipe):
        value = getattr(recipe, one.name)
        if not dataclasses.is_dataclass(value):
            lines += ["", *_entry(docs[one.name], value, "")]
            continue
        lines += ["", f"{one.name}:"]
        for inner in dataclasses.fields(value):
            lines += _entry(docs[f"{one.name}.{inner.name}"], getattr(value, inner.name), "  ")
    return "\n".join(lines).lstrip("\n") + "\n"


def _entry(doc: FieldDoc, value: object, indent: str) -> list[str]:
    unit = f" ({doc.unit})" if doc.unit else ""
    words = textwrap.wrap(f"{doc.meaning}{unit}; {doc.allowed}", WIDTH - len(indent) - 2)
    name = doc.key.rpartition(".")[2]
    return [*(f"{indent}# {line}" for line in words), f"{indent}{name}: {_yaml(value)}"]


def _yaml(value: object) -> str:
    """One value on one line."""
    plain = list(value) if isinstance(value, tuple) else value
    text = yaml.safe_dump(plain, default_flow_style=True, allow_unicode=True, width=10**6)
    return text.removesuffix("\n").removesuffix("\n...")
