"""What a recipe's fields are made of: their documentation, and rules that tell which values will do."""

import dataclasses
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from u1_core.errors import U1Error, nearest
from u1_core.lora.spec import parse_spec
from u1_core.plan.budget import MODES, Budget


class RecipeError(U1Error):
    """A setting that cannot be. `key` is its dotted name, for a reader who knows the line it stands on."""

    def __init__(self, key: str, words: str) -> None:
        super().__init__(f"{key} {words}")
        self.key = key


@dataclass(frozen=True)
class Rule:
    """What a value may be (of a list, each item): in words, as a test, and by name where only a few names will do.

    The test may raise a U1Error that knows better what is wrong.
    """

    words: str
    holds: Callable[[Any], bool]
    names: tuple[str, ...] = ()


def one_of(*names: str) -> Rule:
    return Rule(f"one of {', '.join(names)}", lambda value: value in names, names)


def _is_pattern(pattern: str) -> bool:
    try:
        return re.compile(pattern) is not None
    except re.error:
        return False


_LONGEST_NAME = 200
"""Bytes. File systems take 255, and a run's files have endings: my_run-2.full.safetensors.31415.part."""
_FORBIDDEN_IN_NAMES = re.compile(
    r'[<>:"/\\|?*\x00-\x1f\ud800-\udfff]|^\.|[. ]$|^\s*$|^(con|nul|aux|prn|com\d|lpt\d)$', re.IGNORECASE
)

ANYTHING = Rule("any text", lambda value: True)
SWITCH = Rule("true or false", lambda value: True)
SOME_TEXT = Rule("a text that is not empty", lambda value: bool(value.strip()))
FOLDER_NAME = Rule(
    f"a plain folder name of at most {_LONGEST_NAME} bytes, without / \\ : * ? and the like",
    lambda value: not _FORBIDDEN_IN_NAMES.search(value) and len(value.encode()) <= _LONGEST_NAME,
)
COUNT = Rule("a whole number, 1 or more", lambda value: value >= 1)
COUNT_OR_NONE = Rule("a whole number, 0 or more", lambda value: value >= 0)
SEED = Rule("a whole number from 0 to 2^63 - 1", lambda value: 0 <= value < 2**63)
PIXELS = Rule("a whole number, 1024 (32 x 32) or more", lambda value: value >= 1024)
ANY_NUMBER = Rule("a number", lambda value: True)
ZERO_OR_MORE = Rule("a number, 0 or more", lambda value: value >= 0)
AT_LEAST_ONE = Rule("a number, 1 or more", lambda value: value >= 1)
ABOVE_ZERO = Rule("a number above 0", lambda value: value > 0)
SHARE = Rule("a number from 0 to 1", lambda value: 0 <= value <= 1)
SHARE_BELOW_ONE = Rule("a number from 0 to below 1", lambda value: 0 <= value < 1)
LORA_SPEC = Rule("a LoRA spec", lambda value: bool(parse_spec(value)))
BUDGET = Rule(
    f"an amount (12GB, 12GiB; 7.2 is in GiB) or one of {', '.join(MODES)}", lambda value: bool(Budget.parse(value))
)
PATTERN = Rule("a regular expression", _is_pattern)
DEVICE = Rule("auto, cpu, cuda or cuda:N", lambda value: bool(re.fullmatch(r"auto|cpu|cuda(:\d+)?", value)))


def setting(default: Any, meaning: str, rule: Rule, unit: str = "", free: bool = False) -> Any:
    """A field of a recipe with its documentation and its rule.

    A run that is resumed may have another value of a `free` field: what is learned does not depend on it.
    """
    return field(default=default, metadata={"meaning": meaning, "unit": unit, "rule": rule, "free": free})


class Section:
    """Settings that check themselves when made: RecipeError names the first that breaks its rule."""

    def __post_init__(self) -> None:
        for one in dataclasses.fields(self):
            value = getattr(self, one.name)
            if value is None or not one.metadata:
                continue
            key = section_prefix(type(self)) + one.name
            items = {f"{key}[{i}]": item for i, item in enumerate(value)} if isinstance(value, tuple) else {key: value}
            for name, item in items.items():
                rule = one.metadata["rule"]
                try:
                    holds = rule.holds(item)
                except U1Error as problem:
                    raise RecipeError(name, f"will not do: {problem}") from None
                if not holds:
                    shown = repr(item) if isinstance(item, str) else f"{item}"
                    raise RecipeError(name, f"is {shown}; allowed: {rule.words}{nearest(item, rule.names)}")


def section_prefix(kind: type) -> str:
    """What stands before a field's name in its dotted key: "train." for `Train`, nothing for `Recipe`."""
    return "" if kind.__name__ == "Recipe" else f"{kind.__name__.lower()}."
