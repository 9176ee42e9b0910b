"""Ask about pictures, or just talk."""

from collections.abc import Iterator, Sequence

from PIL import Image

from u1_core.model.config import U1Config
from u1_core.sample.edit import input_patches
from u1_core.session import Session
from u1_core.text import prompts
from u1_core.text.sequence import build_sequence
from u1_core.text.tokenizer import TextStream
from u1_core.understand.decode import GREEDY, TextSettings, say


def input_limits(config: U1Config) -> tuple[int, int]:
    """Fewest and most pixels of a picture that is asked about: 256² and 2048² in the released models."""
    return config.native_pixels // 64, config.native_pixels


def ask(
    session: Session,
    question: str,
    pictures: Sequence[Image.Image] = (),
    history: Sequence[tuple[str, str]] = (),
    settings: TextSettings = GREEDY,
    limits: tuple[int, int] | None = None,
) -> Iterator[str]:
    """Yield the answer as it is said. `history` holds the (question, answer) pairs before; the pictures' marks may
    stand in any of the questions."""
    patches = input_patches(session.config, pictures, limits or input_limits(session.config))
    query = prompts.ask(question, len(pictures), history)
    sequence = build_sequence(session.tokenizer, query, patches, merge=session.config.merge)
    stream = TextStream(session.tokenizer, skip_special=True)
    with session.lease:
        weights = session.speaking(len(sequence.ids) + settings.max_tokens)
        prefix = session.grow(*session.build_prefixes([sequence]))
        for token in say(weights, prefix, frozenset({session.tokenizer.im_end}), settings):
            yield stream.feed(token)
        yield stream.flush()
