"""Run alone, by test_tokenizer.py: {text: …} on standard input -> ids and texts, by transformers and by us, as JSON."""

import json
import sys
from pathlib import Path

import tokenizers
import transformers

from u1_core.text.tokenizer import Tokenizer

folder, texts = sys.argv[1], json.load(sys.stdin)
theirs = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
ours = Tokenizer.from_folder(Path(folder))
ids = [theirs(text)["input_ids"] for text in texts]
everything = list(range(len(theirs)))
answer = {
    "versions": [transformers.__version__, tokenizers.__version__],
    "their_ids": ids,
    "our_ids": [ours.encode(text) for text in texts],
    "their_texts": [theirs.decode(numbers) for numbers in ids],
    "our_texts": [ours.decode(numbers) for numbers in ids],
    "vocabulary_equal": theirs.decode(everything) == ours.decode(everything),
    "shown_equal": theirs.decode(everything, skip_special_tokens=True) == ours.decode(everything, skip_special=True),
}
json.dump(answer, sys.stdout)
