"""Interleave: text with pictures in between, each picture read back before the text goes on."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from PIL import Image
from torch import Tensor

from u1_core.data.pictures import generated_patches
from u1_core.model.understanding import embed_picture
from u1_core.prefix.decode import GrowingPrefix
from u1_core.sample.branches import build_branches, draw
from u1_core.sample.edit import input_limits, input_patches
from u1_core.sample.euler import OnStep
from u1_core.sample.guidance import Branch
from u1_core.sample.settings import SampleSettings
from u1_core.session import Session
from u1_core.text import prompts
from u1_core.text.tokenizer import TextStream
from u1_core.understand.decode import TextSettings, peek, say

MAX_PICTURES = 10
MAX_TOKENS = 8192


def interleave(
    session: Session,
    prompt: str,
    pictures: Sequence[Image.Image],
    settings: SampleSettings,
    think: bool = False,
    system: str = prompts.SYSTEM_INTERLEAVE,
    max_tokens: int = MAX_TOKENS,
    limits: tuple[int, int] | None = None,
    on_step: OnStep | None = None,
) -> Iterator[str | Tensor]:
    """Yield text as it is said and each picture (1, 3, H, W) in [-1, 1] as it is drawn, at most ten.

    Greedy text until `<img>` (a picture follows) or the end. One generator, seeded once, gives every picture's noise.
    The session's lease is held until the iterator is exhausted or closed.
    """
    settings = replace(settings, batch=1, guidance=replace(settings.guidance, pictures=True))
    settings.check(session.config)
    patches = input_patches(session.config, pictures, limits or input_limits(session.config, len(pictures)))
    queries = {
        Branch.CONDITIONAL: (prompts.interleave(prompt, len(pictures), system, think), patches),
        Branch.TEXT_FREE: (prompts.interleave_text_free(len(pictures)), patches),
        Branch.UNCONDITIONAL: (prompts.unconditional(), ()),
    }
    with session.lease:
        built = build_branches(session, queries, settings)
        told = {branch: session.grow(prefix) for branch, prefix in built.items()}
        yield from _tell(session, told, settings, max_tokens, on_step)


def _tell(
    session: Session,
    told: dict[Branch, GrowingPrefix],
    settings: SampleSettings,
    max_tokens: int,
    on_step: OnStep | None,
) -> Iterator[str | Tensor]:
    tokenizer, weights = session.tokenizer, session.understanding
    generator = session.generator(settings.seed)
    # What is drawn is told to every branch that sees pictures; the unconditional one stays as it is.
    listeners = [prefix for branch, prefix in told.items() if branch is not Branch.UNCONDITIONAL]
    stops = frozenset({tokenizer.im_end, tokenizer.img_start})
    drawn = 0
    while True:
        stream, conditional = TextStream(tokenizer, skip_special=True), told[Branch.CONDITIONAL]
        for token in say(weights, conditional, stops, TextSettings(max_tokens=max_tokens)):
            max_tokens -= 1
            yield stream.feed(token)
        yield stream.flush()
        if max_tokens == 0 or drawn == MAX_PICTURES or peek(weights, conditional) != tokenizer.img_start:
            return
        for prefix in listeners:
            prefix.append_text([tokenizer.img_start])
        prefixes = {branch: prefix.kv for branch, prefix in told.items()}
        picture = draw(session, prefixes, settings, generator, on_step)
        drawn += 1
        yield picture
        seen = generated_patches(picture, session.config)
        tokens = embed_picture(session.config, weights, seen.patches.unflatten(0, seen.grid))
        grid = tuple(side // session.config.merge for side in seen.grid)
        for prefix in listeners:
            prefix.append_picture(tokens, grid, tokenizer.img_end)
