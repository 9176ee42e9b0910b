"""Which prompts are built together, and what is known of each before it is built."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from u1_core.model.config import Shape, U1Config
from u1_core.prefix import build, keys
from u1_core.text.sequence import TokenSequence

BLOCK = 128
"""Prompts that are neighbours: no unit reaches over the end of a block. A training set's order keeps them together."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """What there is to know of a prompt without its tokens. `tokens` counts those that it does not share."""

    tokens: int
    next_t: int
    headed: bool
    """Whether it begins with the shared head."""


@dataclass(frozen=True)
class PromptSet:
    """Prompts by number. Those of `alone` have the numbers after the last and are built by themselves."""

    config: U1Config
    dtype: torch.dtype
    sequences: Sequence[TokenSequence]
    head: tuple[int, ...]
    """The tokens that prompts share if they begin with them."""
    salt: str
    """On what else K/V depends; see `keys.salt`."""
    alone: Sequence[TokenSequence] = ()


class Units:
    """A set of prompts cut into units: neighbours of so many tokens as go through a layer at once.

    A unit follows from its block's prompts alone. Prompts are tokenised when something is asked of their block.
    """

    def __init__(self, prompts: PromptSet) -> None:
        self._set = prompts
        self._prompts: dict[int, Prompt] = {}
        self._units: dict[int, list[range]] = {}

    def prompt(self, number: int) -> Prompt:
        if number not in self._prompts:
            sequence, head = self.sequence(number), self._set.head
            headed = build.opens_with(sequence, head)
            self._prompts[number] = Prompt(len(sequence.ids) - len(head) * headed, sequence.next_t, headed)
        return self._prompts[number]

    def sequence(self, number: int) -> TokenSequence:
        count = len(self._set.sequences)
        return self._set.sequences[number] if number < count else self._set.alone[number - count]

    def all(self) -> Iterator[range]:
        """Every unit in turn."""
        count = len(self._set.sequences)
        for start in (*range(0, count, BLOCK), *range(count, count + len(self._set.alone))):
            yield from self._in_block(start)

    def of(self, number: int) -> range:
        """The numbers of the prompts that this one is built with, itself included."""
        start = number // BLOCK * BLOCK if number < len(self._set.sequences) else number
        return next(unit for unit in self._in_block(start) if number in unit)

    def key(self, unit: range) -> str:
        """By which a unit's K/V is found again."""
        return keys.key(self._set.salt, self._set.head, map(self.sequence, unit))

    @property
    def head_key(self) -> str:
        """By which the head's K/V is found again."""
        return keys.key(self._set.salt, self._set.head)

    def shape(self, tokens: int) -> Shape:
        """Of the K, and of the V, of so many tokens."""
        return self._set.config.layers, tokens, self._set.config.kv_heads, self._set.config.head_dim

    def n_bytes(self, numbers: range) -> int:
        """Bytes of these prompts' K/V without the head's."""
        return sum(self.prompt(number).tokens for number in numbers) * self._token_bytes

    def estimated_bytes(self, count: int) -> int:
        """Bytes of the K/V of `count` prompts, if they are as long as the first block's."""
        first = range(min(BLOCK, len(self._set.sequences)))
        return self.n_bytes(first) * count // max(1, len(first))

    @property
    def _token_bytes(self) -> int:
        return self._set.config.kv_token_bytes // 2 * self._set.dtype.itemsize

    def _in_block(self, start: int) -> list[range]:
        if start not in self._units:
            count = len(self._set.sequences)
            stop = min(start + BLOCK, count) if start < count else start + 1
            units, tokens = [range(start, start)], 0
            for number in range(start, stop):
                tokens += self.prompt(number).tokens
                if tokens > build.GROUP_TOKENS and units[-1]:
                    units.append(range(number, number))
                    tokens = self.prompt(number).tokens
                units[-1] = range(units[-1].start, number + 1)
            self._units[start] = units
        return self._units[start]
