"""The spec language: which modules get a LoRA, and of what rank and alpha.

    attn=r64a64; mlp=r64; mlp_mot_gen.down_proj=off

Entries `target=BODY` stand between semicolons, and a later one overrides an earlier one module by module. A target is
a module's name inside its layer, a head module's full path, or a group. BODY is `r64a32`, `r64` (alpha = rank),
`r=64,a=32` (or `alpha=32`), or `off` (`disable`); without a body, or with `on`, rank and alpha are 64. The grammar and
the presets are those of the reference trainer, whose recipes name them.
"""

import math
import re
from dataclasses import dataclass

from u1_core.errors import U1Error, nearest
from u1_core.model.config import ATTENTION_PROJECTIONS, FM_HEAD, MLP_PROJECTIONS

DEFAULT_RANK = 64

_ATTN = tuple(f"{name}_mot_gen" for name in ATTENTION_PROJECTIONS)
_MLP = tuple(f"mlp_mot_gen.{name}" for name in MLP_PROJECTIONS)
_HEAD = (f"{FM_HEAD}.0", f"{FM_HEAD}.2")
_EXPERTS = tuple(f"mlp_mot_gen.experts.*.{name}" for name in MLP_PROJECTIONS)
_ROUTER = ("mlp_mot_gen.gate",)

TARGETS = _ATTN + _MLP + _HEAD + _EXPERTS + _ROUTER
"""Every single target; in place of `*` a spec may also give one expert's number."""

GROUPS: dict[str, tuple[str, ...]] = {
    "attn": _ATTN,
    "mlp": _MLP,
    "fm_head": _HEAD,
    "all": _ATTN + _MLP + _HEAD,
    "gen_moe_mlp": _EXPERTS,
    "moe_mlp": _EXPERTS,
    "gen_moe_router": _ROUTER,
    "moe_router": _ROUTER,
    "gen_moe_all": _ATTN + _EXPERTS + _ROUTER + _HEAD,
    "moe_all": _ATTN + _EXPERTS + _ROUTER + _HEAD,
}

PRESETS: dict[str, str] = {
    "default": "attn=r64a64;mlp=r64a64;fm_head=r64a64",
    "attn_only": "attn=r64a64",
    "attn_mlp": "attn=r64a64;mlp=r64a64",
    "attn_only_no_head": "attn=r64a64",
    "attn_mlp_no_head": "attn=r64a64;mlp=r64a64",
    "official_r128": "attn=r128a128;mlp=r128a128;fm_head=r128a128",
    "a3b_moe_r8": "attn=r8a8;gen_moe_mlp=r8a8;fm_head=r8a8",
    "a3b_moe_router_r8": "gen_moe_router=r8a8",
}
"""Named specs. `default` covers what the official 8-step LoRA of U1 covers, `official_r128` at its rank too."""

_EXPERT = re.compile(r"(mlp_mot_gen\.experts\.)(\d+)(\..+)")
_COMPACT = re.compile(r"r(?P<rank>\d+)(?:a(?P<alpha>[^a]+))?")


@dataclass(frozen=True)
class SpecEntry:
    """One entry of a spec: the modules' names that its target stands for, and what they get."""

    text: str
    """The entry as it was written, for messages."""
    target: str
    members: tuple[str, ...]
    rank: int
    """0 for `off`."""
    alpha: float


def parse_spec(text: str) -> tuple[SpecEntry, ...]:
    """Read a spec. Raises U1Error naming the entry that is wrong; what a model lacks is `plan_lora`'s to find."""
    entries = tuple(_parse_entry(part.strip()) for part in text.split(";") if part.strip())
    if not entries:
        raise U1Error("the LoRA spec is empty; give entries such as 'attn=r64a64;mlp=r64a64', or a preset")
    return entries


def _parse_entry(text: str) -> SpecEntry:
    target, equals, body = (part.strip() for part in text.partition("="))
    members = _members(text, target)
    if equals and not body:
        raise U1Error(f"LoRA spec entry {text!r}: nothing stands after '='; give 'r64a64', 'r64', 'r=64,a=32' or 'off'")
    rank, alpha = _parse_body(text, re.sub(r"\s", "", body).lower())
    return SpecEntry(text, target, members, rank, alpha)


def _members(text: str, target: str) -> tuple[str, ...]:
    if target in GROUPS:
        return GROUPS[target]
    if target in TARGETS or _EXPERT.sub(r"\1*\3", target) in TARGETS:
        return (target,)
    advice = nearest(target, [*GROUPS, *TARGETS, *PRESETS]) or f"; groups are {', '.join(GROUPS)}"
    raise U1Error(f"LoRA spec entry {text!r}: there is no target {target!r}{advice}")


def _parse_body(text: str, body: str) -> tuple[int, float]:
    """(rank, alpha); rank 0 switches the target off."""
    if body in ("", "on", "enable"):
        return DEFAULT_RANK, float(DEFAULT_RANK)
    if body in ("off", "disable"):
        return 0, 0.0
    given = _named_values(text, body) if "=" in body else _compact_values(text, body)
    rank = given["rank"]
    if not rank.isdecimal() or int(rank) == 0:
        raise U1Error(f"LoRA spec entry {text!r}: rank is {rank!r}, expected a whole number of 1 or more")
    alpha = _number(given.get("alpha") or rank)
    if not 0 < alpha < math.inf:
        raise U1Error(f"LoRA spec entry {text!r}: alpha is {given['alpha']!r}, expected a number above 0")
    return int(rank), alpha


def _compact_values(text: str, body: str) -> dict[str, str]:
    found = _COMPACT.fullmatch(body)
    if not found:
        raise U1Error(
            f"LoRA spec entry {text!r}: {body!r} is not a body; write 'r64a64' (rank and alpha), 'r64', "
            "'r=64,a=32' or 'off'"
        )
    return found.groupdict()


def _named_values(text: str, body: str) -> dict[str, str]:
    names = {"r": "rank", "rank": "rank", "a": "alpha", "alpha": "alpha"}
    given: dict[str, str] = {}
    for part in body.split(","):
        key, _, value = part.partition("=")
        if key not in names or not value:
            raise U1Error(f"LoRA spec entry {text!r}: {part!r} is not 'r=RANK' or 'a=ALPHA'")
        if names[key] in given:
            raise U1Error(f"LoRA spec entry {text!r}: {names[key]} is given twice")
        given[names[key]] = value
    if "rank" not in given:
        raise U1Error(f"LoRA spec entry {text!r}: the rank is missing; write for example 'r=64,{body}'")
    return given


def _number(text: str) -> float:
    """The number, or NaN where `text` is none."""
    try:
        return float(text)
    except ValueError:
        return math.nan
