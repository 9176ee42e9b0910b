from dataclasses import replace

import pytest
import torch

from u1_core.data.folder import Sample
from u1_core.prefix.build import prefix_bytes
from u1_core.text.prompts import training_caption, unconditional
from u1_core.text.sequence import build_sequence
from u1_core.train.prefixes import build_caption_prefixes, caption_sequences, move_prefix
from u1_core.train.recipe import Data, Recipe, Runtime, Style, Train

SAMPLES = [Sample(f"{i}.png", None, f"number {i}", "because") for i in range(3)]


@pytest.mark.parametrize("think", [False, True])
def test_captions_become_the_prompts_that_sampling_uses(session, think):
    recipe = Recipe(data=Data(use_think_labels=think), style=Style(trigger="sty"))
    sequences, problems = caption_sequences(session.tokenizer, recipe, SAMPLES)
    text = training_caption("number 1", "sty", think_text="because" if think else None)
    assert problems == {}
    assert sequences[1].ids.tolist() == session.tokenizer.encode(text)
    end = "<think>\nbecause\n</think>\n\n<img>" if think else "<think>\n\n</think>\n\n<img>"
    assert text.endswith(f"<|im_start|>user\nsty, number 1<|im_end|>\n<|im_start|>assistant\n{end}")


def test_captions_that_cannot_be_a_prompt_are_named(session):
    samples = [*SAMPLES, Sample("x.png", None, "see <image>"), Sample("y.png", None, "an <img> tag")]
    sequences, problems = caption_sequences(session.tokenizer, Recipe(), samples)
    assert len(sequences) == 3
    assert "marks 1 pictures with <image>, but 0 are given" in problems["x.png"]
    assert "holds the token <img>" in problems["y.png"]


def test_prefixes_share_their_head_and_the_empty_prompt_is_built_only_where_it_is_used(session):
    sequences, _ = caption_sequences(session.tokenizer, Recipe(), SAMPLES)
    prefixes = build_caption_prefixes(session, Recipe(), sequences)
    assert prefixes.unconditional is None
    heads = {id(prefix.chunks[0]) for prefix in prefixes.captions}
    assert len(heads) == 1
    assert [prefix.tokens for prefix in prefixes.captions] == [len(sequence.ids) for sequence in sequences]
    assert prefixes.n_bytes == prefix_bytes(prefixes.captions) < sum(prefix_bytes([p]) for p in prefixes.captions)
    dropping = build_caption_prefixes(session, Recipe(train=Train(cond_dropout_both=0.1)), sequences)
    assert dropping.unconditional.tokens == len(build_sequence(session.tokenizer, unconditional()).ids)
    assert len(dropping.captions) == 3


def test_many_captions_are_built_in_several_passes(session, monkeypatch):
    sequences, _ = caption_sequences(session.tokenizer, Recipe(), SAMPLES)
    together = build_caption_prefixes(session, Recipe(), sequences)
    monkeypatch.setattr("u1_core.train.prefixes.BUILT_TOGETHER", 2)
    apart = build_caption_prefixes(session, Recipe(), sequences)
    for one, other in zip(together.captions, apart.captions, strict=True):
        for (k, v), (k2, v2) in zip(one.layer(1), other.layer(1), strict=False):
            torch.testing.assert_close(k[:9], k2[:9])
            torch.testing.assert_close(v[:9], v2[:9])
        assert one.tokens == other.tokens


def test_prefixes_that_rest_elsewhere_still_share_and_come_back_the_same(session):
    sequences, _ = caption_sequences(session.tokenizer, Recipe(), SAMPLES)
    captions = build_caption_prefixes(session, Recipe(runtime=Runtime(keep_kvs_on_gpu=False)), sequences).captions
    meta, moved = torch.device("meta"), {}
    resting = [move_prefix(prefix, meta, moved) for prefix in captions]
    assert len({id(prefix.chunks[0]) for prefix in resting}) == 1
    assert all(chunk.k.device == meta for prefix in resting for chunk in prefix.chunks)
    stays = move_prefix(captions[0], torch.device("cpu"))
    assert all(a is b for a, b in zip(stays.chunks, captions[0].chunks, strict=True))
    assert (stays.next_t, replace(stays, next_t=0).tokens) == (captions[0].next_t, captions[0].tokens)
