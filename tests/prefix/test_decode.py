import pytest
import torch

from u1_core.model.linear import LowRank, TowerTerms
from u1_core.model.understanding import embed_picture
from u1_core.prefix.build import build_prefixes
from u1_core.prefix.decode import GrowingPrefix

IMG_END = 277


@pytest.fixture
def same(direct, close):
    """(model, prefix, sequence, terms=None): the grown prefix is what the whole prompt, passed at once, gives."""

    def check(model, prefix: GrowingPrefix, whole, terms=None) -> None:
        hidden, k, v = direct(model, whole, terms)
        assert prefix.kv.tokens == len(whole.ids)
        assert prefix.kv.next_t == prefix.next_t == whole.next_t
        assert close(prefix.last_hidden, hidden, 2e-6)
        for index in range(model.config.layers):
            pairs = prefix.kv.layer(index)
            assert close(torch.cat([pair[0] for pair in pairs]), k[index], 2e-6)
            assert close(torch.cat([pair[1] for pair in pairs]), v[index], 2e-6)

    return check


def start(model, prompt, terms=None) -> GrowingPrefix:
    built = build_prefixes(model.config, model.understanding, [prompt], terms)[0]
    return GrowingPrefix(model.config, model.understanding, built, terms)


def show(model, prefix: GrowingPrefix, picture) -> None:
    tokens = embed_picture(model.config, model.understanding, picture.patches.unflatten(0, picture.grid))
    prefix.append_picture(tokens, tuple(side // model.config.merge for side in picture.grid), IMG_END)


def test_as_built_before_anything_is_said(tiny, sequence, words, same):
    model = tiny("u1")
    prompt = sequence(model.config, words(7, 0))
    same(model, start(model, prompt), prompt)


def test_text_token_by_token_and_several_at_once(kind, tiny, sequence, words, same):
    model, first, rest = tiny(kind), words(7, 0), words(9, 1)
    prefix = start(model, sequence(model.config, first))
    for token in rest[:4]:
        prefix.append_text([token])
    prefix.append_text(rest[4:])
    same(model, prefix, sequence(model.config, first + rest))


def test_append_gives_back_the_last_hidden(tiny, sequence, words):
    model = tiny("u1")
    prefix = start(model, sequence(model.config, words(7, 0)))
    assert torch.equal(prefix.append_text([3, 4]), prefix.last_hidden)


def test_a_picture_then_its_end_then_text(kind, tiny, sequence, words, random_picture, same):
    model = tiny(kind)
    picture, first = random_picture(model.config, 2, 3, 5), words(7, 0)
    prefix = start(model, sequence(model.config, first))
    show(model, prefix, picture)
    same(model, prefix, sequence(model.config, first, picture, [IMG_END]))
    prefix.append_text([8, 9])
    same(model, prefix, sequence(model.config, first, picture, [IMG_END, 8, 9]))


def test_two_pictures_after_a_prompt_with_one(tiny, sequence, words, random_picture, same):
    model = tiny("u1")
    a, b, c = (random_picture(model.config, rows, 2, seed) for rows, seed in ((2, 1), (3, 2), (1, 3)))
    prefix = start(model, sequence(model.config, words(5, 0), a, words(3, 1)))
    for picture in (b, c):
        prefix.append_text([276])
        show(model, prefix, picture)
    whole = sequence(model.config, words(5, 0), a, [*words(3, 1), 276], b, [IMG_END, 276], c, [IMG_END])
    same(model, prefix, whole)


def test_growing_past_its_first_room(tiny, sequence, words, same):
    """64 tokens of room at first: said one by one, and as one text that is longer than the room."""
    model, first, rest = tiny("u1"), words(5, 0), words(150, 1)
    prefix = start(model, sequence(model.config, first))
    for token in rest[:70]:
        prefix.append_text([token])
    prefix.append_text(rest[70:])
    same(model, prefix, sequence(model.config, first + rest))


def test_an_older_kv_stays_as_it_is(tiny, sequence, words):
    """Within the room and beyond it; the guidance branches of a picture hold such ones."""
    model = tiny("u1")
    prefix = start(model, sequence(model.config, words(5, 0)))
    prefix.append_text([1, 2, 3])
    older = prefix.kv
    copies = [(chunk.k.clone(), chunk.v.clone()) for chunk in older.chunks]
    prefix.append_text([4])
    prefix.append_text(words(100, 1))
    assert (older.tokens, older.next_t) == (8, 8)
    assert (prefix.kv.tokens, prefix.kv.next_t) == (109, 109)
    for chunk, (k, v) in zip(older.chunks, copies, strict=True):
        assert torch.equal(chunk.k, k)
        assert torch.equal(chunk.v, v)


def test_prefixes_of_one_head_grow_apart(tiny, sequence, words, same):
    model, head = tiny("u1"), words(20, 0)
    built = build_prefixes(model.config, model.understanding, [sequence(model.config, [*head, i]) for i in (1, 2)])
    one, other = (GrowingPrefix(model.config, model.understanding, prefix) for prefix in built)
    one.append_text([5, 6])
    other.append_text([7])
    same(model, one, sequence(model.config, [*head, 1, 5, 6]))
    same(model, other, sequence(model.config, [*head, 2, 7]))


def test_low_rank_terms_are_used(tiny, sequence, words, same):
    model, generator = tiny("u1"), torch.Generator().manual_seed(3)
    term = LowRank(torch.randn(2, 64, generator=generator), torch.randn(32, 2, generator=generator), 0.1)
    terms = TowerTerms([{}, {"self_attn.k_proj": (term,)}, {}], {})
    prefix = start(model, sequence(model.config, words(7, 0)), terms)
    prefix.append_text([5, 6])
    same(model, prefix, sequence(model.config, [*words(7, 0), 5, 6]), terms)
