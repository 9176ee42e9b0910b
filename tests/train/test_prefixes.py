from dataclasses import replace

import pytest
import torch

from u1_core.data.folder import Sample
from u1_core.errors import U1Error
from u1_core.model.views import KVChunk, PrefixKV
from u1_core.prefix.build import prefix_bytes
from u1_core.text.prompts import training_caption, unconditional
from u1_core.text.sequence import Span, TokenSequence, build_sequence
from u1_core.train.prefixes import (
    KEPT_BLOCKS,
    CaptionKVs,
    CaptionSequences,
    build_caption_prefixes,
    move_prefix,
)
from u1_core.train.recipe import Data, Recipe, Runtime, Style, Train
from u1_core.train.rng import BLOCK, WINDOW

SAMPLES = [Sample(f"{i}.png", None, f"number {i}", "because") for i in range(3)]


@pytest.mark.parametrize("think", [False, True])
def test_captions_become_the_prompts_that_sampling_uses(session, think):
    recipe = Recipe(data=Data(use_think_labels=think), style=Style(trigger="sty"))
    sequences = CaptionSequences(session.tokenizer, recipe, SAMPLES)
    text = training_caption("number 1", "sty", think_text="because" if think else None)
    assert sequences[1].ids.tolist() == session.tokenizer.encode(text)
    end = "<think>\nbecause\n</think>\n\n<img>" if think else "<think>\n\n</think>\n\n<img>"
    assert text.endswith(f"<|im_start|>user\nsty, number 1<|im_end|>\n<|im_start|>assistant\n{end}")


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
    assert prefixes.n_bytes == prefix_bytes(prefixes.captions) < sum(prefix_bytes([p]) for p in prefixes.captions)
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


class Builder:
    """Stands in for the understanding tower: K/V that tell the prompt, and a list of what was built together."""

    def __init__(self):
        self.blocks = []

    def __call__(self, sequences):
        self.blocks.append([int(sequence.ids[0]) for sequence in sequences])
        shared = KVChunk(torch.zeros(1, 4, 1, 2), torch.ones(1, 4, 1, 2))
        return [PrefixKV((shared, self.chunk(sequence)), sequence.next_t) for sequence in sequences]

    def chunk(self, sequence):
        values = sequence.ids.float().view(1, -1, 1, 1).repeat(1, 1, 1, 2)
        return KVChunk(values, values + 1)


def sequences_of(count):
    spans, times = (Span(0, 2, False),), torch.arange(2).expand(3, 2)
    return [TokenSequence(torch.tensor([i, 7]), times, spans, ()) for i in range(count)]


def same(one, other):
    pairs = zip(one.chunks, other.chunks, strict=True)
    return one.next_t == other.next_t and all(torch.equal(a.k, b.k) and torch.equal(a.v, b.v) for a, b in pairs)


CPU = torch.device("cpu")
HEAD_BYTES, TAIL_BYTES = 2 * 4 * 2 * 4, 2 * 2 * 2 * 4


def test_a_small_set_is_built_once_block_by_block_and_kept():
    build = Builder()
    captions = CaptionKVs(sequences_of(BLOCK + 3), build, CPU, 10**9)
    captions.fill()
    assert [len(block) for block in build.blocks] == [BLOCK, 3]
    assert captions[BLOCK + 2].chunks[1].k[0, 0, 0, 0] == BLOCK + 2
    assert [prefix.next_t for prefix in captions] == [2] * (BLOCK + 3)
    assert len(build.blocks) == 2
    assert captions.n_bytes == 2 * HEAD_BYTES + (BLOCK + 3) * TAIL_BYTES
    with pytest.raises(IndexError):
        captions[BLOCK + 3]


def test_what_the_memory_does_not_hold_is_let_go_and_built_again_the_same():
    build = Builder()
    one_block = HEAD_BYTES + BLOCK * TAIL_BYTES
    captions = CaptionKVs(sequences_of(4 * BLOCK), build, CPU, 2 * one_block)
    first = captions[5]
    for index in (BLOCK, 1, 2 * BLOCK):
        captions[index]
    assert captions.n_bytes == 2 * one_block  # blocks 0 and 2: block 1 was used longest ago
    assert captions[5] is first
    for index in (BLOCK, 3 * BLOCK):
        captions[index]
    assert [block[0] // BLOCK for block in build.blocks] == [0, 1, 2, 1, 3]
    again = captions[5]
    assert again is not first
    assert same(again, first)


def test_a_large_set_is_never_held_whole_however_much_memory_there_is():
    build = Builder()
    captions = CaptionKVs(sequences_of(3 * WINDOW), build, CPU, 10**12)
    captions.fill()
    assert build.blocks == []
    for index in range(0, len(captions), BLOCK):
        captions[index]
    assert captions.n_bytes == KEPT_BLOCKS * (HEAD_BYTES + BLOCK * TAIL_BYTES)


def test_blocks_in_a_folder_are_read_back_bit_for_bit(tmp_path):
    build = Builder()
    sequences = sequences_of(BLOCK + 1)
    built = list(CaptionKVs(sequences, build, CPU, 10**9, tmp_path, "this model"))
    assert len(list(tmp_path.glob("*.safetensors"))) == len(build.blocks) == 2
    again = CaptionKVs(sequences, build, CPU, 10**9, tmp_path, "this model")
    assert all(same(one, other) for one, other in zip(again, built, strict=True))
    assert again[0].chunks[0] is again[1].chunks[0]
    assert len(build.blocks) == 2
    list(CaptionKVs(sequences, build, CPU, 10**9, tmp_path, "another model"))
    assert len(build.blocks) == 4


def test_a_damaged_file_of_a_block_is_built_and_written_again(tmp_path):
    build = Builder()
    sequences = sequences_of(2)
    CaptionKVs(sequences, build, CPU, 10**9, tmp_path)[0]
    (path,) = tmp_path.glob("*.safetensors")
    whole = path.read_bytes()
    path.write_bytes(whole[:40])
    CaptionKVs(sequences, build, CPU, 10**9, tmp_path)[0]
    assert len(build.blocks) == 2
    assert path.read_bytes() == whole


def test_a_folder_that_takes_nothing_is_done_without(tmp_path, caplog):
    (tmp_path / "file").write_text("in the way")
    captions = CaptionKVs(sequences_of(2 * BLOCK), Builder(), CPU, 10**9, tmp_path / "file")
    assert captions[0].next_t == captions[2 * BLOCK - 1].next_t == 2
    assert [record.message.startswith("prefix K/V is not kept: ") for record in caplog.records] == [True]


def test_kept_prefixes_of_a_model_are_the_bits_that_were_built(session, tmp_path):
    sequences = CaptionSequences(session.tokenizer, Recipe(), SAMPLES)
    recipe = Recipe(runtime=Runtime(prefix_dir=str(tmp_path)))
    built, kept = (build_caption_prefixes(session, recipe, sequences).captions for _ in range(2))
    assert all(same(one, other) for one, other in zip(built, kept, strict=True))
    assert len(list(tmp_path.iterdir())) == 1
