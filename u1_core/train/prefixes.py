"""The prefix K/V that training needs: one for each caption and one for the empty prompt, built once and kept."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from u1_core.data.folder import Sample
from u1_core.errors import U1Error
from u1_core.lora.adapter import Adapter, tower_terms
from u1_core.model.config import UNDERSTANDING
from u1_core.model.views import KVChunk, PrefixKV
from u1_core.prefix.build import build_prefixes, prefix_bytes
from u1_core.session import Session
from u1_core.text.prompts import training_caption, training_unconditional
from u1_core.text.sequence import TokenSequence, build_sequence
from u1_core.text.tokenizer import Tokenizer
from u1_core.train.recipe import Recipe

BUILT_TOGETHER = 512
"""Captions in one pass over the understanding tower: their K/V is on the device until it is done."""


@dataclass(frozen=True)
class CaptionPrefixes:
    """K/V of every caption, by the sample's number, and of the empty prompt that takes a dropped caption's place."""

    captions: Sequence[PrefixKV]
    unconditional: PrefixKV | None
    """None where the recipe drops none."""

    @property
    def n_bytes(self) -> int:
        return prefix_bytes([*self.captions, *([self.unconditional] if self.unconditional else [])])


def caption_sequences(
    tokenizer: Tokenizer, recipe: Recipe, samples: Sequence[Sample]
) -> tuple[list[TokenSequence], dict[str, str]]:
    """Every caption's prompt as tokens, and sample id -> problem for those that cannot be one."""
    sequences, problems = [], {}
    for sample in samples:
        think = sample.think if recipe.data.use_think_labels else None
        text = training_caption(sample.caption, recipe.style.trigger, recipe.style.prompt_template, think)
        try:
            sequences.append(build_sequence(tokenizer, text))
        except U1Error as problem:
            problems[sample.id] = str(problem)
    return sequences, problems


def build_caption_prefixes(
    session: Session, recipe: Recipe, sequences: Sequence[TokenSequence], adapters: Sequence[Adapter] = ()
) -> CaptionPrefixes:
    """Build them all, with the understanding side of `adapters` if they have one."""
    train, runtime = recipe.train, recipe.runtime
    dropping = train.cond_dropout_text + train.cond_dropout_both > 0
    empty = build_sequence(session.tokenizer, training_unconditional(recipe.style.prompt_template))
    wanted = [*sequences, *([empty] if dropping else [])]
    terms = tower_terms(session.config, adapters, UNDERSTANDING)
    resting = session.device if runtime.keep_kvs_on_gpu else torch.device(runtime.cpu_device)
    built: list[PrefixKV] = []
    for start in range(0, len(wanted), BUILT_TOGETHER):
        batch = build_prefixes(session.config, session.understanding, wanted[start : start + BUILT_TOGETHER], terms)
        moved: dict[int, KVChunk] = {}
        built += [move_prefix(prefix.kv, resting, moved) for prefix in batch]
    return CaptionPrefixes(built[: len(sequences)], built[-1] if dropping else None)


def move_prefix(prefix: PrefixKV, device: torch.device, moved: dict[int, KVChunk] | None = None) -> PrefixKV:
    """`prefix` on `device`. `moved` remembers chunks by identity, so that one that several share stays shared."""
    moved = {} if moved is None else moved
    for chunk in prefix.chunks:
        if id(chunk) not in moved:
            same = chunk.k.device == device
            moved[id(chunk)] = chunk if same else KVChunk(chunk.k.to(device), chunk.v.to(device))
    return PrefixKV(tuple(moved[id(chunk)] for chunk in prefix.chunks), prefix.next_t)
