"""Text to token ids and back, from a model folder's tokenizer files.

The files are read with the `tokenizers` library itself, which transformers 4 and 5 both wrap: it loads at once, needs
no network and runs no code from the folder. ids equal those of both (tests/text/test_tokenizer.py).
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, normalizers, pre_tokenizers

from u1_core.errors import U1Error

SPECIAL_TOKENS = {
    "im_start": "<|im_start|>",
    "im_end": "<|im_end|>",
    "think_start": "<think>",
    "think_end": "</think>",
    "img_start": "<img>",
    "img_end": "</img>",
    "img_context": "<IMG_CONTEXT>",
    "pad": "<|endoftext|>",
}
"""The tokens that U1's prompts are made with, by the name of the `Tokenizer` attribute that holds the id."""

QWEN2_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How Qwen2's tokenizer cuts text into words before it merges bytes; only a tokenizer.json says so itself."""


class Tokenizer:
    """A model's tokenizer. Special tokens are parsed where the text has them, and none is added."""

    im_start: int
    im_end: int
    think_start: int
    think_end: int
    img_start: int
    img_end: int
    img_context: int
    pad: int

    def __init__(self, backend: tokenizers.Tokenizer, source: Path):
        """`backend` does the work; `source` is the folder it came from. Raises U1Error naming a token it lacks."""
        self._backend = backend
        ids = {name: backend.token_to_id(token) for name, token in SPECIAL_TOKENS.items()}
        missing = [SPECIAL_TOKENS[name] for name, number in ids.items() if number is None]
        if missing:
            raise U1Error(f"{source}: the tokenizer has no {', '.join(missing)}: it is not SenseNova-U1's")
        for name, number in ids.items():
            setattr(self, name, number)

    @classmethod
    def from_folder(cls, folder: Path) -> "Tokenizer":
        """Read tokenizer.json, or else vocab.json and merges.txt; tokenizer_config.json says the added tokens.

        Raises U1Error naming the file that is missing or broken.
        """
        whole, vocab, merges = (folder / name for name in ("tokenizer.json", "vocab.json", "merges.txt"))
        if whole.is_file():
            backend = _read(whole, lambda: tokenizers.Tokenizer.from_file(str(whole)))
            backend.no_truncation()
            backend.no_padding()
        elif vocab.is_file() and merges.is_file():
            backend = _qwen2(_read(vocab, lambda: tokenizers.models.BPE.from_file(str(vocab), str(merges))))
        else:
            raise U1Error(f"{folder}: there is no tokenizer.json, nor vocab.json with merges.txt")
        _add_tokens(backend, folder / "tokenizer_config.json")
        return cls(backend, folder)

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`."""
        return self._backend.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int], skip_special: bool = False) -> str:
        """Text of `ids`; bytes that are no whole UTF-8 character become U+FFFD."""
        return self._backend.decode(list(ids), skip_special_tokens=skip_special)


class TextStream:
    """Text of ids that come one by one: only characters that no later id can change.

    All that `feed` and the last `flush` give, joined, is `decode` of all the ids.
    """

    def __init__(self, tokenizer: Tokenizer, skip_special: bool = False):
        self._tokenizer, self._skip_special = tokenizer, skip_special
        self._ids: list[int] = []
        self._given = 0
        """Characters given already of the text of `_ids`."""

    def feed(self, token: int) -> str:
        """The text that became certain with `token`. A character whose bytes are not all there yet is held back."""
        self._ids.append(token)
        text = self._tokenizer.decode(self._ids, self._skip_special)
        certain = text.rstrip("\ufffd")
        new = certain[self._given :]
        self._given = len(certain)
        if certain == text:
            self._ids, self._given = [], 0
        return new

    def flush(self) -> str:
        """What is still held back, as it stands."""
        rest = self._tokenizer.decode(self._ids, self._skip_special)[self._given :]
        self._ids, self._given = [], 0
        return rest


def _read(path: Path, load: Any) -> Any:
    try:
        return load()
    except Exception as problem:  # the library raises Exception itself
        raise U1Error(f"{path}: cannot be read as a tokenizer's file ({problem})") from None


def _qwen2(model: tokenizers.models.BPE) -> tokenizers.Tokenizer:
    """The pipeline of Qwen2's tokenizer around its merges."""
    backend = tokenizers.Tokenizer(model)
    backend.normalizer = normalizers.NFC()
    words = pre_tokenizers.Split(Regex(QWEN2_WORDS), behavior="isolated")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([words, to_bytes])
    backend.decoder = decoders.ByteLevel()
    return backend


def _add_tokens(backend: tokenizers.Tokenizer, path: Path) -> None:
    """Give `backend` the added tokens that a tokenizer_config.json lists, at the ids it lists them with."""
    if not path.is_file():
        return
    config = _read(path, lambda: json.loads(path.read_text(encoding="utf-8")))
    listed = sorted((int(number), entry) for number, entry in config.get("added_tokens_decoder", {}).items())
    backend.add_tokens([AddedToken(**entry) for _, entry in listed])
    for number, entry in listed:
        found = backend.token_to_id(entry["content"])
        if found != number:
            raise U1Error(f"{path}: {entry['content']} should be token {number}, but the vocabulary makes it {found}")
