"""A prefix that grows token by token: what greedy text and interleaved pictures are appended to."""

from collections.abc import Sequence

import torch
from torch import Tensor

from u1_core.model.attention import Segment
from u1_core.model.config import U1Config
from u1_core.model.linear import TowerTerms
from u1_core.model.understanding import embed_tokens, understanding_pass
from u1_core.model.views import KVChunk, PrefixKV, Understanding
from u1_core.prefix.build import BuiltPrefix


class GrowingPrefix:
    """A built prompt and what has been said since. The room for new tokens doubles whenever it is full."""

    def __init__(
        self, config: U1Config, weights: Understanding, built: BuiltPrefix, terms: TowerTerms | None = None
    ) -> None:
        self._config, self._weights, self._terms = config, weights, terms
        self._prompt = built.kv.chunks
        self._tokens = 0
        self._room = KVChunk(*(built.kv.chunks[0].k.new_empty(self._shape(64)) for _ in range(2)))
        self.next_t = built.kv.next_t
        self.last_hidden = built.last_hidden

    @property
    def kv(self) -> PrefixKV:
        """The prefix as it stands now; appending leaves it as it is."""
        grown = KVChunk(self._room.k[:, : self._tokens], self._room.v[:, : self._tokens])
        return PrefixKV((*self._prompt, grown) if self._tokens else self._prompt, self.next_t)

    def append_text(self, ids: Sequence[int]) -> Tensor:
        """Say these tokens, each at the next t. Returns the hidden state (width,) of the last one."""
        t = torch.arange(self.next_t, self.next_t + len(ids))
        positions = torch.stack([t, torch.zeros_like(t), torch.zeros_like(t)])
        span = (0, len(ids))
        segments = [Segment(*span, keys=(span,), causal=True, past=0)]
        return self._append(embed_tokens(self._weights, torch.tensor(ids)), positions, segments)

    def append_picture(self, tokens: Tensor, grid: tuple[int, int], end_id: int) -> Tensor:
        """Show a picture's tokens (rows * columns, width), all at the next t, then `</img>` at the t after it."""
        rows, columns = grid
        n = rows * columns
        cells = torch.arange(n)
        positions = torch.zeros(3, n + 1, dtype=torch.int64)
        positions[0] = self.next_t
        positions[0, n] += 1
        positions[1, :n], positions[2, :n] = cells // columns, cells % columns
        h = torch.cat([tokens, embed_tokens(self._weights, torch.tensor([end_id]))])
        segments = [
            Segment(0, n, keys=((0, n),), causal=False, past=0),
            Segment(n, n + 1, keys=((0, n + 1),), causal=True, past=0),
        ]
        return self._append(h, positions, segments)

    @torch.no_grad()
    def _append(self, h: Tensor, positions: Tensor, segments: list[Segment]) -> Tensor:
        positions = positions.to(h.device)
        hidden, k, v = understanding_pass(self._config, self._weights, h, positions, segments, [self.kv], self._terms)
        self._make_room(len(h))
        rows = slice(self._tokens, self._tokens + len(h))
        self._room.k[:, rows], self._room.v[:, rows] = k, v
        self._tokens += len(h)
        self.next_t = int(positions[0, -1]) + 1
        self.last_hidden = hidden[-1]
        return self.last_hidden

    def _make_room(self, tokens: int) -> None:
        if self._tokens + tokens <= self._room.tokens:
            return
        larger = KVChunk(*(self._room.k.new_empty(self._shape(2 * (self._tokens + tokens))) for _ in range(2)))
        larger.k[:, : self._tokens], larger.v[:, : self._tokens] = (
            self._room.k[:, : self._tokens],
            self._room.v[:, : self._tokens],
        )
        self._room = larger

    def _shape(self, tokens: int) -> tuple[int, ...]:
        return self._config.layers, tokens, self._config.kv_heads, self._config.head_dim
