"""A plan gives up memory step by step, in the order in which that costs least."""

from dataclasses import replace

from u1_core.model.stack import Keep
from u1_core.plan.plan import RUNGS, Cost, Plan
from u1_core.weights.placement import Placement

LAYERS = 8
LAYER = 100


def predict(placement: Placement, kept: tuple[Keep, ...], together: int) -> Cost:
    """100 bytes a layer or slot, 10 a rung and micro-batch."""
    streamed = LAYERS - len(placement.resident)
    slots = placement.slots if streamed else 0
    kept_bytes = sum(10 * RUNGS.index(keep) * together for keep in kept)
    return Cost(LAYER * (len(placement.resident) + slots) + kept_bytes + 7 * together, 1.0)


def plan(resident: int, slots: int, kept: tuple[Keep, ...], together: int = 1) -> Plan:
    return Plan.of(Placement.spread(LAYERS, resident, slots), kept, together, predict)


def all_steps_back(start: Plan) -> list[Plan]:
    plans = [start]
    while plans[-1] is not None:
        plans.append(plans[-1].step_back())
    return plans[:-1]


def test_each_step_back_takes_less_memory_and_the_last_streams_everything_through_one_slot():
    plans = all_steps_back(plan(5, 3, (Keep.INPUT,) * 2 + (Keep.PRODUCTS,) * 2 + (Keep.ALL,) * 4, together=4))
    peaks = [each.peak_bytes for each in plans]
    assert peaks == sorted(set(peaks), reverse=True)
    assert plans[-1] == plan(0, 1, (Keep.INPUT,) * LAYERS)
    assert plans[-1].peak_bytes == LAYER + 7


def test_first_the_lowest_layers_of_the_highest_rung_then_pictures_then_slots_then_residents():
    start = plan(4, 2, (Keep.INPUT,) * 6 + (Keep.ATTENTION,) * 2, together=3)
    assert [
        (
            [RUNGS.index(keep) for keep in each.kept[-2:]],
            each.together,
            each.placement.slots,
            len(each.placement.resident),
        )
        for each in all_steps_back(start)
    ] == [
        ([1, 1], 3, 2, 4),
        ([0, 1], 3, 2, 4),
        ([0, 0], 3, 2, 4),
        ([0, 0], 1, 2, 4),
        ([0, 0], 1, 1, 4),
        ([0, 0], 1, 1, 3),
        ([0, 0], 1, 1, 2),
        ([0, 0], 1, 1, 1),
        ([0, 0], 1, 1, 0),
    ]


def test_steps_that_would_save_nothing_are_left_out():
    start = plan(LAYERS, 3, (Keep.INPUT,) * LAYERS)
    later = start.step_back()
    assert (later.peak_bytes, len(later.placement.resident)) == (7 + 7 * LAYER, 6)


def test_a_plan_that_has_nothing_left_to_give_up_has_no_step_back():
    assert plan(0, 1, (Keep.INPUT,) * LAYERS).step_back() is None


def test_no_step_back_wants_more_of_the_hosts_memory_than_there_is_or_than_is_lacking_already():
    def short_of_host(free: int):
        """Host memory for this many layers."""

        def predict_both(placement: Placement, kept: tuple[Keep, ...], together: int) -> Cost:
            lacking = LAYER * max(0, LAYERS - len(placement.resident) - free)
            return replace(predict(placement, kept, together), host_lacks_bytes=lacking)

        return predict_both

    start = Placement.spread(LAYERS, 4, slots=2), (Keep.INPUT,) * LAYERS, 1
    residents = {
        free: [len(each.placement.resident) for each in all_steps_back(Plan.of(*start, short_of_host(free)))]
        for free in (8, 6, 4, 3)
    }
    assert residents == {8: [4, 4, 3, 2, 1, 0], 6: [4, 4, 3, 2], 4: [4, 4], 3: [4, 4]}
