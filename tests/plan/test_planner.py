"""The plans one expects of a card whose figures are known."""

from dataclasses import replace
from itertools import pairwise

import pytest

from u1_core.errors import U1Error
from u1_core.model.stack import Keep
from u1_core.plan.budget import GIB, Budget
from u1_core.plan.costs import Bus, LayerCost
from u1_core.plan.planner import choose_plan, least_plan
from u1_core.weights.placement import Placement

MIB = 2**20
CARD = 80 * GIB
BUDGETS = (6, 7.2, 16, 32)


def choose(model, text, free_bytes=CARD, placement=None):
    return choose_plan(model, Budget.parse(str(text)), free_bytes, placement)


@pytest.mark.parametrize("micro_batches", [1, 4])
def test_a_larger_budget_is_never_slower_and_no_plan_is_above_its_budget(training, micro_batches):
    plans = [choose(training(micro_batches=micro_batches), budget) for budget in BUDGETS]
    for budget, plan in zip(BUDGETS, plans, strict=True):
        assert plan.peak_bytes <= budget * GIB
    for smaller, larger in pairwise(plans):
        assert larger.seconds <= smaller.seconds * 1.005


def test_where_there_is_room_everything_is_kept_and_nothing_computed_again(training):
    plan = choose(training(), 70)
    assert plan.seconds == pytest.approx(42 * 0.012 + 0.016, rel=0.006)
    assert set(plan.kept) == {Keep.ALL}


def test_a_small_card_streams_everything(training):
    plan = choose(training(), 7.2)
    assert plan.placement.resident == frozenset()
    assert plan.together == 1


def test_what_is_kept_is_kept_of_the_last_layers(training):
    plan = choose(training(), 20)
    rungs = [list(Keep).index(keep) for keep in plan.kept]
    assert rungs == sorted(rungs)
    assert len(set(rungs)) == 2


def test_where_the_bus_is_slow_memory_goes_to_resident_layers_and_where_it_is_fast_to_what_is_kept(training):
    slow, fast = (choose(training(bus=Bus(rate, rate, CARD)), 16) for rate in (12 * GIB, 200 * GIB))
    assert len(slow.placement.resident) > len(fast.placement.resident)
    assert sum(keep is Keep.INPUT for keep in slow.kept) > sum(keep is Keep.INPUT for keep in fast.kept)


def test_small_pictures_go_through_a_layer_together(training):
    model = training(micro_batches=4)
    quarter = {
        keep: LayerCost(cost.forward_s / 4, cost.backward_s / 4, cost.kept_bytes // 4, cost.work_bytes // 4)
        for keep, cost in model.costs.layer.items()
    }
    plan = choose(replace(model, costs=replace(model.costs, layer=quarter)), 8)
    assert plan.together == 4
    assert plan.seconds <= 1.2 * model.arithmetic_s((Keep.INPUT,) * 42, 4) / 4


def test_modes(training):
    model = training()
    full, balanced, low, auto = (choose(model, mode) for mode in ("full", "balanced", "low", "auto"))
    assert len(full.placement.resident) == 42
    assert low.placement.resident == frozenset()
    assert set(low.kept) == {Keep.INPUT}
    assert low.peak_bytes < balanced.peak_bytes < auto.peak_bytes
    assert auto.seconds <= full.seconds * 1.005
    assert auto.seconds < balanced.seconds <= auto.seconds * 1.1


def test_sampling_streams_for_nothing_where_arithmetic_is_longer(sampling):
    plan = choose(sampling, "low")
    assert plan.seconds == pytest.approx(42 * 0.009 + 0.006, rel=0.01)
    assert plan.peak_bytes < 2.6 * GIB


def test_the_least_plan_streams_through_two_slots(training):
    plan = least_plan(training(micro_batches=4))
    assert plan.placement == Placement(frozenset(), 2)
    assert plan.together == 1


def test_a_placement_that_is_given_stays(training):
    placement = Placement.spread(42, 5, slots=2)
    plan = choose(training(), 24, placement=placement)
    assert plan.placement == placement
    assert plan.kept[-1] is not Keep.INPUT


@pytest.mark.parametrize(
    ("budget", "changes", "message"),
    [
        (
            "4",
            {},
            "budget 4.00 GiB: 4.00 GiB may be taken on the card and at least 4.97 GiB are needed; make the pictures "
            "smaller or train less",
        ),
        (
            "low",
            {"fixed_bytes": 90 * GIB},
            "budget low: 80.00 GiB may be taken on the card and at least 93.51 GiB are needed; make the pictures "
            "smaller or train less",
        ),
        (
            "full",
            {"fixed_bytes": 70 * GIB},
            "budget full: 80.00 GiB may be taken on the card and at least 87.89 GiB are needed; use balanced or low",
        ),
        (
            "low",
            {"host_free_bytes": 10 * GIB},
            "budget low: the layers that are not on the card do not fit in the host's memory (10.00 GiB free); close "
            "other programs, or allow the card more",
        ),
    ],
)
def test_refused(training, budget, changes, message):
    with pytest.raises(U1Error) as raised:
        choose(training(**changes), budget)
    assert str(raised.value) == message


def test_a_small_host_keeps_layers_on_the_card(training):
    plan = choose(training(host_free_bytes=10 * GIB), 16)
    assert len(plan.placement.resident) >= 42 - 10 * 1024 / 368
