import weakref
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from u1_core.model.linear import LowRank, TowerTerms
from u1_core.prefix import build
from u1_core.prefix.build import SHORTEST_HEAD, build_blocks, build_prefixes, opens_with, prefix_bytes
from u1_core.weights.store import load_understanding


class CountedLayers(Sequence):
    """Layers that count how often each is asked for."""

    def __init__(self, layers):
        self.layers, self.asked = layers, [0] * len(layers)

    def __len__(self) -> int:
        return len(self.layers)

    def __getitem__(self, index: int):
        self.asked[index] += 1
        return self.layers[index]


@pytest.fixture
def agrees(direct, close):
    """(model, sequences, built, terms=None): every prefix is what a pass of its own gives."""

    def check(model, sequences, built, terms=None) -> None:
        assert len(built) == len(sequences)
        for one, result in zip(sequences, built, strict=True):
            hidden, k, v = direct(model, one, terms)
            assert result.kv.tokens == len(one.ids)
            assert result.kv.next_t == int(one.positions[0].max()) + 1
            assert close(result.last_hidden, hidden)
            for index in range(model.config.layers):
                pairs = result.kv.layer(index)
                assert close(torch.cat([pair[0] for pair in pairs]), k[index])
                assert close(torch.cat([pair[1] for pair in pairs]), v[index])

    return check


def with_a_head(sequence, words, config, *tails: int):
    """Prompts of one head of 24 tokens with tails of these lengths."""
    head = words(24, 0)
    return [sequence(config, head + words(tail, seed)) for seed, tail in enumerate(tails, 1)]


def test_prompts_that_share_a_head(kind, tiny, sequence, words, agrees):
    model = tiny(kind)
    prompts = with_a_head(sequence, words, model.config, 5, 1, 9)
    built = build_prefixes(model.config, model.understanding, prompts)
    agrees(model, prompts, built)
    heads = {id(prefix.kv.chunks[0]) for prefix in built}
    assert len(heads) == 1
    assert [prefix.kv.chunks[0].tokens for prefix in built] == [24, 24, 24]
    assert [prefix.kv.chunks[1].tokens for prefix in built] == [5, 1, 9]


def test_prompts_with_pictures(kind, tiny, sequence, words, random_picture, agrees):
    """Pictures of several shapes, after a common head, at its very start, two in a row, and none."""
    model, head = tiny(kind), words(20, 0)
    config = model.config
    a, b = random_picture(config, 2, 3, 1), random_picture(config, 3, 1, 2)
    prompts = [
        sequence(config, head, a, words(4, 1)),
        sequence(config, head, b, words(2, 2), a, words(3, 3)),
        sequence(config, [5], a, words(4, 4)),
        sequence(config, head + words(6, 5)),
        sequence(config, a, words(2, 6)),
    ]
    built = build_prefixes(config, model.understanding, prompts)
    agrees(model, prompts, built)
    assert [len(prefix.kv.chunks) for prefix in built] == [2, 2, 1, 2, 1]


def test_a_head_ends_before_the_first_picture(tiny, sequence, words, random_picture, agrees):
    """The same ids, context tokens included, but other pictures."""
    model, head = tiny("u1"), words(20, 0)
    pictures = [random_picture(model.config, 2, 2, seed) for seed in (1, 2)]
    prompts = [sequence(model.config, head, picture, [7, 8]) for picture in pictures]
    assert torch.equal(prompts[0].ids, prompts[1].ids)
    built = build_prefixes(model.config, model.understanding, prompts)
    agrees(model, prompts, built)
    assert built[0].kv.chunks[0].tokens == 20
    assert not torch.equal(built[0].last_hidden, built[1].last_hidden)


def test_two_families_and_a_loner(tiny, sequence, words, agrees):
    model = tiny("u1")
    config, other = model.config, words(18, 50)
    prompts = [
        *with_a_head(sequence, words, config, 3, 4),
        sequence(config, words(30, 60)),
        sequence(config, [*other, 1, 2]),
        sequence(config, [*other, 3]),
    ]
    built = build_prefixes(config, model.understanding, prompts)
    agrees(model, prompts, built)
    assert [[chunk.tokens for chunk in prefix.kv.chunks] for prefix in built] == [
        [24, 3],
        [24, 4],
        [30],
        [18, 2],
        [18, 1],
    ]


def test_identical_prompts_keep_a_token_each(tiny, sequence, words, agrees):
    model = tiny("u1")
    prompts = [sequence(model.config, words(20, 0))] * 3
    built = build_prefixes(model.config, model.understanding, prompts)
    agrees(model, prompts, built)
    assert [[chunk.tokens for chunk in prefix.kv.chunks] for prefix in built] == [[19, 1]] * 3


def test_one_prompt_begins_another(tiny, sequence, words, agrees):
    model, ids = tiny("u1"), words(30, 0)
    prompts = [sequence(model.config, ids), sequence(model.config, ids[:20])]
    built = build_prefixes(model.config, model.understanding, prompts)
    agrees(model, prompts, built)
    assert [[chunk.tokens for chunk in prefix.kv.chunks] for prefix in built] == [[19, 11], [19, 1]]


@pytest.mark.parametrize(("common", "chunks"), [(SHORTEST_HEAD - 1, 1), (SHORTEST_HEAD, 2)])
def test_how_long_a_head_must_be(tiny, sequence, words, agrees, common, chunks):
    model, head = tiny("u1"), words(common, 0)
    prompts = [sequence(model.config, [*head, last, 9]) for last in (1, 2)]
    built = build_prefixes(model.config, model.understanding, prompts)
    agrees(model, prompts, built)
    assert [len(prefix.kv.chunks) for prefix in built] == [chunks, chunks]


def test_one_prompt_and_none(tiny, sequence, words, agrees):
    model = tiny("u1")
    prompts = [sequence(model.config, words(17, 0))]
    built = build_prefixes(model.config, model.understanding, prompts)
    agrees(model, prompts, built)
    assert len(built[0].kv.chunks) == 1
    assert build_prefixes(model.config, model.understanding, []) == []


@pytest.mark.parametrize("group_tokens", [1, 6, 12])
def test_groups_change_nothing(tiny, sequence, words, agrees, monkeypatch, group_tokens):
    """Tails one at a time, some together, a tail longer than a group."""
    model = tiny("u1")
    prompts = with_a_head(sequence, words, model.config, 5, 1, 9, 2, 4)
    sizes = []
    monkeypatch.setattr(build, "GROUP_TOKENS", group_tokens)
    original = build._Group.__init__

    def counted(self, config, weights, pieces, rest):
        original(self, config, weights, pieces, rest)
        sizes.append([len(piece) for piece in pieces])

    monkeypatch.setattr(build._Group, "__init__", counted)
    agrees(model, prompts, build_prefixes(model.config, model.understanding, prompts))
    expected = {1: [[5], [1], [9], [2], [4]], 6: [[5, 1], [9], [2, 4]], 12: [[5, 1], [9, 2], [4]]}
    assert sizes == [[24], *expected[group_tokens]]


def test_each_layer_is_asked_for_once(tiny, sequence, words, agrees, monkeypatch):
    """However many groups there are, and also where a layer is read from its source when it is asked for."""
    monkeypatch.setattr(build, "GROUP_TOKENS", 6)
    model = tiny("u1")
    mapped = load_understanding(model.source, "cpu", torch.float32, resident=False)
    weights = replace(mapped, layers=CountedLayers(mapped.layers))
    prompts = with_a_head(sequence, words, model.config, 5, 1, 9)
    built = build_prefixes(model.config, weights, prompts)
    assert weights.layers.asked == [1, 1, 1]
    agrees(model, prompts, built)


def test_bytes_count_the_shared_head_once(tiny, sequence, words):
    model = tiny("u1")
    prompts = with_a_head(sequence, words, model.config, 5, 5, 9)
    built = build_prefixes(model.config, model.understanding, prompts)
    token_bytes = 3 * 2 * 2 * 16 * 4  # layers, K and V, heads, numbers, fp32
    assert prefix_bytes([prefix.kv for prefix in built]) == (24 + 5 + 5 + 9) * token_bytes
    assert prefix_bytes([built[2].kv]) == (24 + 9) * token_bytes
    assert prefix_bytes([built[0].kv, built[0].kv]) == (24 + 5) * token_bytes
    assert token_bytes == 2 * model.config.kv_token_bytes  # which counts two bytes a number
    assert prefix_bytes([]) == 0


def test_low_rank_terms_are_used(tiny, sequence, words, agrees, direct, close):
    model, generator = tiny("u1"), torch.Generator().manual_seed(3)
    term = LowRank(torch.randn(2, 64, generator=generator), torch.randn(64, 2, generator=generator), 0.1)
    terms = TowerTerms([{"self_attn.q_proj": (term,)}, {}, {}], {})
    prompts = with_a_head(sequence, words, model.config, 5, 3)
    built = build_prefixes(model.config, model.understanding, prompts, terms)
    agrees(model, prompts, built, terms)
    assert not close(built[0].last_hidden, direct(model, prompts[0])[0], 1e-2)


def test_nothing_is_kept_for_gradients(tiny, sequence, words):
    model = tiny("u1")
    built = build_prefixes(model.config, model.understanding, [sequence(model.config, words(5, 0))])[0]
    assert not built.last_hidden.requires_grad
    assert not built.kv.chunks[0].k.requires_grad


def blocks_with_a_head(sequence, words, config):
    """Two blocks of prompts that begin with 24 tokens and one of prompts that do not; and the head."""
    head = words(24, 0)
    first = [sequence(config, head + words(tail, tail)) for tail in (5, 1, 9)]
    second = [sequence(config, head + words(7, 20)), sequence(config, words(30, 21))]
    return [first, second, [sequence(config, words(4, 22))]], head


def test_blocks_are_what_each_prompt_gives_by_itself(kind, tiny, sequence, words, direct, close):
    model = tiny(kind)
    blocks, head = blocks_with_a_head(sequence, words, model.config)
    built = build_blocks(model.config, model.understanding, blocks, head)
    assert [[prefix.tokens for prefix in block] for block in built] == [[29, 25, 33], [31, 30], [4]]
    assert [[len(prefix.chunks) for prefix in block] for block in built] == [[2, 2, 2], [2, 1], [1]]
    assert len({id(prefix.chunks[0]) for block in built for prefix in block if len(prefix.chunks) == 2}) == 1
    for one, prefix in (
        (one, prefix) for pair in zip(blocks, built, strict=True) for one, prefix in zip(*pair, strict=True)
    ):
        _, k, v = direct(model, one)
        assert prefix.next_t == len(one.ids)
        assert close(torch.cat([chunk.k for chunk in prefix.chunks], dim=1), k)
        assert close(torch.cat([chunk.v for chunk in prefix.chunks], dim=1), v)


@pytest.mark.parametrize("group_tokens", [6, 10_000])
def test_a_block_has_the_same_bits_whatever_is_built_with_it(kind, tiny, sequence, words, monkeypatch, group_tokens):
    monkeypatch.setattr(build, "GROUP_TOKENS", group_tokens)
    model = tiny(kind)
    blocks, head = blocks_with_a_head(sequence, words, model.config)
    together = build_blocks(model.config, model.understanding, blocks[::-1], head)[::-1]
    for block, expected in zip(blocks, together, strict=True):
        (alone,) = build_blocks(model.config, model.understanding, [block], head)
        for one, other in zip(alone, expected, strict=True):
            pairs = list(zip(one.chunks, other.chunks, strict=True))
            assert all(torch.equal(a.k, b.k) and torch.equal(a.v, b.v) for a, b in pairs)


def test_blocks_take_the_low_rank_terms_and_rest_where_they_are_told(tiny, sequence, words, close):
    model = tiny("u1")
    blocks, head = blocks_with_a_head(sequence, words, model.config)
    term = LowRank(torch.randn(2, 64, generator=torch.Generator().manual_seed(3)), torch.ones(64, 2), 0.1)
    terms = TowerTerms([{"self_attn.q_proj": (term,)}, {}, {}], {})
    plain, changed = (build_blocks(model.config, model.understanding, blocks, head, each) for each in (None, terms))
    assert close(changed[0][0].chunks[1].k[0], plain[0][0].chunks[1].k[0])
    assert not close(changed[0][0].chunks[1].k[1], plain[0][0].chunks[1].k[1], 1e-2)
    resting = build_blocks(model.config, model.understanding, blocks, head, rest=torch.device("meta"))
    assert {chunk.k.device.type for block in resting for prefix in block for chunk in prefix.chunks} == {"meta"}


def test_every_layer_is_asked_for_once_for_all_blocks(tiny, sequence, words):
    model = tiny("u1")
    weights = replace(model.understanding, layers=CountedLayers(model.understanding.layers))
    blocks, head = blocks_with_a_head(sequence, words, model.config)
    told = []
    build_blocks(model.config, weights, blocks, head, on_prompts=told.append)
    assert weights.layers.asked == [1, 1, 1]
    assert sum(told) == 3 * sum(map(len, blocks))


def test_what_opens_with_a_head(tiny, sequence, words, random_picture):
    config, ids = tiny("u1").config, [1, 2, 3]
    picture = random_picture(config, 1, 2, 0)
    prompts = [
        sequence(config, ids),
        sequence(config, [1, 2]),
        sequence(config, [1, 4, 3]),
        sequence(config, [1, 2], picture),
        sequence(config, [1], picture),
        sequence(config, picture, [1, 2]),
    ]
    assert [opens_with(each, [1, 2]) for each in prompts] == [True, False, False, True, False, False]
    assert not opens_with(prompts[0], [])


def test_a_layer_is_let_go_before_the_next_is_asked_for(tiny, sequence, words):
    """So that memory holds it and the one that is read meanwhile, and no third."""

    class Watched(CountedLayers):
        last = None

        def __getitem__(self, index):
            assert self.last is None or self.last() is None
            found = super().__getitem__(index)
            layer = replace(found, qkv=found.qkv.clone())
            self.last = weakref.ref(layer.qkv)
            return layer

    model = tiny("u1")
    weights = replace(model.understanding, layers=Watched(model.understanding.layers))
    blocks, head = blocks_with_a_head(sequence, words, model.config)
    assert len(build_blocks(model.config, weights, blocks, head)) == 3
