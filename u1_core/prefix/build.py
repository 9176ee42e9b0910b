"""Build prompts' K/V: any number of prompts in one pass over the understanding tower's weights.

Prompts that begin alike (every text-to-image prompt opens with the same system message) share a head: its tokens are
computed once, kept once, and each prompt adds its tail. The understanding pass is causal, so a head's K/V does not
depend on what follows it. Tails go through each layer in groups, so that activations stay small whatever their number.
Beside its K/V, a prompt needs the hidden state of its tokens until the pass is through: a twentieth of the bytes.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from u1_core.model.attention import KeysValues, Segment, segmented
from u1_core.model.config import UNDERSTANDING, U1Config
from u1_core.model.layer import decoder_layer
from u1_core.model.linear import TowerTerms
from u1_core.model.rope import rms_norm, rope_table
from u1_core.model.understanding import embed_picture, embed_tokens
from u1_core.model.views import KVChunk, LayerWeights, PrefixKV, Understanding
from u1_core.text.sequence import TokenSequence

SHORTEST_HEAD = 16
"""Tokens that prompts must have in common before they share a head."""
GROUP_TOKENS = 16384
"""Tokens that go through a layer together; a longer prompt is a group of its own."""


@dataclass(frozen=True)
class BuiltPrefix:
    """A prompt's K/V, and the hidden state (width,) of its last token after the final norm, from which it goes on."""

    kv: PrefixKV
    last_hidden: Tensor


@torch.no_grad()
def build_prefixes(
    config: U1Config, weights: Understanding, sequences: Sequence[TokenSequence], terms: TowerTerms | None = None
) -> list[BuiltPrefix]:
    """K/V of every sequence, equal to a pass for each up to rounding. Kept on the device of the weights."""
    terms = terms or TowerTerms.none(config.layers)
    shared, head_of = _find_heads(sequences)
    heads = [_Piece(sequence, 0, length) for sequence, length in shared]
    tails = [
        _Piece(sequence, heads[head].stop, len(sequence.ids), head) if head is not None else _whole(sequence)
        for sequence, head in zip(sequences, head_of, strict=True)
    ]
    _run(config, weights, heads, _grouped(tails), terms, weights.norm.device)
    return [
        BuiltPrefix(_joined(tail, heads), rms_norm(tail.last_hidden, weights.norm, config.rms_norm_eps))
        for tail in tails
    ]


@torch.no_grad()
def build_blocks(
    config: U1Config,
    weights: Understanding,
    blocks: Sequence[Sequence[TokenSequence]],
    head: Sequence[int] = (),
    terms: TowerTerms | None = None,
    rest: torch.device | None = None,
    on_prompts: Callable[[int], None] = lambda count: None,
) -> list[list[PrefixKV]]:
    """K/V of the prompts of every block, kept on `rest` (by default, the device of the weights).

    `on_prompts` is told each time how many prompts have gone through a layer. What it raises ends the pass.

    A prompt that begins with the tokens `head` and goes on shares their K/V, as its first chunk, with all others that
    do. The bits of a block are the same whichever blocks are built with it: no product has rows of two of them.
    """
    terms, rest = terms or TowerTerms.none(config.layers), rest or weights.norm.device
    opened = next((each for block in blocks for each in block if opens_with(each, head)), None)
    heads = [_Piece(opened, 0, len(head))] if opened else []
    pieces = [
        [_Piece(each, len(head), len(each.ids), 0) if opens_with(each, head) else _whole(each) for each in block]
        for block in blocks
    ]
    groups = [group for block in pieces for group in _grouped(block)]
    _run(config, weights, heads, groups, terms, rest, on_prompts)
    for piece in heads:
        piece.chunk = KVChunk(piece.chunk.k.to(rest), piece.chunk.v.to(rest))
    return [[_joined(piece, heads) for piece in block] for block in pieces]


def opens_with(sequence: TokenSequence, head: Sequence[int]) -> bool:
    """Whether a prompt begins with these tokens, in text, and goes on after them."""
    text = sequence.spans[0].end if not sequence.spans[0].picture else 0
    fits = 0 < len(head) <= text and len(head) < len(sequence.ids)
    return fits and sequence.ids[: len(head)].tolist() == list(head)


def prefix_bytes(prefixes: Sequence[PrefixKV]) -> int:
    """Bytes that these prefixes take together; a chunk that several share counts once."""
    chunks = {id(chunk): chunk.n_bytes for prefix in prefixes for chunk in prefix.chunks}
    return sum(chunks.values())


@dataclass(eq=False)
class _Piece:
    """Tokens `start:stop` of a sequence, which continue head number `head`, and what the pass makes of them."""

    sequence: TokenSequence
    start: int
    stop: int
    head: int | None = None
    chunk: KVChunk = field(init=False)
    last_hidden: Tensor = field(init=False)

    def __len__(self) -> int:
        return self.stop - self.start

    def segments(self, offset: int) -> Iterator[Segment]:
        """This piece's spans as segments, its first token being row `offset` of the packed tokens."""
        for span in self.sequence.spans:
            if span.end > self.start and span.start < self.stop:
                first = offset + max(span.start, self.start) - self.start
                end = offset + min(span.end, self.stop) - self.start
                yield Segment(first, end, ((offset, end),), causal=not span.picture, past=self.head)


class _Group:
    """Pieces packed end to end, on their way through the layers."""

    def __init__(self, config: U1Config, weights: Understanding, pieces: list[_Piece], rest: torch.device) -> None:
        """The K/V of the pieces is kept on `rest`."""
        self.pieces, self._rest = pieces, rest
        self.h = torch.cat([_embed(config, weights, piece) for piece in pieces])
        positions = torch.cat([piece.sequence.positions[:, piece.start : piece.stop] for piece in pieces], dim=1)
        self.rope = rope_table(config, positions.to(self.h.device))
        self.offsets = [sum(len(piece) for piece in pieces[:i]) for i in range(len(pieces))]
        self.segments = [s for piece, at in zip(pieces, self.offsets, strict=True) for s in piece.segments(at)]
        for piece in pieces:
            shape = (config.layers, len(piece), config.kv_heads, config.head_dim)
            piece.chunk = KVChunk(*(self.h.new_empty(shape, device=self._rest) for _ in range(2)))

    def run_layer(
        self, config: U1Config, index: int, view: LayerWeights, pasts: list[KeysValues], terms: TowerTerms
    ) -> None:
        attention = segmented(self.segments, pasts)
        self.h, k, v = decoder_layer(config, UNDERSTANDING, view, self.h, self.rope, attention, terms.layers[index])
        k, v = k.to(self._rest), v.to(self._rest)
        for piece, offset in zip(self.pieces, self.offsets, strict=True):
            rows = slice(offset, offset + len(piece))
            piece.chunk.k[index], piece.chunk.v[index] = k[rows], v[rows]
            piece.last_hidden = self.h[offset + len(piece) - 1]


def _embed(config: U1Config, weights: Understanding, piece: _Piece) -> Tensor:
    """The piece's embeddings (tokens, width): text from the table, pictures from the vision embedding."""
    h = embed_tokens(weights, piece.sequence.ids[piece.start : piece.stop])
    spans = [span for span in piece.sequence.spans if span.picture]
    for span, picture in zip(spans, piece.sequence.pictures, strict=True):
        if span.start >= piece.start and span.end <= piece.stop:
            patches = picture.patches.unflatten(0, picture.grid)
            h[span.start - piece.start : span.end - piece.start] = embed_picture(config, weights, patches)
    return h


def _whole(sequence: TokenSequence) -> _Piece:
    return _Piece(sequence, 0, len(sequence.ids))


def _run(
    config: U1Config,
    weights: Understanding,
    heads: list[_Piece],
    groups: Iterable[list[_Piece]],
    terms: TowerTerms,
    rest: torch.device,
    on_prompts: Callable[[int], None] = lambda count: None,
) -> None:
    """Take the heads, then all groups, through each layer before the next. The heads' K/V is on the device."""
    opening = [_Group(config, weights, heads, weights.norm.device)] if heads else []
    following = [_Group(config, weights, pieces, rest) for pieces in groups]
    for index in range(config.layers):
        view = weights.layers[index]
        for group in opening:
            group.run_layer(config, index, view, [], terms)
        pasts = [[(head.chunk.k[index], head.chunk.v[index])] for head in heads]
        for group in following:
            group.run_layer(config, index, view, pasts, terms)
            on_prompts(len(group.pieces))
        del view  # its memory is for the layer after the next


def _joined(tail: _Piece, heads: list[_Piece]) -> PrefixKV:
    chunks = (heads[tail.head].chunk, tail.chunk) if tail.head is not None else (tail.chunk,)
    return PrefixKV(chunks, tail.sequence.next_t)


def _grouped(pieces: list[_Piece]) -> Iterator[list[_Piece]]:
    group: list[_Piece] = []
    for piece in pieces:
        if group and sum(map(len, group)) + len(piece) > GROUP_TOKENS:
            yield group
            group = []
        group.append(piece)
    if group:
        yield group


def _find_heads(sequences: Sequence[TokenSequence]) -> tuple[list[tuple[TokenSequence, int]], list[int | None]]:
    """Which sequences open alike: (sequence, length) of each head, and each sequence's head number or None.

    A head ends before the first picture, and leaves each of its sequences at least one token.
    """
    families: dict[tuple[int, ...], list[int]] = {}
    for number, sequence in enumerate(sequences):
        families.setdefault(tuple(sequence.ids[:SHORTEST_HEAD].tolist()), []).append(number)
    heads: list[tuple[TokenSequence, int]] = []
    head_of: list[int | None] = [None] * len(sequences)
    for members in families.values():
        length = _common_length([sequences[number] for number in members])
        if len(members) > 1 and length >= SHORTEST_HEAD:
            for number in members:
                head_of[number] = len(heads)
            heads.append((sequences[members[0]], length))
    return heads, head_of


def _common_length(sequences: list[TokenSequence]) -> int:
    """How many text tokens all of them open with, short of the last token of the shortest."""
    first = sequences[0]
    length = min(len(sequence.ids) - 1 for sequence in sequences)
    length = min([length, *(span.start for sequence in sequences for span in sequence.spans if span.picture)])
    for other in sequences[1:]:
        differing = (first.ids[:length] != other.ids[:length]).nonzero()
        length = min(length, int(differing[0])) if len(differing) else length
    return length
