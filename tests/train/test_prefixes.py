from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from u1_core.data.folder import Sample
from u1_core.errors import U1Error
from u1_core.lora.adapter import Adapter, LoraModule
from u1_core.prefix.build import prefix_bytes
from u1_core.prefix.units import BLOCK
from u1_core.text.prompts import training_caption, unconditional
from u1_core.text.sequence import build_sequence
from u1_core.train import prefixes
from u1_core.train.prefixes import CaptionSequences, build_caption_prefixes, move_prefix
from u1_core.train.recipe import Data, Recipe, Runtime, Style, Train

SAMPLES = [Sample(f"{i}.png", None, f"number {i}", "because") for i in range(3)]


@pytest.mark.parametrize("think", [False, True])
def test_captions_become_the_prompts_that_sampling_uses(session, think):
    recipe = Recipe(data=Data(use_think_labels=think), style=Style(trigger="sty"))
    sequences = CaptionSequences(session.tokenizer, recipe, SAMPLES)
    text = training_caption("number 1", "sty", think_text="because" if think else None)
    assert sequences[1].ids.tolist() == session.tokenizer.encode(text)
    end = "<think>\nbecause\n</think>\n\n<img>" if think else "<think>\n\n</think>\n\n<img>"
    assert text.endswith(f"<|im_start|>user\nsty, number 1<|im_end|>\n<|im_start|>assistant\n{end}")


def test_pictures_may_be_captioned_without_the_trigger(session):
    samples = [Sample(name, None, "a hut") for name in ("1_plain/a.png", "ink/b.png", "c.png")]
    style = Style(trigger="sty", untriggered=("*_plain/*", "c.???"))
    sequences = CaptionSequences(session.tokenizer, Recipe(style=style), samples)
    said = [session.tokenizer.encode(training_caption("a hut", trigger)) for trigger in ("", "sty", "")]
    assert [sequence.ids.tolist() for sequence in sequences] == said
    head = sequences.head()
    assert all(tuple(ids[: len(head)]) == head for ids in said)


def test_a_caption_that_cannot_be_a_prompt(session):
    sequences = CaptionSequences(session.tokenizer, Recipe(), [Sample("x.png", None, "see <image>")])
    with pytest.raises(U1Error, match="marks 1 pictures with <image>, but 0 are given"):
        sequences[0]


def test_prefixes_share_their_head_and_the_empty_prompt_is_built_only_where_it_is_used(session):
    sequences = CaptionSequences(session.tokenizer, Recipe(), SAMPLES)
    prefixes = build_caption_prefixes(session, Recipe(), sequences)
    assert prefixes.unconditional is None
    heads = {id(prefix.chunks[0]) for prefix in prefixes.captions}
    assert len(heads) == 1
    assert [prefix.tokens for prefix in prefixes.captions] == [len(sequence.ids) for sequence in sequences]
    assert prefixes.n_bytes == prefix_bytes(list(prefixes.captions)) < sum(prefix_bytes([p]) for p in prefixes.captions)
    dropping = build_caption_prefixes(session, Recipe(train=Train(cond_dropout_both=0.1)), sequences)
    assert dropping.unconditional.tokens == len(build_sequence(session.tokenizer, unconditional()).ids)
    assert len(dropping.captions) == 3


def test_prefixes_that_rest_elsewhere_still_share_and_come_back_the_same(session):
    sequences = CaptionSequences(session.tokenizer, Recipe(), SAMPLES)
    captions = build_caption_prefixes(session, Recipe(runtime=Runtime(keep_kvs_on_gpu=False)), sequences).captions
    meta, moved = torch.device("meta"), {}
    resting = [move_prefix(prefix, meta, moved) for prefix in captions]
    assert len({id(prefix.chunks[0]) for prefix in resting}) == 1
    assert all(chunk.k.device == meta for prefix in resting for chunk in prefix.chunks)
    stays = move_prefix(captions[0], torch.device("cpu"))
    assert all(a is b for a, b in zip(stays.chunks, captions[0].chunks, strict=True))
    assert (stays.next_t, replace(stays, next_t=0).tokens) == (captions[0].next_t, captions[0].tokens)


def same(one, other):
    pairs = zip(one.chunks, other.chunks, strict=True)
    return one.next_t == other.next_t and all(torch.equal(a.k, b.k) and torch.equal(a.v, b.v) for a, b in pairs)


class Passes(Sequence):
    """Layers that count how often the tower is gone through."""

    def __init__(self, layers):
        self.layers, self.count = layers, 0

    def __len__(self):
        return len(self.layers)

    def __getitem__(self, index):
        self.count += index == 0
        return self.layers[index]


@pytest.fixture
def counted(session):
    """The session's understanding tower counts its passes."""
    layers = Passes(session.understanding.layers)
    session.__dict__["understanding"] = replace(session.understanding, layers=layers)
    return layers


def test_one_pass_builds_every_caption_and_the_empty_prompt(session, counted, tmp_path):
    samples = [Sample(f"{i}.png", None, f"number {i}") for i in range(3 * BLOCK)]
    recipe = Recipe(runtime=Runtime(prefix_dir=str(tmp_path)), train=Train(cond_dropout_text=0.1))
    sequences = CaptionSequences(session.tokenizer, recipe, samples)
    built = build_caption_prefixes(session, recipe, sequences)
    assert counted.count == 1
    assert len(list(tmp_path.iterdir())) == 5  # three blocks, the empty prompt, the head
    again = build_caption_prefixes(session, recipe, sequences)
    assert counted.count == 1
    assert all(same(one, other) for one, other in zip(built.captions, again.captions, strict=True))
    assert same(built.unconditional, again.unconditional)


def test_of_a_large_set_what_the_run_comes_to_is_built_and_little_of_it_kept(session, counted, tmp_path, monkeypatch):
    monkeypatch.setattr(prefixes, "BUILT_WHOLE", 2 * BLOCK)
    monkeypatch.setattr(prefixes, "KEPT_OF_LARGE", BLOCK)
    samples = [Sample(f"{i}.png", None, f"number {i:03}") for i in range(3 * BLOCK)]
    recipe = Recipe(runtime=Runtime(prefix_dir=str(tmp_path)))
    captions = build_caption_prefixes(session, recipe, CaptionSequences(session.tokenizer, recipe, samples)).captions
    assert (counted.count, list(tmp_path.iterdir())) == (0, [])
    most = captions.estimated_bytes(BLOCK)
    for number in range(3 * BLOCK):
        head = captions.fetch(number).chunks[0]
        assert captions.n_bytes - head.n_bytes <= most
    assert counted.count == 3


def test_the_head_is_what_no_caption_changes(session):
    for style, begins in ((Style(trigger="sty"), 24), (Style(), 20)):
        sequences = CaptionSequences(session.tokenizer, Recipe(style=style), SAMPLES)
        head = sequences.head()
        assert len(head) > begins
        assert all(tuple(sequence.ids[: len(head)].tolist()) == head for sequence in sequences)
    bare = Recipe(style=Style(prompt_template="plain"))
    assert CaptionSequences(session.tokenizer, bare, SAMPLES).head() == ()
    assert build_caption_prefixes(session, bare, CaptionSequences(session.tokenizer, bare, SAMPLES)).captions[1].tokens


def test_a_generation_lora_uses_what_is_kept_and_an_understanding_one_does_not(session, counted, tmp_path):
    recipe = Recipe(runtime=Runtime(prefix_dir=str(tmp_path)))
    sequences = CaptionSequences(session.tokenizer, recipe, SAMPLES)
    width = session.config.width

    def lora(tower: str) -> Adapter:
        path = f"language_model.model.layers.0.self_attn.o_proj{tower}"
        return Adapter({path: LoraModule(torch.ones(1, 64), torch.ones(width, 1), 1.0)})

    plain = build_caption_prefixes(session, recipe, sequences).captions[0]
    assert same(build_caption_prefixes(session, recipe, sequences, [lora("_mot_gen")]).captions[0], plain)
    assert counted.count == 1
    assert not same(build_caption_prefixes(session, recipe, sequences, [lora("")]).captions[0], plain)
    assert counted.count == 2


def test_too_little_room_is_told_before_anything_is_built(session, counted):
    recipe = Recipe(runtime=Runtime(prefix_disk_mb=0, prefix_cache_mb=0))
    sequences = CaptionSequences(session.tokenizer, recipe, SAMPLES)
    with pytest.raises(U1Error, match=r"3 captions takes 0 MB and there is room for 0: raise runtime\.prefix_disk_mb"):
        build_caption_prefixes(session, recipe, sequences)
    assert counted.count == 0
