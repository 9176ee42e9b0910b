"""A step's cost from its parts', added up by hand."""

from dataclasses import replace

import pytest

from u1_core.model.stack import Keep
from u1_core.plan.costs import Bus
from u1_core.weights.placement import Placement

MIB, GIB = 2**20, 2**30
ALL_HERE = Placement(frozenset(range(42)))
STREAMED = Placement(frozenset(), 3)
INPUT = (Keep.INPUT,) * 42


def test_time_of_a_resident_step_is_the_sum_of_its_parts(training):
    expected = 42 * (0.005 + 0.012) + 0.006 + 0.01
    assert training().seconds(ALL_HERE, INPUT, 1) == pytest.approx(expected)
    assert training().arithmetic_s(INPUT, 1) == pytest.approx(expected)


def test_time_of_accumulated_pictures_layer_by_layer_waits_for_the_bus_once(training):
    model = training(micro_batches=4)
    alone, together = (model.seconds(STREAMED, INPUT, group) for group in (1, 4))
    assert model.arithmetic_s(INPUT, 1) == pytest.approx(model.arithmetic_s(INPUT, 4))
    assert together == pytest.approx(model.arithmetic_s(INPUT, 4), rel=0.01)
    assert alone > together + 0.2  # a forward pass takes 0.21 s and its copies 0.30, four times


def test_memory_at_the_head(training):
    kept = (42 * 32 + 200) * MIB
    expected = 3 * 368 * MIB + 1500 * MIB + 50 * MIB + 100 * MIB + kept + int(0.03 * kept) + 800 * MIB
    # The last layer's backward is the worst moment: its own and the head's gradients are there, the others' are not.
    assert training().peak_bytes(STREAMED, INPUT, 1) == expected + 18 * MIB + 300 * MIB


def test_memory_at_the_end_where_gradients_are_the_most(training):
    model = training(layer_gradient_bytes=400 * MIB)
    gradients = (42 * 400 + 300) * MIB
    still = (3 * 368 + 1500 + 50 + 100) * MIB
    # The first layer's backward is the worst moment: all gradients are there, and what it keeps itself.
    kept = (200 + 32) * MIB
    assert model.peak_bytes(STREAMED, INPUT, 1) == still + gradients + kept + int(0.03 * kept) + 800 * MIB


def test_gradients_of_earlier_groups_are_there_from_the_start(training):
    one, two = (training(micro_batches=count).peak_bytes(STREAMED, INPUT, 1) for count in (1, 2))
    assert two - one == 41 * 18 * MIB


def test_gradients_whose_memory_stays_are_there_from_the_start(training):
    model = training()
    stay = replace(model, costs=replace(model.costs, update=replace(model.costs.update, gradients_stay=True)))
    assert stay.peak_bytes(STREAMED, INPUT, 1) - model.peak_bytes(STREAMED, INPUT, 1) == 41 * 18 * MIB


def test_what_is_kept_is_kept_of_every_picture_that_goes_along(training):
    model = training(micro_batches=4)
    two, four = (model.peak_bytes(STREAMED, INPUT, group) for group in (2, 4))
    gradients_before = 41 * 18 * MIB  # of the first group, which all four together have none of
    assert four - two == pytest.approx(1.03 * 2 * (42 * 32 + 200) * MIB - gradients_before, abs=1)


def test_resident_layers_and_slots(training):
    model = training()
    assert model.weights_bytes(ALL_HERE) == 42 * 368 * MIB
    assert model.weights_bytes(Placement.spread(42, 10, slots=2)) == 12 * 368 * MIB
    assert model.host_bytes(Placement.spread(42, 10, slots=2)) == 32 * 368 * MIB


def test_what_the_host_is_short_of(training):
    model = training(host_free_bytes=30 * 368 * MIB)
    lacking = [model.predict(Placement.spread(42, count), INPUT, 1).host_lacks_bytes for count in (0, 11, 12, 42)]
    assert lacking == [12 * 368 * MIB, 368 * MIB, 0, 0]


def test_quantised_layers_cross_the_bus_as_blocks_and_are_dequantised_one_at_a_time(sampling):
    model = replace(sampling, copied_bytes=100 * MIB)
    assert model.weights_bytes(STREAMED) == 3 * 100 * MIB + 368 * MIB
    assert model.host_bytes(STREAMED) == 42 * 100 * MIB
    assert model.seconds(STREAMED, INPUT, 1) == pytest.approx(42 * 0.009 + 0.006)


def test_layers_that_could_not_be_page_locked_come_at_the_slower_rate(training):
    pinned, half, none = (
        training(bus=Bus(50 * GIB, 5 * GIB, pinned_bytes)).seconds(STREAMED, INPUT, 1)
        for pinned_bytes in (42 * 368 * MIB, 21 * 368 * MIB, 0)
    )
    assert pinned < half < none
    assert none == pytest.approx(2 * (42 - 3) * 368 / 1024 / 5, rel=0.02)  # the bus sets the pace


def test_sampling_holds_no_gradients_and_keeps_nothing(sampling):
    assert sampling.peak_bytes(STREAMED, INPUT, 1) == (3 * 368 + 200 + 100 + 200 + 1000) * MIB
    assert sampling.seconds(ALL_HERE, INPUT, 1) == pytest.approx(42 * 0.009 + 0.006)
