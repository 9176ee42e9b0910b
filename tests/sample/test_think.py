import pytest
import torch

from u1_core.sample.think import think_first
from u1_core.text import prompts
from u1_core.text.sequence import build_sequence


@pytest.fixture
def thinking(session, scripted):
    """(said, max_tokens=1024) -> (session, prefix's ids, prefix, text, pieces told) after the model says that."""

    def run(said: str, max_tokens: int = 1024):
        model = session()
        grown = scripted(model, model.tokenizer.encode(said))
        (built,) = model.build_prefixes([build_sequence(model.tokenizer, prompts.text_to_image("a fox", think=True))])
        pieces: list[str] = []
        kv, text = think_first(model, built, pieces.append, max_tokens)
        assert kv.tokens == kv.next_t == built.kv.tokens + len(grown[0].heard)
        return model.tokenizer.decode(grown[0].heard), text, pieces

    return run


def test_until_the_thought_ends(thinking):
    heard, text, pieces = thinking("a red fox</think>more")
    assert heard == "a red fox</think>\n\n<img>"
    assert text == "a red fox</think>"
    assert "".join(pieces) == "a red fox\n"


def test_until_the_turn_ends(thinking):
    heard, text, pieces = thinking("a red fox")
    assert heard == "a red fox\n\n<img>"
    assert text == "a red fox"
    assert "".join(pieces) == "a red fox\n"


def test_until_it_has_said_enough(thinking):
    """The end of the thought is not looked for after that."""
    heard, text, _ = thinking("abcd</think>", max_tokens=4)
    assert heard == "abcd\n\n<img>"
    assert text == "abcd"
    heard, text, _ = thinking("abcdefgh", max_tokens=4)
    assert heard == "abcd\n\n<img>"


def test_a_thought_that_ends_at_once(thinking):
    heard, text, pieces = thinking("</think>")
    assert (heard, text, "".join(pieces)) == ("</think>\n\n<img>", "</think>", "\n")


def test_bytes_of_a_character_come_together(thinking):
    """The tiny tokenizer has a token a byte; only whole characters are told."""
    _, text, pieces = thinking("für 狐</think>")
    assert text == "für 狐</think>"
    assert [piece for piece in pieces if piece] == ["f", "ü", "r", " ", "狐", "\n"]


def test_greedy_thoughts_are_what_the_weights_say(session, text_of, close):
    """Unscripted, against building the whole prompt anew for each token."""
    model = session()
    query = prompts.text_to_image("a fox", think=True)
    (built,) = model.build_prefixes([build_sequence(model.tokenizer, query)])
    kv, text = think_first(model, built, max_tokens=5)

    prompt = model.tokenizer.encode(query)
    said: list[int] = []
    while len(said) < 5:
        (whole,) = model.build_prefixes([text_of(prompt + said)])
        said.append(int((model.understanding.lm_head @ whole.last_hidden).argmax()))
    assert not {model.tokenizer.im_end, model.tokenizer.think_end} & set(said)  # with these weights
    assert text == model.tokenizer.decode(said)
    (whole,) = model.build_prefixes([text_of(prompt + said + model.tokenizer.encode("\n\n<img>"))])
    for part in "kv":
        ours, theirs = (torch.cat([getattr(chunk, part) for chunk in one.chunks], dim=1) for one in (kv, whole.kv))
        assert close(ours, theirs, 3e-6)
