import math

from u1_core.train.guard import Guard
from u1_core.train.recipe import Train


def record(loss):
    return [{"loss": loss, "sample": "a.png", "t": 0.25}]


def test_spikes_count_only_once_enough_is_known():
    guard = Guard(Train(spike=5.0))
    assert [guard.judge(record(loss), 1.0) for loss in (0.01, 99.0)] == ["", ""]
    guard = Guard(Train(spike=5.0))
    assert not any(guard.judge(record(0.1), 1.0) for _ in range(20))
    assert guard.judge(record(0.49), 1.0) == ""
    reason = guard.judge(record(2.6), 1.0)
    assert reason == "loss 2.6, over 5 times the largest of late, 0.49 (sample a.png, t 0.250)"
    assert guard.judge(record(2.4), 1.0) == ""


def test_what_is_no_number_is_skipped_from_the_first_step_and_too_many_are_too_many():
    guard = Guard(Train(max_skips=2, spike=0))
    for number, (loss, norm) in enumerate([(math.nan, 1.0), (0.1, math.inf), (math.inf, 1.0)], start=1):
        assert guard.judge(record(loss), norm).startswith("loss ")
        assert (guard.skipped, guard.exhausted) == (number, number > 2)
    assert guard.judge(record(0.1), 1.0) == ""
    assert guard.skipped == 0


def test_its_state_is_all_of_it():
    guard, other = Guard(Train()), Guard(Train())
    for number in range(150):
        guard.judge(record(number / 100), 1.0)
    guard.rollbacks = 2
    other.restore(guard.state())
    assert other.state() == guard.state()
    assert (len(other.state()["recent"]), other.lr_scale) == (100, 0.25)
