from collections import Counter

import numpy as np
import pytest
from PIL import Image

from u1_core.errors import U1Error
from u1_core.model.config import UNDERSTANDING
from u1_core.session import Session
from u1_core.understand.ask import ask, input_limits
from u1_core.understand.decode import TextSettings
from u1_core.weights.layout import layer_bytes
from u1_core.weights.snapshot import Snapshot

SMALL = (64, 1024)


def picture(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.fixture
def asked(session, scripted, monkeypatch):
    """(said, question, *rest) -> (pieces of the answer, text of the prompt) when the model says that."""

    def run(said: str, question: str, *rest, **more) -> tuple[list[str], str]:
        model, seen = session(), []
        scripted(model, model.tokenizer.encode(said))
        build = model.build_prefixes
        monkeypatch.setattr(model, "build_prefixes", lambda given: (seen.extend(given), build(given))[1])
        pieces = list(ask(model, question, *rest, **more))
        (sequence,) = seen
        return pieces, model.tokenizer.decode(sequence.ids.tolist())

    return run


def test_plain_chat(asked):
    pieces, prompt = asked("Fine, and you?", "How are you?")
    assert "".join(pieces) == "Fine, and you?"
    assert prompt == "<|im_start|>user\nHow are you?<|im_end|>\n<|im_start|>assistant\n"


def test_text_streams_as_it_is_said(asked):
    """A token a byte in the tiny tokenizer, and no piece with half a character."""
    pieces, _ = asked("Größe: 大 🦊!", "?")
    assert "".join(pieces) == "Größe: 大 🦊!"
    assert [piece for piece in pieces if piece] == list("Größe: 大 🦊!")


def test_an_answer_cut_within_a_character_ends_with_what_is_there(asked):
    pieces, _ = asked("狐狐", "?", settings=TextSettings(max_tokens=4))
    assert "".join(pieces) == "狐\ufffd"


def test_special_tokens_are_not_told(asked):
    pieces, _ = asked("a<think>b</think>c", "?")
    assert "".join(pieces) == "abc"


def test_pictures_stand_before_the_question(asked):
    _, prompt = asked("A fox.", "What is shown?", [picture(16, 16), picture(32, 16)], limits=SMALL)
    first, second = (f"<img>{'<IMG_CONTEXT>' * tokens}</img>\n" for tokens in (4, 8))
    assert prompt == f"<|im_start|>user\n{first}{second}What is shown?<|im_end|>\n<|im_start|>assistant\n"


def test_history(asked):
    _, prompt = asked("Red.", "Which colour?", [picture(16, 16)], [("<image>What is it?", "A fox.")], limits=SMALL)
    shown = f"<img>{'<IMG_CONTEXT>' * 4}</img>"
    assert prompt == (
        f"<|im_start|>user\n{shown}What is it?<|im_end|>\n<|im_start|>assistant\nA fox.<|im_end|>\n"
        "<|im_start|>user\nWhich colour?<|im_end|>\n<|im_start|>assistant\n"
    )


def test_too_many_marks(session):
    with pytest.raises(U1Error, match="marks 2 pictures with <image>, but 1 are given"):
        next(ask(session(), "<image> or <image>?", [picture(16, 16)], limits=SMALL))


@pytest.mark.parametrize(("layers", "reads"), [(3, [1, 1, 1]), (1, [1, 6, 6]), (0, [6, 6, 6])])
def test_a_tower_that_has_a_device_to_itself_is_read_once_as_far_as_there_is_room(models, monkeypatch, layers, reads):
    """Of a tower that is read as it is used: the prompt and five tokens."""
    model, told, read_into = Session.open(models["u1"], "cpu"), Counter(), Snapshot.read_into
    settings = TextSettings(max_tokens=5)
    expected = list(ask(model, "What is a fox?", settings=settings))
    room = (layers + 0.5) * layer_bytes(
        model.config, UNDERSTANDING, 0, model.dtype
    ) + model.understanding.lm_head.nbytes
    model = Session.open(models["u1"], "cpu")
    monkeypatch.setattr(model, "_room_bytes", lambda: room)
    monkeypatch.setattr(model._placing, "beside_others", lambda room, own: int(room))
    monkeypatch.setattr(Snapshot, "read_into", lambda *about: (told.update([about[1]]), read_into(*about)))
    assert list(ask(model, "What is a fox?", settings=settings)) == expected
    norms = (f"language_model.model.layers.{index}.input_layernorm.weight" for index in range(3))
    assert [told[name] for name in norms] == reads


def test_limits_of_the_released_models(tiny):
    assert input_limits(tiny("u1.5").config) == (256**2, 2048**2)
