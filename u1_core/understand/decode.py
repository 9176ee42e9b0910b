"""Text, token by token: what a prefix says next."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from u1_core.errors import U1Error
from u1_core.model.understanding import logits
from u1_core.model.views import Understanding
from u1_core.prefix.decode import GrowingPrefix


@dataclass(frozen=True)
class TextSettings:
    """How the next token is chosen: the likeliest at temperature 0, else drawn."""

    temperature: float = 0.0
    top_p: float = 1.0
    """Draw from the likeliest tokens that together hold this share of the probability."""
    top_k: int = 0
    """Draw from this many of the likeliest tokens; 0 is all."""
    repetition_penalty: float = 1.0
    """Above 1, tokens already said become less likely (Keskar et al., CTRL, 2019)."""
    seed: int = 42
    max_tokens: int = 1024

    def __post_init__(self) -> None:
        if self.temperature < 0 or self.repetition_penalty <= 0 or not 0 < self.top_p <= 1 or self.top_k < 0:
            raise U1Error(
                f"temperature {self.temperature} must be at least 0, top_p {self.top_p} above 0 and at most 1, "
                f"top_k {self.top_k} at least 0, repetition_penalty {self.repetition_penalty} above 0"
            )
        if self.max_tokens < 1:
            raise U1Error(f"max_tokens {self.max_tokens} must be at least 1")


GREEDY = TextSettings()


def say(
    weights: Understanding, prefix: GrowingPrefix, stop_ids: frozenset[int], settings: TextSettings = GREEDY
) -> Iterator[int]:
    """Yield tokens one at a time, each appended to `prefix`, until a stop token comes or max_tokens are said.

    A stop token is neither yielded nor appended; `peek` tells which it was.
    """
    generator = torch.Generator().manual_seed(settings.seed)
    said: list[int] = []
    while len(said) < settings.max_tokens:
        token = choose(logits(weights, prefix.last_hidden), said, settings, generator)
        if token in stop_ids:
            return
        said.append(token)
        prefix.append_text([token])
        yield token


def peek(weights: Understanding, prefix: GrowingPrefix) -> int:
    """The token that greedy decoding would say next."""
    return int(logits(weights, prefix.last_hidden).argmax())


def choose(row: Tensor, said: list[int], settings: TextSettings, generator: torch.Generator) -> int:
    """The next token from one row of logits (vocabulary,): penalty, temperature, top-k, top-p, in that order."""
    row = row.float().cpu().clone()
    if said and settings.repetition_penalty != 1:
        seen = torch.tensor(sorted(set(said)))
        scores = row[seen]
        penalty = settings.repetition_penalty
        row[seen] = torch.where(scores > 0, scores / penalty, scores * penalty)
    if settings.temperature == 0:
        return int(row.argmax())
    ranked, ids = (row / settings.temperature).sort(descending=True, stable=True)
    if settings.top_k:
        ranked, ids = ranked[: settings.top_k], ids[: settings.top_k]
    probabilities = ranked.softmax(0)
    before = probabilities.cumsum(0) - probabilities
    probabilities[before >= settings.top_p] = 0
    return int(ids[torch.multinomial(probabilities, 1, generator=generator)])
