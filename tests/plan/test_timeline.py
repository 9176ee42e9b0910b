"""Copies and arithmetic side by side, against cases that can be added up by hand."""

import pytest

from u1_core.plan.timeline import Visit, step_seconds

LAYERS = 6
FORWARD = [Visit(index, 1.0) for index in range(LAYERS)]
THERE_AND_BACK = [*FORWARD, Visit(None, 2.0), *(Visit(index, 2.0) for index in reversed(range(LAYERS)))]
EVERYWHERE = frozenset(range(LAYERS))


def seconds(visits, resident=frozenset(), slots=3, copy_s=1.0) -> float:
    return step_seconds(visits, frozenset(resident), slots, lambda index: copy_s)


def test_resident_layers_take_their_arithmetic_alone():
    assert seconds(FORWARD, EVERYWHERE, copy_s=9.0) == LAYERS
    assert seconds(THERE_AND_BACK, EVERYWHERE, copy_s=9.0) == LAYERS + 2 + 2 * LAYERS


@pytest.mark.parametrize("slots", [2, 3, 4])
def test_copies_that_take_less_than_arithmetic_are_hidden(slots):
    assert seconds(FORWARD, slots=slots, copy_s=0.9) == pytest.approx(LAYERS)


@pytest.mark.parametrize("slots", [2, 3, 4])
def test_copies_that_take_more_set_the_pace(slots):
    assert seconds(FORWARD, slots=slots, copy_s=3.0) == pytest.approx(3.0 * LAYERS)


def test_with_one_slot_nothing_is_side_by_side():
    assert seconds(FORWARD, slots=1, copy_s=3.0) == pytest.approx((3.0 + 1.0) * LAYERS)


@pytest.mark.parametrize("slots", [1, 2, 3])
def test_what_is_in_the_slots_at_a_turn_is_not_copied_again(slots):
    # The last layers at the top, the first ones at the bottom, where the next step begins.
    copies = 2 * (LAYERS - slots)
    found = seconds(THERE_AND_BACK, slots=slots, copy_s=100.0)
    assert 100 * copies <= found <= 100 * copies + 20


def test_copies_behind_a_pass_are_begun_before_its_end():
    # 6 copies of 1.5 a step, and 6 + 3 of arithmetic: the long last visit lets the next pass's first layers come in.
    visits = [*FORWARD, Visit(None, 3.0)]
    assert seconds(visits, slots=4, copy_s=1.5) == pytest.approx(9.0, abs=0.6)
    assert seconds(visits, slots=1, copy_s=1.5) == pytest.approx(6 * 2.5 + 3)


def test_half_of_the_layers_resident_halves_the_copies():
    assert seconds(FORWARD, {1, 3, 5}, slots=2, copy_s=4.0) == pytest.approx(12.0)
    assert seconds(FORWARD, {1, 3, 5}, slots=3, copy_s=4.0) == LAYERS  # and in three slots, three layers stay


@pytest.mark.parametrize("slots", [1, 2, 3])
@pytest.mark.parametrize("copy_s", [0.5, 1.5, 2.5])
def test_never_faster_than_arithmetic_or_copies_alone(slots, copy_s):
    found = seconds(THERE_AND_BACK, slots=slots, copy_s=copy_s)
    assert found >= max(20.0, copy_s * 2 * (LAYERS - slots)) - 1e-9
    assert found <= 20.0 + 11 * copy_s + 1e-9
