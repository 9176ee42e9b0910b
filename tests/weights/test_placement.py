import itertools

import pytest

from u1_core.weights.placement import Placement


@pytest.mark.parametrize(
    ("layers", "resident", "chosen"),
    [(6, 0, []), (6, 2, [2, 5]), (6, 3, [1, 3, 5]), (6, 6, [0, 1, 2, 3, 4, 5]), (5, 2, [2, 4])],
)
def test_resident_layers_are_spread_evenly(layers, resident, chosen):
    assert sorted(Placement.spread(layers, resident).resident) == chosen


def test_streamed_layers_are_never_more_than_their_share_apart():
    for resident in range(43):
        chosen = sorted(Placement.spread(42, resident).resident)
        assert len(chosen) == resident
        gaps = [b - a for a, b in itertools.pairwise(chosen)]
        assert not gaps or max(gaps) - min(gaps) <= 1
