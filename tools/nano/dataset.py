"""The scenes as batches on the GPU: pictures, and prompts in the engine's own words, tokenised and padded."""

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context

import numpy as np
import tokenizers
import torch
from torch import Tensor

from u1_core.text import prompts
from u1_core.text.tokenizer import SPECIAL_TOKENS

from .captions import caption, describe_full
from .edits import edits
from .losses import Prompts
from .model import SIZE, train_tokenizer
from .questions import questions
from .render import render
from .scene import random_scene

CAPTIONS, QUESTIONS = 4, 6
EDIT_EVERY = 3
"""One scene in this many comes with an edit, if not told otherwise."""
DESCRIBE = ("describe the picture.", "what do you see?", "write a caption for this picture.")
PICTURE_TOKENS = (SIZE // 16) ** 2
ANSWER = "<|im_start|>assistant\n"


@dataclass(frozen=True)
class SceneTexts:
    """What is said about one scene, and the edit that it comes with, if any."""

    captions: list[str]
    questions: list[tuple[str, str]]
    instruction: str | None


@dataclass(frozen=True)
class Task:
    """A batch of one task: prompts, and the pictures to be drawn (uint8) or where the answers begin."""

    prompts: Prompts
    target: Tensor | None = None
    answer_from: Tensor | None = None


@dataclass(frozen=True)
class Rows:
    """Prompts of one task with what each is about: the number of its picture, and of the one to be drawn."""

    head: Tensor
    ids: Tensor
    lengths: Tensor
    picture: Tensor
    target: Tensor
    answer_from: Tensor
    has_picture: bool


class Dataset:
    """All scenes on the device, and a source of random batches."""

    def __init__(
        self, pictures: Tensor, rows: dict[str, Rows], tokenizer: tokenizers.Tokenizer, seconds: float
    ) -> None:
        self.pictures, self.rows, self.tokenizer, self.seconds = pictures, rows, tokenizer, seconds

    @classmethod
    def make(
        cls,
        scenes: int,
        seed: int,
        device: torch.device,
        workers: int,
        tokenizer: tokenizers.Tokenizer | None = None,
        edit_every: int = EDIT_EVERY,
    ) -> "Dataset":
        """Draw `scenes` scenes on `workers` processes. Their words make a tokenizer, unless one is given."""
        started = time.monotonic()
        pictures = np.empty((scenes + -(-scenes // edit_every), 3, SIZE, SIZE), dtype=np.uint8)
        texts: list[SceneTexts] = []
        after = scenes
        with get_context("fork").Pool(workers) as pool:
            numbers = range(seed * 10**7, seed * 10**7 + scenes)
            made = pool.imap(partial(make_scene, edit_every=edit_every), numbers, chunksize=64)
            for index, (text, before, edited) in enumerate(made):
                texts.append(text)
                pictures[index] = before
                if edited is not None:
                    pictures[after] = edited
                    after += 1
        tokenizer = tokenizer or train_tokenizer(_corpus(texts[:20_000]))
        rows = _rows(texts, tokenizer, device)
        return cls(torch.from_numpy(pictures[:after]).to(device), rows, tokenizer, time.monotonic() - started)

    def draw(self, task: str, size: int) -> Task:
        """A random batch."""
        ids = self.rows[task].ids
        return self.take(task, torch.randint(len(ids), (size,), device=ids.device))

    def take(self, task: str, pick: Tensor) -> Task:
        """The batch of these rows."""
        rows = self.rows[task]
        seen = self.pictures[rows.picture[pick]].float() / 255 if rows.has_picture else None
        target = self.pictures[rows.target[pick]] if task != "ask" else None
        prompts = Prompts(rows.head, rows.ids[pick].long(), rows.lengths[pick], seen)
        return Task(prompts, target, rows.answer_from[pick])

    def keep(self, task: str, which: Tensor) -> None:
        """Leave out all rows but these."""
        rows = self.rows[task]
        kept = {name: getattr(rows, name)[which] for name in ("ids", "lengths", "picture", "target", "answer_from")}
        self.rows[task] = replace(rows, **kept)

    def unconditional(self) -> Prompts:
        """The one prompt that dropped captions become."""
        rows = self.rows["unconditional"]
        return Prompts(rows.head, rows.ids.long(), rows.lengths)

    def lengths(self) -> dict[str, tuple[int, int]]:
        """(head, longest tail) of each task, in tokens."""
        return {task: (len(rows.head), rows.ids.shape[1]) for task, rows in self.rows.items()}


def make_scene(number: int, edit_every: int = EDIT_EVERY) -> tuple[SceneTexts, np.ndarray, np.ndarray | None]:
    """Scene `number`: its texts, its picture (3, H, W), and the picture after its edit."""
    rng = random.Random(f"nano/{number}")
    scene = random_scene(rng)
    said = [caption(scene, rng) for _ in range(CAPTIONS)]
    asked = list(questions(scene, rng))
    asked = rng.sample(asked, min(QUESTIONS, len(asked)))
    asked.append((rng.choice(DESCRIBE), describe_full(scene)))
    instruction, edited = None, None
    if number % edit_every == 0:
        instruction, scene_after = edits(scene, rng)
        edited = _planes(render(scene_after, SIZE))
    return SceneTexts(said, asked, instruction), _planes(render(scene, SIZE)), edited


def _planes(picture: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(picture.transpose(2, 0, 1))


def _corpus(texts: Sequence[SceneTexts]) -> list[str]:
    """What the tokenizer learns its words from: the world's texts, and the prompts around them many times over."""
    frame = [prompts.text_to_image("", think=True), prompts.text_to_image(""), prompts.SYSTEM_INTERLEAVE, ANSWER]
    said = [line for text in texts for line in (*text.captions, text.instruction or "")]
    asked = [line for text in texts for pair in text.questions for line in pair]
    return frame * 300 + said + asked


def _rows(texts: Sequence[SceneTexts], tokenizer: tokenizers.Tokenizer, device: torch.device) -> dict[str, Rows]:
    picture = f"<img>{'<IMG_CONTEXT>' * PICTURE_TOKENS}</img>"

    def with_picture(query: str) -> str:
        return query.replace("<image>", picture, 1)

    draw, edit, blind, ask = [], [], [], []
    edited = len(texts)
    for number, text in enumerate(texts):
        draw += [(prompts.text_to_image(said), number, number) for said in text.captions]
        if text.instruction is not None:
            edit.append((with_picture(prompts.edit(text.instruction, 1)), number, edited))
            blind.append((with_picture(prompts.edit_text_free(1)), number, edited))
            edited += 1
        ask += [
            (with_picture(prompts.ask(question, 1)) + answer + "<|im_end|>", number, number)
            for question, answer in text.questions
        ]
    made = {"draw": draw, "edit": edit, "edit text-free": blind, "ask": ask}
    made["unconditional"] = [(prompts.unconditional(), 0, 0)]
    return {task: _tokenised(made[task], tokenizer, device) for task in made}


def _tokenised(rows: Sequence[tuple[str, int, int]], tokenizer: tokenizers.Tokenizer, device: torch.device) -> Rows:
    encoded = [row.ids for row in tokenizer.encode_batch([query for query, _, _ in rows], add_special_tokens=False)]
    pad, context = (tokenizer.token_to_id(SPECIAL_TOKENS[name]) for name in ("pad", "img_context"))
    marker = tokenizer.encode(ANSWER, add_special_tokens=False).ids
    head = encoded[0].index(context) if context in encoded[0] else _common_length(encoded)
    length = -(-(max(map(len, encoded)) - head) // 8) * 8
    ids = np.full((len(encoded), length), pad, dtype=np.int16)
    for index, row in enumerate(encoded):
        ids[index, : len(row) - head] = row[head:]

    def as_tensor(values: list[int]) -> Tensor:
        return torch.tensor(values, device=device)

    return Rows(
        as_tensor(encoded[0][:head]),
        torch.from_numpy(ids).to(device),
        as_tensor([len(row) for row in encoded]),
        as_tensor([picture for _, picture, _ in rows]),
        as_tensor([target for _, _, target in rows]),
        as_tensor([_after_last(row, marker) for row in encoded]),
        context in encoded[0],
    )


def _common_length(rows: Sequence[list[int]]) -> int:
    """How many tokens all of them begin with, short of the shortest's last."""
    first, shortest = rows[0], min(map(len, rows)) - 1
    return next((i for i in range(shortest) if any(row[i] != first[i] for row in rows)), shortest)


def _after_last(row: list[int], marker: list[int]) -> int:
    """Where what follows the last `marker` begins; 0 if it is not there."""
    for start in range(len(row) - len(marker), -1, -1):
        if row[start : start + len(marker)] == marker:
            return start + len(marker)
    return 0
