import json

import pytest
import torch
from safetensors.torch import load_file

from u1_core.errors import U1Error
from u1_core.text import prompts
from u1_core.text.sequence import PicturePatches, Span, build_sequence
from u1_core.text.tokenizer import Tokenizer


@pytest.fixture
def tokenizer(oracle) -> Tokenizer:
    return Tokenizer.from_folder(oracle("dense") / "model")


def picture(rows: int, columns: int) -> PicturePatches:
    return PicturePatches(torch.zeros(rows * columns, 48), (rows, columns))


@pytest.mark.parametrize("variant", ["dense", "moe", "u15"])
@pytest.mark.parametrize("case", ["prefix_cond", "prefix_uncond"])
def test_prefixes_equal_the_official(oracle, variant, case):
    folder = oracle(variant)
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    expected = load_file(folder / f"{case}.safetensors")
    sequence = build_sequence(Tokenizer.from_folder(folder / "model"), manifest["cases"][case]["query"])
    assert torch.equal(sequence.ids, expected["input_ids"][0])
    assert torch.equal(sequence.positions, expected["indexes_thw"])
    assert sequence.spans == (Span(0, len(sequence.ids), False),)
    assert sequence.next_t == len(sequence.ids)


@pytest.mark.parametrize("variant", ["dense", "moe", "u15"])
def test_a_question_about_a_picture_equals_the_official(oracle, variant):
    folder = oracle(variant)
    case = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["cases"]["understand"]
    expected = load_file(folder / "understand.safetensors")
    grid = load_file(folder / "vision_understanding.safetensors")["grid_hw"][0].tolist()
    query = prompts.ask(case["question"], 1)
    sequence = build_sequence(Tokenizer.from_folder(folder / "model"), query, [picture(*grid)])
    assert torch.equal(sequence.ids, expected["input_ids"][0])
    assert torch.equal(sequence.positions, expected["indexes_thw"])


def test_two_pictures(tokenizer):
    sequence = build_sequence(tokenizer, "a<image><image>b", [picture(4, 6), picture(2, 4)])
    context, start, end = tokenizer.img_context, tokenizer.img_start, tokenizer.img_end
    a, b = tokenizer.encode("a") + tokenizer.encode("b")
    assert sequence.ids.tolist() == [a, start, *[context] * 6, end, start, *[context] * 2, end, b]
    assert sequence.positions.tolist() == [
        [0, 1, 2, 2, 2, 2, 2, 2, 3, 4, 5, 5, 6, 7],
        [0, 0, 0, 0, 0, 1, 1, 1, 0, 0, 0, 0, 0, 0],
        [0, 0, 0, 1, 2, 0, 1, 2, 0, 0, 0, 1, 0, 0],
    ]
    assert sequence.spans == (
        Span(0, 2, False),
        Span(2, 8, True),
        Span(8, 10, False),
        Span(10, 12, True),
        Span(12, 14, False),
    )
    assert sequence.next_t == 8
    assert [p.grid for p in sequence.pictures] == [(4, 6), (2, 4)]


def test_a_token_of_merge_patches(tokenizer):
    sequence = build_sequence(tokenizer, "<image>", [picture(6, 3)], merge=3)
    assert sequence.spans == (Span(0, 1, False), Span(1, 3, True), Span(3, 4, False))
    assert sequence.positions[1].tolist() == [0, 0, 1, 0]


def test_the_picture_to_be_drawn_comes_after_its_start(tokenizer):
    sequence = build_sequence(tokenizer, prompts.edit_text_free(1), [picture(4, 4)])
    assert sequence.ids[-1] == tokenizer.img_start
    assert sequence.next_t == sequence.positions[0, -1] + 1
    assert sequence.next_t == len(sequence.ids) - 4 + 1  # the four context tokens share one time


@pytest.mark.parametrize("token", ["<IMG_CONTEXT>", "<img>", "</img>"])
def test_a_prompt_with_a_pictures_own_tokens(tokenizer, token):
    with pytest.raises(U1Error, match=f"the prompt holds the token {token}, which only a picture may bring"):
        build_sequence(tokenizer, prompts.text_to_image(f"a {token} b"))


@pytest.mark.parametrize("pictures", [1, 3])
def test_marks_and_pictures_must_agree(tokenizer, pictures):
    with pytest.raises(U1Error, match=f"the prompt marks 2 pictures with <image>, but {pictures} are given"):
        build_sequence(tokenizer, "<image><image>", [picture(2, 2)] * pictures)
