"""From a query with pictures to what the understanding pass reads: ids, positions and spans."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from u1_core.errors import U1Error
from u1_core.text.prompts import DRAW, IMAGE
from u1_core.text.tokenizer import SPECIAL_TOKENS, Tokenizer

PICTURE_TOKENS = tuple(SPECIAL_TOKENS[name] for name in ("img_start", "img_context", "img_end"))


@dataclass(frozen=True)
class Span:
    """Tokens `start` to `end` (exclusive) that see each other alike: text is causal, a picture sees itself whole."""

    start: int
    end: int
    picture: bool


@dataclass(frozen=True)
class PicturePatches:
    """An input picture as the vision embedder takes it: ImageNet-normalised fp32 patches, row by row."""

    patches: Tensor
    """(rows * columns, 3 * patch²), each as (channel, row, column)."""
    grid: tuple[int, int]
    """(rows, columns), in patches."""


@dataclass(frozen=True)
class TokenSequence:
    """A prompt's tokens."""

    ids: Tensor
    """(L,) int64."""
    positions: Tensor
    """(3, L) int64: time, row and column of each token."""
    spans: tuple[Span, ...]
    """One after another from 0 to L."""
    pictures: tuple[PicturePatches, ...]
    """One for each span that is a picture, in order."""

    @property
    def next_t(self) -> int:
        """The time of what comes after."""
        return int(self.positions[0].max()) + 1


def build_sequence(
    tokenizer: Tokenizer, query: str, pictures: Sequence[PicturePatches] = (), merge: int = 2
) -> TokenSequence:
    """Put `pictures` where `query` has its `<image>` marks and tokenise. `merge`² patches make one token.

    Raises U1Error if marks and pictures differ in number, or if the text itself holds the tokens of a picture.
    """
    blocks = [(picture.grid[0] // merge, picture.grid[1] // merge) for picture in pictures]
    text = put_pictures(query, [rows * columns for rows, columns in blocks])
    ids = torch.tensor(tokenizer.encode(text), dtype=torch.long)
    is_context = ids == tokenizer.img_context
    spans = tuple(_spans(is_context))
    positions = _positions(ids == tokenizer.img_start, is_context)
    for span, (rows, columns) in zip((span for span in spans if span.picture), blocks, strict=True):
        cell = torch.arange(rows * columns)
        positions[1, span.start : span.end] = cell // columns
        positions[2, span.start : span.end] = cell % columns
    return TokenSequence(ids, positions, spans, tuple(pictures))


def put_pictures(query: str, tokens: Sequence[int]) -> str:
    """`query` with `<img>`, context tokens and `</img>` in place of each mark, as many as `tokens` has for it.

    Raises U1Error if marks and pictures differ in number, or if the text itself holds the tokens of a picture.
    """
    for raw in PICTURE_TOKENS:
        if raw in query.removesuffix(DRAW):
            raise U1Error(f"the prompt holds the token {raw}, which only a picture may bring; write {IMAGE} for one")
    pieces = query.split(IMAGE)
    if len(pieces) - 1 != len(tokens):
        raise U1Error(f"the prompt marks {len(pieces) - 1} pictures with {IMAGE}, but {len(tokens)} are given")
    start, context, end = PICTURE_TOKENS
    return pieces[0] + "".join(
        start + context * count + end + piece for count, piece in zip(tokens, pieces[1:], strict=True)
    )


def _positions(is_img_start: Tensor, is_context: Tensor) -> Tensor:
    """(3, L) with times filled in: one more for each token of text, and one for a picture's tokens together.

    Without pictures this counts 0 to L - 1.
    """
    begins_picture = torch.zeros_like(is_context)
    begins_picture[1:] = is_img_start[:-1]
    times = (~is_context).long().add(begins_picture.long()).cumsum(0) - 1
    return torch.stack([times, torch.zeros_like(times), torch.zeros_like(times)])


def _spans(is_context: Tensor) -> Iterator[Span]:
    """Runs of tokens of one kind. Two pictures never touch: each stands between its `<img>` and `</img>`."""
    kinds, lengths = torch.unique_consecutive(is_context, return_counts=True)
    start = 0
    for picture, length in zip(kinds.tolist(), lengths.tolist(), strict=True):
        yield Span(start, start + length, picture)
        start += length
