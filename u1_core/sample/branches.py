"""From the prompts of the guidance branches to pictures: what text to image and edit have in common."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from u1_core.model.config import GENERATION
from u1_core.model.views import PrefixKV
from u1_core.prefix.build import BuiltPrefix
from u1_core.sample.euler import OnStep, denoise, draw_noise
from u1_core.sample.guidance import Branch
from u1_core.sample.schedule import sampling_timesteps
from u1_core.sample.settings import SampleSettings
from u1_core.sample.think import OnText, think_first
from u1_core.session import Session
from u1_core.text.sequence import PicturePatches, TokenSequence, build_sequence

Query = tuple[str, tuple[PicturePatches, ...]]
"""A prompt's text and the pictures of its `<image>` marks."""


@dataclass(frozen=True)
class Drawn:
    """Pictures (B, 3, H, W) in [-1, 1], fp32, and the reasoning that went before them, if any."""

    pictures: Tensor
    think_text: str = ""


def build_branches(
    session: Session, queries: Mapping[Branch, Query], settings: SampleSettings
) -> dict[Branch, BuiltPrefix]:
    """The prompts of the settings' branches, in one pass over the understanding tower, with room left to draw."""
    branches = settings.guidance.branches
    sequences: list[TokenSequence] = [
        build_sequence(session.tokenizer, *queries[branch], merge=session.config.merge) for branch in branches
    ]
    session.make_room(settings.shape, len(branches), max(len(sequence.ids) for sequence in sequences))
    return dict(zip(branches, session.build_prefixes(sequences), strict=True))


def draw_prompt(
    session: Session,
    queries: Mapping[Branch, Query],
    settings: SampleSettings,
    think: bool,
    on_step: OnStep | None,
    on_text: OnText | None,
) -> Drawn:
    """Build the prompts, reason first if asked, and draw."""
    with session.lease:
        built = build_branches(session, queries, settings)
        prefixes, think_text = {branch: prefix.kv for branch, prefix in built.items()}, ""
        if think:
            prefixes[Branch.CONDITIONAL], think_text = think_first(session, built[Branch.CONDITIONAL], on_text)
        return Drawn(draw(session, prefixes, settings, session.generator(settings.seed), on_step), think_text)


def draw(
    session: Session,
    prefixes: Mapping[Branch, PrefixKV],
    settings: SampleSettings,
    generator: torch.Generator,
    on_step: OnStep | None = None,
) -> Tensor:
    """From built prompts to pictures (B, 3, H, W) in [-1, 1], with the session's LoRAs; noise from `generator`."""
    noise = draw_noise(session.config, settings.shape, generator, session.dtype).to(session.device)
    timesteps = sampling_timesteps(settings.steps, settings.shift)
    session.make_room(settings.shape, len(settings.guidance.branches), max(kv.tokens for kv in prefixes.values()))
    weights, terms = session.generation, session.terms(GENERATION)
    return denoise(
        session.config, weights, noise, prefixes, settings.guidance, timesteps, terms, on_step, settings.t_eps
    )
