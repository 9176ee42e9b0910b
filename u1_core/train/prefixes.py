"""The prefix K/V that training needs: one for each caption and one for the empty prompt.

Captions are taken in blocks of neighbours, each built in one pass over the understanding tower. A block's K/V is the
same bits whenever it is built, so it may be let go and built again: a small set is built once and kept, of a large one
only what the present stretch of the run is trained on (`rng.sample_of_draw` keeps that together).
"""

import hashlib
import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

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
from u1_core.train.prefix_files import read_prefixes, write_prefixes
from u1_core.train.recipe import Recipe
from u1_core.train.rng import BLOCK, WINDOW

KEPT_BLOCKS = 2 * WINDOW // BLOCK
"""More are not kept, whatever the memory allowed: of a larger set, they come too late to be used again."""

Build = Callable[[Sequence[TokenSequence]], list[PrefixKV]]


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
        text = training_caption(sample.caption, style.trigger, style.prompt_template, think)
        return build_sequence(self._tokenizer, text)


class CaptionKVs(Sequence[PrefixKV]):
    """K/V of every caption, by the sample's number: at hand, from a folder, or built."""

    def __init__(
        self,
        sequences: Sequence[TokenSequence],
        build: Build,
        device: torch.device,
        budget_bytes: int,
        folder: Path | None = None,
        salt: str = "",
    ) -> None:
        """They rest on `device`. `folder` keeps blocks for later; `salt` tells apart what else their K/V depends on."""
        self._sequences, self._build, self._device = sequences, build, device
        self._budget_bytes, self._folder, self._salt = budget_bytes, folder, salt
        self._blocks: OrderedDict[int, list[PrefixKV]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._sequences)

    def __getitem__(self, index: int) -> PrefixKV:
        if not 0 <= index < len(self):
            raise IndexError(index)
        number = index // BLOCK
        if number not in self._blocks:
            moved: dict[int, KVChunk] = {}
            self._blocks[number] = [move_prefix(prefix, self._device, moved) for prefix in self._block(number)]
            while len(self._blocks) > 1 and (len(self._blocks) > KEPT_BLOCKS or self.n_bytes > self._budget_bytes):
                self._blocks.popitem(last=False)
        self._blocks.move_to_end(number)
        return self._blocks[number][index % BLOCK]

    @property
    def n_bytes(self) -> int:
        """Bytes that are held now."""
        return sum(prefix_bytes(block) for block in self._blocks.values())

    def fill(self) -> None:
        """Build a small set whole; of a large one, each block when its turn has come."""
        if len(self) <= WINDOW:
            for index in range(0, len(self), BLOCK):
                self[index]

    def _block(self, number: int) -> list[PrefixKV]:
        sequences = [self._sequences[i] for i in range(number * BLOCK, min(len(self), (number + 1) * BLOCK))]
        if self._folder is None:
            return self._build(sequences)
        path = self._folder / f"{_key(self._salt, sequences)}.safetensors"
        kept = read_prefixes(path)
        if kept is not None:
            return kept
        built = self._build(sequences)
        try:
            write_prefixes(path, built)
        except U1Error as problem:
            logging.getLogger(__name__).warning("prefix K/V is not kept: %s", problem)
            self._folder = None
        return built


@dataclass(frozen=True)
class CaptionPrefixes:
    """K/V of every caption, by the sample's number, and of the empty prompt that takes a dropped caption's place."""

    captions: Sequence[PrefixKV]
    unconditional: PrefixKV | None
    """None where the recipe drops none."""

    @property
    def n_bytes(self) -> int:
        """Bytes that are held now."""
        captions = self.captions.n_bytes if isinstance(self.captions, CaptionKVs) else prefix_bytes(self.captions)
        return captions + (prefix_bytes([self.unconditional]) if self.unconditional else 0)


def build_caption_prefixes(
    session: Session, recipe: Recipe, sequences: Sequence[TokenSequence], adapters: Sequence[Adapter] = ()
) -> CaptionPrefixes:
    """Those of a small set now, of a large one as they are needed, with the understanding side of `adapters`."""
    train, runtime = recipe.train, recipe.runtime
    resting = session.device if runtime.keep_kvs_on_gpu else torch.device(runtime.cpu_device)
    terms = tower_terms(session.config, adapters, UNDERSTANDING)

    def build(wanted: Sequence[TokenSequence]) -> list[PrefixKV]:
        return [built.kv for built in build_prefixes(session.config, session.understanding, wanted, terms)]

    unconditional = None
    if train.cond_dropout_text + train.cond_dropout_both > 0:
        empty = build_sequence(session.tokenizer, training_unconditional(recipe.style.prompt_template))
        unconditional = move_prefix(build([empty])[0], resting)
    folder = Path(runtime.prefix_dir).expanduser() if runtime.prefix_dir else None
    salt = _salt(session, adapters) if folder else ""
    captions = CaptionKVs(sequences, build, resting, runtime.prefix_cache_mb * 10**6, folder, salt)
    captions.fill()
    return CaptionPrefixes(captions, unconditional)


def move_prefix(prefix: PrefixKV, device: torch.device, moved: dict[int, KVChunk] | None = None) -> PrefixKV:
    """`prefix` on `device`. `moved` remembers chunks by identity, so that one that several share stays shared."""
    moved = {} if moved is None else moved
    for chunk in prefix.chunks:
        if id(chunk) not in moved:
            same = chunk.k.device == device
            moved[id(chunk)] = chunk if same else KVChunk(chunk.k.to(device), chunk.v.to(device))
    return PrefixKV(tuple(moved[id(chunk)] for chunk in prefix.chunks), prefix.next_t)


def _salt(session: Session, adapters: Sequence[Adapter]) -> str:
    """Of all that K/V depends on besides the prompts: the model, the numbers it is computed in and by, the adapters."""
    digest = hashlib.blake2b(f"{session.snapshot.fingerprint()} {session.dtype} {_machine(session.device)}".encode())
    for adapter in adapters:
        for path, module in sorted(adapter.modules.items()):
            digest.update(f"{path} {module.alpha} {adapter.strength}".encode())
            for tensor in (module.down, module.up):
                digest.update(tensor.detach().float().cpu().numpy().tobytes())
    return digest.hexdigest()


def _machine(device: torch.device) -> str:
    """What rounds as this does: another card or another PyTorch may not."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    return f"{name} torch {torch.__version__}"


def _key(salt: str, sequences: Sequence[TokenSequence]) -> str:
    digest = hashlib.blake2b(salt.encode(), digest_size=16)
    for sequence in sequences:
        digest.update(f"{sequence.ids.tolist()}\n".encode())
    return digest.hexdigest()
