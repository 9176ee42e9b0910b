import json

import pytest

from u1_core.errors import U1Error
from u1_core.text import prompts

END = "<|im_end|>\n<|im_start|>assistant\n"
SYSTEM = f"<|im_start|>system\n{prompts.SYSTEM_GENERATE}<|im_end|>\n<|im_start|>user\n"
SYSTEM_INTERLEAVE = f"<|im_start|>system\n{prompts.SYSTEM_INTERLEAVE}<|im_end|>\n<|im_start|>user\n"
NO_THINK = "<think>\n\n</think>\n\n<img>"


def test_text_to_image_is_the_official_query(oracle):
    cases = json.loads((oracle("dense") / "manifest.json").read_text(encoding="utf-8"))["cases"]
    prompt = "a red circle above a blue square on a green field"
    assert prompts.text_to_image(prompt) == cases["prefix_cond"]["query"]
    assert prompts.unconditional() == cases["prefix_uncond"]["query"]
    assert prompts.text_to_image(prompt) == SYSTEM + prompt + END + NO_THINK


def test_system_messages_are_the_published_ones(shared):
    text = (shared / "reference/u1.md").read_text(encoding="utf-8").replace("\\n", "\n")
    assert f"```\n{prompts.SYSTEM_GENERATE}\n```" in text
    assert f"```\n{prompts.SYSTEM_INTERLEAVE}\n```" in text


def test_thinking_leaves_the_block_open():
    assert prompts.text_to_image("a cat", think=True) == SYSTEM + "a cat" + END + "<think>\n"


@pytest.mark.parametrize(
    ("prompt", "pictures", "message"),
    [
        ("paint it", 1, "<image>\npaint it"),
        ("paint it", 2, "Image-1:<image>\nImage-2:<image>\npaint it"),
        ("like <image> paint it", 1, "like <image> paint it"),
        ("like <image> paint it", 3, "<image>\n<image>\nlike <image> paint it"),
    ],
)
def test_edit_places_its_pictures(prompt, pictures, message):
    assert prompts.edit(prompt, pictures) == SYSTEM + message + END + NO_THINK
    assert prompts.edit(prompt, pictures, think=True) == SYSTEM + message + END + "<think>\n"


def test_branches_without_words():
    assert prompts.edit_text_free(2) == "<|im_start|>user\n<image><image>" + END + "<img>"
    assert prompts.interleave_text_free(2) == "<|im_start|>user\n<image><image>" + END
    assert prompts.interleave_text_free(0) == "<|im_start|>user\n" + END


def test_interleave():
    message = "<image>\n<image>\na story"
    assert prompts.interleave("a story", 2) == SYSTEM_INTERLEAVE + message + END + "<think>\n\n</think>\n\n"
    assert prompts.interleave("a story", think=True) == SYSTEM_INTERLEAVE + "a story" + END
    assert prompts.interleave("a story", system="", think=True) == "<|im_start|>user\na story" + END


def test_ask():
    assert prompts.ask("What?") == "<|im_start|>user\nWhat?" + END
    assert prompts.ask("What?", 1) == "<|im_start|>user\n<image>\nWhat?" + END
    assert prompts.ask("What?", 2) == "<|im_start|>user\n<image>\n<image>\nWhat?" + END
    assert prompts.ask("Is <image> red?", 1) == "<|im_start|>user\nIs <image> red?" + END


def test_ask_goes_on_with_a_conversation():
    history = [("<image>\nWhat?", "A cat.")]
    talked = "<|im_start|>user\n<image>\nWhat?<|im_end|>\n<|im_start|>assistant\nA cat.<|im_end|>\n<|im_start|>user\n"
    assert prompts.ask("And now?", 1, history) == talked + "And now?" + END
    assert prompts.ask("And this?", 2, history) == talked + "<image>\nAnd this?" + END


@pytest.mark.parametrize(
    "query",
    [
        lambda: prompts.edit("<image> and <image>", 1),
        lambda: prompts.interleave("<image><image>", 1),
        lambda: prompts.ask("<image> or <image>?", 1),
    ],
)
def test_more_marks_than_pictures(query):
    with pytest.raises(U1Error, match="the prompt marks 2 pictures with <image>, but 1 are given"):
        query()


def test_more_marks_in_the_conversation_than_pictures():
    with pytest.raises(U1Error, match="the questions so far mark 2 pictures with <image>, but 1 are given"):
        prompts.ask("Why?", 1, [("<image><image>", "yes")])


def test_training_captions():
    assert prompts.training_caption("a cat") == prompts.text_to_image("a cat")
    assert prompts.training_caption("a cat", "my style") == prompts.text_to_image("my style, a cat")
    assert prompts.training_caption("a cat", "my style", "plain", "unused") == "my style, a cat"
    thought = SYSTEM + "a cat" + END + "<think>\nfur\n</think>\n\n<img>"
    assert prompts.training_caption("a cat", think_text="fur") == thought
    assert prompts.training_unconditional() == prompts.unconditional()
    assert prompts.training_unconditional("plain") == " "


def test_a_misspelt_template():
    message = "template is 'plane', but it must be one of official, plain; did you mean 'plain'\\?"
    with pytest.raises(U1Error, match=message):
        prompts.training_caption("a cat", template="plane")
    with pytest.raises(U1Error, match=message):
        prompts.training_unconditional("plane")
