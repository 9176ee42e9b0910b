"""The batched passes that U1-nano is trained with give what the engine's own passes give."""

import pytest
import torch

from tools.nano.losses import Prompts, draw_pass, prefix_pass
from u1_core.data.pictures import understanding_patches
from u1_core.model.generation import generation_pass
from u1_core.text import prompts
from u1_core.text.sequence import build_sequence


def padded(rows, head):
    length = max(map(len, rows)) - head
    return torch.tensor([row[head:] + [0] * (length - len(row) + head) for row in rows])


def of_sequences(sequences, head, picture=None):
    rows = [sequence.ids.tolist() for sequence in sequences]
    return Prompts(torch.tensor(rows[0][:head]), padded(rows, head), torch.tensor(list(map(len, rows))), picture)


def expected(session, sequences, z, t):
    prefixes = [built.kv for built in session.build_prefixes(sequences)]
    return generation_pass(session.config, session.generation, z, t, prefixes)


@pytest.fixture
def tiny_u1(session):
    return session("u1")


@pytest.fixture
def noisy(tiny_u1):
    torch.manual_seed(0)
    side = tiny_u1.config.token_pixels
    return torch.randn(2, 3, 3 * side, 4 * side), torch.tensor([0.2, 0.7])


@torch.no_grad()
def test_pictures_of_captions_and_of_no_caption(tiny_u1, noisy):
    tokenizer, config = tiny_u1.tokenizer, tiny_u1.config
    sequences = [
        build_sequence(tokenizer, prompts.text_to_image(text)) for text in ("a cat", "the image of a red house")
    ]
    empty = build_sequence(tokenizer, prompts.unconditional())
    tails = of_sequences(sequences, head=100)
    _, prefixes = prefix_pass(config, tiny_u1.understanding, tails)
    _, unconditional = prefix_pass(config, tiny_u1.understanding, of_sequences([empty], head=4))
    ours = draw_pass(config, tiny_u1.generation, prefixes, *noisy, unconditional, torch.tensor([False, True]))
    theirs = expected(tiny_u1, [sequences[0], empty], *noisy)
    assert (ours - theirs).norm() / theirs.norm() < 1e-5


@torch.no_grad()
def test_pictures_of_edits(tiny_u1, noisy):
    from PIL import Image

    config, side = tiny_u1.config, tiny_u1.config.token_pixels
    seen = torch.rand(2, 3, 2 * side, 3 * side).mul(255).round().byte()
    images = [Image.fromarray(picture.permute(1, 2, 0).numpy()) for picture in seen]
    sequences = [
        build_sequence(
            tiny_u1.tokenizer, prompts.edit(text, 1), (understanding_patches(image, config, 1, 10**6),), config.merge
        )
        for text, image in zip(("bluer", "and more of the trees"), images, strict=True)
    ]
    head = next(span.start for span in sequences[0].spans if span.picture)
    batch = of_sequences(sequences, head, seen.float() / 255)
    hidden, prefixes = prefix_pass(config, tiny_u1.understanding, batch)
    ours = draw_pass(config, tiny_u1.generation, prefixes, *noisy)
    theirs = expected(tiny_u1, sequences, *noisy)
    assert (ours - theirs).norm() / theirs.norm() < 1e-5
    last = [hidden[row, len(sequence.ids) - head - 1] for row, sequence in enumerate(sequences)]
    built = tiny_u1.build_prefixes(sequences)
    for row, whole in zip(last, built, strict=True):
        assert (row - whole.last_hidden).norm() / whole.last_hidden.norm() < 1e-5
