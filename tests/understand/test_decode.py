import math
import random
from collections import Counter

import pytest
import torch

from u1_core.errors import U1Error
from u1_core.prefix.build import BuiltPrefix
from u1_core.text.sequence import build_sequence
from u1_core.understand.decode import GREEDY, TextSettings, choose, peek, say


def distribution(row: list[float], said: list[int], settings: TextSettings) -> dict[int, float]:
    """What tokens may be drawn and how often, by the definitions: penalty, temperature, top-k, top-p."""
    scores = list(row)
    for token in set(said):
        scores[token] = (
            scores[token] / settings.repetition_penalty
            if scores[token] > 0
            else scores[token] * settings.repetition_penalty
        )
    scores = [score / settings.temperature for score in scores]
    order = sorted(range(len(scores)), key=lambda token: -scores[token])
    order = order[: settings.top_k or len(order)]
    weights = {token: math.exp(scores[token] - scores[order[0]]) for token in order}
    whole, kept, held = sum(weights.values()), {}, 0.0
    for token in order:
        if held >= settings.top_p:
            break
        kept[token] = weights[token] / whole
        held += kept[token]
    return {token: share / sum(kept.values()) for token, share in kept.items()}


def row(seed: int, tokens: int = 12) -> torch.Tensor:
    return 2 * torch.randn(tokens, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    "settings",
    [
        TextSettings(temperature=1.0),
        TextSettings(temperature=0.5),
        TextSettings(temperature=2.0, top_k=3),
        TextSettings(temperature=1.0, top_p=0.7),
        TextSettings(temperature=1.5, top_p=0.6, top_k=5),
        TextSettings(temperature=1.0, repetition_penalty=1.8),
        TextSettings(temperature=0.8, top_p=0.9, top_k=6, repetition_penalty=1.3),
        TextSettings(temperature=1.0, top_k=100),
        TextSettings(temperature=1.0, top_p=1e-6),
    ],
)
def test_draws_follow_the_definitions(settings):
    """2000 draws: none outside what may be drawn, and shares within four standard errors of theirs."""
    scores, said = row(1), [0, 3, 3, 7]
    expected = distribution(scores.tolist(), said, settings)
    generator = torch.Generator().manual_seed(0)
    counts = Counter(choose(scores, said, settings, generator) for _ in range(2000))
    assert set(counts) <= set(expected)
    for token, share in expected.items():
        assert abs(counts[token] / 2000 - share) <= 4 * math.sqrt(share * (1 - share) / 2000) + 1e-9


def test_what_may_be_drawn_over_many_rows():
    """The likeliest token is always among them, and a single candidate is always taken."""
    draw = random.Random(0)
    for seed in range(60):
        settings = TextSettings(
            temperature=draw.uniform(0.3, 2),
            top_p=draw.uniform(0.05, 0.6),
            top_k=draw.choice([0, 1, 2, 5]),
            repetition_penalty=draw.uniform(0.8, 2),
        )
        said = [draw.randrange(12) for _ in range(4)]
        allowed = distribution(row(seed).tolist(), said, settings)
        generator = torch.Generator().manual_seed(seed)
        drawn = {choose(row(seed), said, settings, generator) for _ in range(30)}
        assert drawn <= set(allowed)
        if len(allowed) == 1:
            assert drawn == set(allowed)


def test_greedy_takes_the_likeliest():
    scores = torch.tensor([1.0, 3.0, 2.0])
    assert choose(scores, [], GREEDY, torch.Generator()) == 1
    assert choose(scores, [1], TextSettings(repetition_penalty=2.0), torch.Generator()) == 2
    assert choose(-scores, [0], TextSettings(repetition_penalty=4.0), torch.Generator()) == 2


def test_the_row_is_left_as_it_is():
    scores = row(1)
    before = scores.clone()
    choose(scores, [0, 1], TextSettings(temperature=1.0, repetition_penalty=2.0), torch.Generator())
    assert torch.equal(scores, before)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"temperature": -0.1}, "temperature -0.1 must be at least 0"),
        ({"top_p": 0.0}, "top_p 0.0 above 0 and at most 1"),
        ({"top_p": 1.5}, "top_p 1.5 above 0 and at most 1"),
        ({"top_k": -1}, "top_k -1 at least 0"),
        ({"repetition_penalty": 0.0}, "repetition_penalty 0.0 above 0"),
        ({"max_tokens": 0}, "max_tokens 0 must be at least 1"),
    ],
)
def test_refused(changes, message):
    with pytest.raises(U1Error) as raised:
        TextSettings(**changes)
    assert message in str(raised.value)


@pytest.fixture
def prompt(session):
    """(a session, a built prompt)"""
    model = session()
    (built,) = model.build_prefixes([build_sequence(model.tokenizer, "the image of a fox and")])
    return model, built


def spoken(model, built: BuiltPrefix, settings: TextSettings) -> list[int]:
    return list(say(model.understanding, model.grow(built), frozenset(), settings))


def test_greedy_text_is_the_argmax_of_each_rebuilt_prompt(prompt, text_of):
    model, built = prompt
    ids = model.tokenizer.encode("the image of a fox and")
    for token in spoken(model, built, TextSettings(max_tokens=6)):
        (whole,) = model.build_prefixes([text_of(ids)])
        assert token == int((model.understanding.lm_head @ whole.last_hidden).argmax())
        ids.append(token)


def test_a_seed_is_a_text(prompt):
    model, built = prompt
    settings = TextSettings(temperature=1.0, seed=3, max_tokens=12)
    first = spoken(model, built, settings)
    assert first == spoken(model, built, settings)
    assert first != spoken(model, built, TextSettings(temperature=1.0, seed=4, max_tokens=12))
    assert len(first) == 12


def test_the_penalty_counts_what_was_said_alone(prompt):
    """Greedily, the tiny model repeats itself; a strong penalty makes it say something else each time."""
    model, built = prompt
    said = spoken(model, built, TextSettings(repetition_penalty=1e6, max_tokens=12))
    assert len(set(said)) == 12


def test_stops_and_limits(session, scripted):
    model = session()
    (built,) = model.build_prefixes([build_sequence(model.tokenizer, "a")])
    (grown, script) = scripted(model, [10, 11, 12, 13]), [10, 11, 12, 13]

    def run(stops: frozenset[int], limit: int = 100) -> list[int]:
        return list(say(model.understanding, model.grow(built), stops, TextSettings(max_tokens=limit)))

    end = model.tokenizer.im_end
    assert run(frozenset({end})) == script
    assert run(frozenset({end}), limit=2) == script[:2]
    assert run(frozenset({12})) == script[:2]
    assert [prefix.heard for prefix in grown] == [script, script[:2], script[:2]]
    assert peek(model.understanding, grown[2]) == 12
    assert peek(model.understanding, grown[0]) == end
