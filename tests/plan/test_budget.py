"""Budgets as people write them."""

from types import SimpleNamespace

import pytest
import torch

from u1_core.errors import U1Error
from u1_core.plan import budget as module
from u1_core.plan.budget import GIB, Budget, desktop_bytes, enforce, free_bytes


@pytest.mark.parametrize(
    ("text", "n_bytes"),
    [
        ("12GB", 12 * 10**9),
        ("12 gib", 12 * GIB),
        ("12G", 12 * GIB),
        ("7.2", int(7.2 * GIB)),
        (".5", GIB // 2),
        ("800MB", 800 * 10**6),
        ("800 MiB", 800 * 2**20),
    ],
)
def test_amounts(text, n_bytes):
    assert Budget.parse(text) == Budget("", n_bytes)


@pytest.mark.parametrize("text", ["auto", "Full", " balanced ", "LOW"])
def test_modes(text):
    assert Budget.parse(text) == Budget(text.strip().lower())
    assert Budget.parse(Budget.parse(text)) == Budget.parse(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "ballanced",
            "budget 'ballanced' is neither an amount of memory (12GB, 12GiB, or 7.2 for GiB) nor one of auto, full, "
            "balanced, low; did you mean 'balanced'?",
        ),
        (
            "-3",
            "budget '-3' is neither an amount of memory (12GB, 12GiB, or 7.2 for GiB) nor one of auto, full, balanced, "
            "low",
        ),
        ("12MB", "budget '12MB' is 12,000,000 bytes, too little for any layer; a plain number counts GiB"),
    ],
)
def test_refused(text, message):
    with pytest.raises(U1Error) as raised:
        Budget.parse(text)
    assert str(raised.value) == message


def test_in_words():
    assert [str(Budget.parse(text)) for text in ("low", "7.2", "12GB")] == ["low", "7.20 GiB", "11.18 GiB"]


def test_a_sixteenth_of_the_card_but_no_more_than_a_gib_is_left_to_the_desktop():
    assert desktop_bytes(8 * GIB) == GIB // 2
    assert desktop_bytes(24 * GIB) == GIB


@pytest.fixture
def card(monkeypatch) -> SimpleNamespace:
    """A card of 8 GiB, of which 5 are free and this process holds 2."""
    asked = SimpleNamespace(fraction=None)
    cuda = SimpleNamespace(
        mem_get_info=lambda device: (5 * GIB, 8 * GIB),
        memory_reserved=lambda device: 2 * GIB,
        set_per_process_memory_fraction=lambda fraction, device: setattr(asked, "fraction", fraction),
    )
    monkeypatch.setattr(module.torch, "cuda", cuda)
    return asked


def test_free_is_what_nobody_has_and_what_we_have(card):
    assert free_bytes(torch.device("cuda")) == 5 * GIB + 2 * GIB - GIB // 2


def test_an_amount_is_enforced_and_a_mode_is_not(card):
    enforce(Budget("auto"), torch.device("cuda"))
    assert card.fraction is None
    enforce(Budget("", 6 * GIB), torch.device("cuda"))
    assert card.fraction == 0.75
    enforce(Budget("", 80 * GIB), torch.device("cuda"))
    assert card.fraction == 1.0
