"""The prefix K/V that training needs: one for each caption and one for the empty prompt.

All are built in one pass over the understanding tower before the first step, and kept in a folder for later runs. Of a
set that is too large for it, what the present stretch of the run needs is built when its turn has come.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from u1_core.data.folder import Sample
from u1_core.errors import U1Error
from u1_core.lora.adapter import Adapter, tower_terms
from u1_core.model.config import UNDERSTANDING
from u1_core.model.views import KVChunk, PrefixKV
from u1_core.prefix.build import SHORTEST_HEAD, build_blocks
from u1_core.prefix.files import default_folder
from u1_core.prefix.keys import salt
from u1_core.prefix.store import OnPrompts, PrefixStore, Room
from u1_core.prefix.units import PromptSet, Units
from u1_core.session import Session
from u1_core.text.prompts import training_caption, training_unconditional
from u1_core.text.sequence import TokenSequence, build_sequence
from u1_core.text.tokenizer import Tokenizer
from u1_core.train.recipe import Recipe, Runtime
from u1_core.train.rng import WINDOW

BUILT_WHOLE = 4096
"""Captions of a set that is built before the first step; a larger one is built as the run comes to it."""
KEPT_OF_LARGE = 2 * WINDOW
"""Captions of such a set that memory holds: a stretch that is shuffled together, and the one after it."""


class CaptionSequences(Sequence[TokenSequence]):
    """Captions' prompts as tokens, made when they are asked for."""

    def __init__(self, tokenizer: Tokenizer, recipe: Recipe, samples: Sequence[Sample]) -> None:
        self._tokenizer, self._recipe, self._samples = tokenizer, recipe, samples

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> TokenSequence:
        """Raises U1Error for a caption that cannot be a prompt."""
        sample, style = self._samples[index], self._recipe.style
        think = sample.think if self._recipe.data.use_think_labels else None
        trigger = style.trigger if style.triggers(sample.id) else ""
        text = training_caption(sample.caption, trigger, style.prompt_template, think)
        return build_sequence(self._tokenizer, text)

    def head(self) -> tuple[int, ...]:
        """The tokens with which every caption's prompt begins, whatever the caption; none if they are but a few."""
        style = self._recipe.style
        triggers = (style.trigger, "") if style.untriggered else (style.trigger,)
        told = [
            self._tokenizer.encode(training_caption(caption, trigger, style.prompt_template))
            for trigger in triggers
            for caption in ("a", "0")
        ]
        differing = next(i for i, tokens in enumerate(zip(*told, strict=False)) if len(set(tokens)) > 1)
        return tuple(told[0][:differing]) if differing >= SHORTEST_HEAD else ()


@dataclass(frozen=True)
class CaptionPrefixes:
    """K/V of every caption, by the sample's number, and of the empty prompt that takes a dropped caption's place."""

    captions: PrefixStore
    unconditional: PrefixKV | None
    """None where the recipe drops none."""

    @property
    def n_bytes(self) -> int:
        """Bytes that are held in memory now."""
        return self.captions.n_bytes


def build_caption_prefixes(
    session: Session,
    recipe: Recipe,
    sequences: CaptionSequences,
    adapters: Sequence[Adapter] = (),
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> CaptionPrefixes:
    """Those of all captions, with the understanding side of `adapters`, or as many as there is room for.

    `on_progress` (done, total) is told of what is built; what it raises ends that. Raises U1Error if there is not even
    room for what a stretch of the run needs.
    """
    terms, head = tower_terms(session.config, adapters, UNDERSTANDING), sequences.head()

    def build(
        units: Sequence[Sequence[TokenSequence]], rest: torch.device, on_prompts: OnPrompts
    ) -> list[list[PrefixKV]]:
        return build_blocks(session.config, session.understanding, units, head, terms, rest, on_prompts)

    empty = []
    if recipe.train.cond_dropout_text + recipe.train.cond_dropout_both > 0:
        empty = [build_sequence(session.tokenizer, training_unconditional(recipe.style.prompt_template))]
    depends = salt(session.snapshot.fingerprint(), session.dtype, session.device, [*adapters, *session.folded])
    prompts = PromptSet(session.config, session.dtype, sequences, head, depends, empty)
    room = _room(recipe.runtime, session.device)
    if len(sequences) > BUILT_WHOLE:
        room = _room_for_a_stretch(room, Units(prompts).estimated_bytes(KEPT_OF_LARGE))
    store = PrefixStore(prompts, build, room, session.device)
    _refuse_too_little_room(store)
    if len(sequences) <= BUILT_WHOLE:
        store.fill(on_progress)
    return CaptionPrefixes(store, store.fetch(len(sequences)) if empty else None)


def move_prefix(prefix: PrefixKV, device: torch.device, moved: dict[int, KVChunk] | None = None) -> PrefixKV:
    """`prefix` on `device`. `moved` remembers chunks by identity, so that one that several share stays shared."""
    moved = {} if moved is None else moved
    for chunk in prefix.chunks:
        if id(chunk) not in moved:
            same = chunk.k.device == device
            moved[id(chunk)] = (
                chunk if same else KVChunk(*(each.to(device, non_blocking=True) for each in (chunk.k, chunk.v)))
            )
    return PrefixKV(tuple(moved[id(chunk)] for chunk in prefix.chunks), prefix.next_t)


def _room(runtime: Runtime, device: torch.device) -> Room:
    on_device = runtime.prefix_device_mb * 10**6 if runtime.keep_kvs_on_gpu and device.type == "cuda" else 0
    folder = Path(runtime.prefix_dir).expanduser() if runtime.prefix_dir else default_folder()
    return Room(on_device, runtime.prefix_cache_mb * 10**6, runtime.prefix_disk_mb * 10**6, folder)


def _room_for_a_stretch(room: Room, n_bytes: int) -> Room:
    """The same with no more memory than `n_bytes`: what would be kept beyond it comes too late to be used again."""
    return replace(room, device_bytes=min(room.device_bytes, n_bytes), host_bytes=min(room.host_bytes, n_bytes))


def _refuse_too_little_room(store: PrefixStore) -> None:
    """Raise U1Error if what is shuffled together does not fit: each step would build what the one before let go."""
    needed = store.estimated_bytes(min(len(store), WINDOW))
    if needed > store.capacity_bytes:
        raise U1Error(
            f"the prefix K/V of {min(len(store), WINDOW)} captions takes {needed / 1e6:,.0f} MB and there is room for "
            f"{store.capacity_bytes / 1e6:,.0f}: raise runtime.prefix_disk_mb (or, if that is 0, prefix_cache_mb)"
        )
