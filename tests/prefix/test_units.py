import pytest
import torch

from u1_core.prefix import build
from u1_core.prefix.units import BLOCK, PromptSet, Units

HEAD = tuple(range(20))


@pytest.fixture
def units(tiny, sequence):
    """(tail lengths, alone=(), headed=all) -> the units of prompts of one head with tails of these lengths."""
    config = tiny("u1").config

    def make(lengths, alone=(), salt="s", headless=()):
        prompts = [
            sequence(config, ([] if number in headless else list(HEAD)) + [30 + number % 50] * length)
            for number, length in enumerate(lengths)
        ]
        return Units(
            PromptSet(config, torch.bfloat16, prompts, HEAD, salt, [sequence(config, [1] * length) for length in alone])
        )

    return make


def test_neighbours_up_to_a_blocks_end_and_each_that_is_alone(units):
    found = units([3] * (2 * BLOCK + 5), alone=(9, 2))
    assert list(found.all()) == [
        range(BLOCK),
        range(BLOCK, 2 * BLOCK),
        range(2 * BLOCK, 2 * BLOCK + 5),
        range(2 * BLOCK + 5, 2 * BLOCK + 6),
        range(2 * BLOCK + 6, 2 * BLOCK + 7),
    ]
    assert found.of(BLOCK + 7) == range(BLOCK, 2 * BLOCK)
    assert found.of(2 * BLOCK + 6) == range(2 * BLOCK + 6, 2 * BLOCK + 7)


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [
        ([5, 1, 9, 2, 4], [range(2), range(2, 3), range(3, 5)]),
        ([7, 8, 1], [range(1), range(1, 2), range(2, 3)]),
        ([2, 2, 2, 2], [range(3), range(3, 4)]),
    ],
)
def test_long_prompts_are_cut_into_what_goes_through_a_layer_at_once(units, monkeypatch, lengths, expected):
    """As `build_blocks` groups them, so that a unit is a group."""
    monkeypatch.setattr(build, "GROUP_TOKENS", 6)
    assert list(units(lengths).all()) == expected


def test_what_is_known_of_a_prompt(units, tiny):
    found = units([3, 4], alone=(9,), headless={1})
    config = tiny("u1").config
    about = [(prompt.tokens, prompt.next_t, prompt.headed) for prompt in map(found.prompt, range(3))]
    assert about == [(3, 23, True), (4, 4, False), (9, 9, False)]
    assert found.n_bytes(range(3)) == (3 + 4 + 9) * config.kv_token_bytes
    assert found.shape(4) == (config.layers, 4, config.kv_heads, config.head_dim)


def test_bytes_of_many_are_estimated_from_the_first_block(units, tiny):
    found = units([2] * BLOCK + [90] * BLOCK)
    assert found.estimated_bytes(10 * BLOCK) == 20 * BLOCK * tiny("u1").config.kv_token_bytes
    assert units([]).estimated_bytes(0) == 0


def test_a_key_depends_on_the_units_own_prompts(units):
    one, other = units([3] * (BLOCK + 2)), units([3] * BLOCK + [4, 3])
    first, second = one.all()
    assert one.key(first) == other.key(first)
    assert one.key(second) != other.key(second)
    assert one.head_key == other.head_key != units([3], salt="t").head_key
