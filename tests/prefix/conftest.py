"""Prompts made of ids and pictures, without a tokenizer."""

from collections.abc import Callable

import pytest
import torch

from u1_core.text.sequence import PicturePatches, Span, TokenSequence


def picture(config, rows: int, columns: int, seed: int) -> PicturePatches:
    """A random picture of rows x columns tokens."""
    grid = (rows * config.merge, columns * config.merge)
    generator = torch.Generator().manual_seed(seed)
    return PicturePatches(torch.randn(grid[0] * grid[1], 3 * config.patch_size**2, generator=generator), grid)


def make_sequence(config, *parts: list[int] | PicturePatches) -> TokenSequence:
    """A prompt of these parts in turn, written out token by token."""
    ids, positions, spans, pictures, t = [], [], [], [], 0
    for part in parts:
        start = len(ids)
        if isinstance(part, PicturePatches):
            rows, columns = (side // config.merge for side in part.grid)
            ids += [275] * (rows * columns)
            positions += [(t, row, column) for row in range(rows) for column in range(columns)]
            pictures.append(part)
            t += 1
        else:
            ids += part
            positions += [(t + i, 0, 0) for i in range(len(part))]
            t += len(part)
        spans.append(Span(start, len(ids), isinstance(part, PicturePatches)))
    return TokenSequence(torch.tensor(ids), torch.tensor(positions).T, tuple(spans), tuple(pictures))


@pytest.fixture(scope="session")
def sequence() -> Callable[..., TokenSequence]:
    return make_sequence


@pytest.fixture(scope="session")
def random_picture() -> Callable[..., PicturePatches]:
    return picture


@pytest.fixture(scope="session")
def words() -> Callable[[int, int], list[int]]:
    """(tokens, seed) -> random ids of text."""
    return lambda tokens, seed: torch.randint(0, 270, (tokens,), generator=torch.Generator().manual_seed(seed)).tolist()


@pytest.fixture(scope="session")
def direct() -> Callable:
    """(model, sequence, terms=None) -> (hidden of the last token, K, V) by one understanding pass of its own."""
    from u1_core.model.attention import Segment
    from u1_core.model.understanding import embed_picture, embed_tokens, understanding_pass

    def run(model, sequence: TokenSequence, terms=None):
        h, pictures = embed_tokens(model.understanding, sequence.ids), iter(sequence.pictures)
        for span in sequence.spans:
            if span.picture:
                seen = next(pictures)
                patches = seen.patches.unflatten(0, seen.grid)
                h[span.start : span.end] = embed_picture(model.config, model.understanding, patches)
        segments = [Segment(span.start, span.end, ((0, span.end),), not span.picture) for span in sequence.spans]
        with torch.no_grad():
            hidden, k, v = understanding_pass(
                model.config, model.understanding, h, sequence.positions, segments, terms=terms
            )
        return hidden[-1], k, v

    return run
