from u1_core.model.stack import Keep
from u1_core.plan.plan import Cost, Plan
from u1_core.train.pace import WARM_UP, Pace
from u1_core.weights.placement import Placement

PLAN = Plan.of(
    Placement.spread(4, 1, slots=2), (Keep.INPUT, Keep.INPUT, Keep.ALL, Keep.ALL), 3, lambda *_: Cost(1000, 0.5)
)


def test_a_plan_in_numbers():
    assert Pace(PLAN).predicted() == {
        "resident": 1,
        "slots": 2,
        "kept": {"input": 2, "all": 2},
        "together": 3,
        "predicted_seconds": 0.5,
        "predicted_bytes": 1000,
    }


def test_seconds_are_the_median_after_the_warm_up_and_memory_is_the_most():
    pace = Pace(PLAN)
    for number, seconds in enumerate([9.0, 8.0, 0.6, 0.5, 0.9]):
        assert bool(pace.measured()) == (number > WARM_UP)
        pace.add([{"seconds": seconds, "reserved_bytes": 1100 - number}, {"seconds": seconds, "reserved_bytes": 0}])
    measured = pace.measured()
    assert (measured["seconds"], measured["steps"], measured["reserved_bytes"]) == (0.6, 3, 1100)
    assert measured["predicted_seconds"] == 0.5
