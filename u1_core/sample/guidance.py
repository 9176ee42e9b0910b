"""Classifier-free guidance: which branches a step runs and how their velocities are combined.

Text to image has a conditional and an unconditional branch. Where there are pictures (edit, interleave) a third sees
the pictures but not the text. Source: U1_FACTS, "Flow"; the released sampler's own rules.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor

from u1_core.errors import U1Error, nearest
from u1_core.model.pixels import to_patches


class Branch(Enum):
    """A guidance branch, by what it is shown."""

    CONDITIONAL = "conditional"
    TEXT_FREE = "text-free"
    UNCONDITIONAL = "unconditional"


NORMS = ("none", "global", "channel", "cfg_zero_star")


@dataclass(frozen=True)
class Guidance:
    """How strongly, how, and when to guide. `interval` is in t: 0 is noise, 1 is clean."""

    cfg_scale: float = 4.0
    image_cfg_scale: float = 1.0
    norm: str = "none"
    interval: tuple[float, float] = (0.0, 1.0)
    pictures: bool = False
    """Whether the prompt has pictures: the rules of edit and interleave instead of text to image's."""

    def __post_init__(self) -> None:
        if self.norm not in NORMS:
            raise U1Error(f"guidance norm {self.norm!r} is none of {', '.join(NORMS)}{nearest(self.norm, NORMS)}")
        if self.norm == "cfg_zero_star" and self.pictures:
            raise U1Error("guidance norm 'cfg_zero_star' is for text to image only; use none, global or channel")
        if not 0 <= self.interval[0] <= self.interval[1] <= 1:
            raise U1Error(f"guidance interval {self.interval} must be two times from 0 to 1, the earlier first")

    @property
    def branches(self) -> tuple[Branch, ...]:
        """The branches that guided steps run, the conditional one first."""
        if not self.pictures:
            return (Branch.CONDITIONAL, Branch.UNCONDITIONAL) if self.cfg_scale > 1 else (Branch.CONDITIONAL,)
        if self.cfg_scale == self.image_cfg_scale:
            return (Branch.CONDITIONAL, Branch.UNCONDITIONAL) if self.cfg_scale != 1 else (Branch.CONDITIONAL,)
        if self.image_cfg_scale == 1:
            return Branch.CONDITIONAL, Branch.TEXT_FREE
        return Branch.CONDITIONAL, Branch.TEXT_FREE, Branch.UNCONDITIONAL

    def branches_at(self, t: Tensor) -> tuple[Branch, ...]:
        """The branches to run at t (a scalar tensor). With pictures the interval's ends are left out, but for 0."""
        low, high = self.interval
        within = (low < t < high) or low == 0 if self.pictures else low <= t <= high
        return self.branches if within else (Branch.CONDITIONAL,)

    def combine(self, v: Mapping[Branch, Tensor], first_step: bool, token_pixels: int) -> Tensor:
        """One velocity (B, 3, H, W) from the branches' (each of that shape)."""
        v_c = v[Branch.CONDITIONAL]
        if len(v) == 1:
            return v_c
        if self.norm == "cfg_zero_star":
            return _zero_star(v_c, v[Branch.UNCONDITIONAL], self.cfg_scale, first_step)
        if len(v) == 3:
            v_i, v_u = v[Branch.TEXT_FREE], v[Branch.UNCONDITIONAL]
            guided = v_u + self.cfg_scale * (v_c - v_i) + self.image_cfg_scale * (v_i - v_u)
        else:
            _, v_other = v.values()
            guided = v_other + self.cfg_scale * (v_c - v_other)
        strong = self.cfg_scale > 1 or self.image_cfg_scale > 1
        return guided * _norm_ratio(self.norm, v_c, guided, token_pixels) if strong else guided


def _norm_ratio(norm: str, v_c: Tensor, guided: Tensor, token_pixels: int) -> Tensor | float:
    """min(1, |v_c| / |guided|), over the whole picture ("global") or token by token ("channel")."""
    if norm == "global":
        return _capped_ratio(v_c.flatten(1).norm(dim=1), guided.flatten(1).norm(dim=1)).view(-1, 1, 1, 1)
    if norm == "channel":
        by_token = _capped_ratio(*(to_patches(x, token_pixels).norm(dim=-1) for x in (v_c, guided)))
        by_row = by_token.repeat_interleave(token_pixels, dim=1)
        return by_row.repeat_interleave(token_pixels, dim=2).unsqueeze(1)
    return 1.0


def _capped_ratio(conditional: Tensor, guided: Tensor) -> Tensor:
    return (conditional / (guided + 1e-8)).clamp(max=1.0)


def _zero_star(v_c: Tensor, v_u: Tensor, scale: float, first_step: bool) -> Tensor:
    """CFG-Zero*: v_u scaled by <v_c, v_u> / |v_u|², and nothing at all in the first step."""
    if first_step:
        return torch.zeros_like(v_c)
    dot = (v_c * v_u).flatten(1).sum(dim=1)
    share = (dot / (v_u.square().flatten(1).sum(dim=1) + 1e-8)).view(-1, 1, 1, 1)
    return v_u * share + scale * (v_c - v_u * share)
