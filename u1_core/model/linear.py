"""A linear map with low-rank terms beside it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class LowRank:
    """One LoRA term of a module: adds `scale * up @ down` to its weight, without touching it.

    down is (rank, in_features), up (out_features, rank); `scale` is alpha / rank times the live strength. Any float
    dtype: they are cast to the activations' where they are used, so that training can keep them in fp32.
    """

    down: Tensor
    up: Tensor
    scale: float
    dropout: float = 0.0
    """Share of the inputs zeroed before `down`; drawn from `seed`, so a recomputed layer drops the same ones."""
    seed: int = 0

    def __call__(self, x: Tensor) -> Tensor:
        """(…, in_features) -> (…, out_features)."""
        down, up = self.down.to(x.dtype), self.up.to(x.dtype)
        return F.linear(F.linear(self.dropped(x), down), up) * self.scale

    def dropped(self, x: Tensor) -> Tensor:
        """`x` with that share of its numbers zeroed, the same for the same shape, and the others scaled up for it."""
        if not self.dropout:
            return x
        generator = torch.Generator(x.device).manual_seed(self.seed)
        kept = torch.rand(x.shape, generator=generator, device=x.device) >= self.dropout
        return x * (kept.to(x.dtype) / (1.0 - self.dropout))


LowRankTerms = Mapping[str, Sequence[LowRank]]
"""Low-rank terms by module: inside a layer by its local name ("self_attn.q_proj"), elsewhere by its full path."""

NO_TERMS: LowRankTerms = {}


@dataclass(frozen=True)
class TowerTerms:
    """The low-rank terms of one tower: a mapping for each layer by local name, and the rest by full module path."""

    layers: Sequence[LowRankTerms]
    modules: LowRankTerms

    @staticmethod
    def none(layers: int) -> "TowerTerms":
        """No terms anywhere, for a tower of `layers` layers."""
        return TowerTerms([NO_TERMS] * layers, NO_TERMS)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, terms: Sequence[LowRank] = ()) -> Tensor:
    """`x @ weight.T + bias` plus every low-rank term. (…, in_features) -> (…, out_features)."""
    y = F.linear(x, weight, bias)
    for term in terms:
        y = y + term(x)
    return y
