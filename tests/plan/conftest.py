"""A made-up card and a made-up step, whose plans can be worked out by hand."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from u1_core.model.stack import Keep
from u1_core.plan import eight_bit
from u1_core.plan.costs import Bus, Costs, EndsCost, LayerCost, UpdateCost
from u1_core.plan.step_model import StepModel

MIB, GIB = 2**20, 2**30

COSTS = Costs(
    layer={
        Keep.INPUT: LayerCost(0.005, 0.012, 32 * MIB, 800 * MIB),
        Keep.ATTENTION: LayerCost(0.005, 0.011, 64 * MIB, 770 * MIB),
        Keep.PRODUCTS: LayerCost(0.005, 0.009, 300 * MIB, 500 * MIB),
        Keep.ALL: LayerCost(0.005, 0.007, 600 * MIB, 200 * MIB),
    },
    ends=EndsCost(0.006, 200 * MIB, 100 * MIB, 100 * MIB),
    update=UpdateCost(0.01, 50 * MIB, 30 * MIB),
    slack_bytes=100 * MIB,
)
"""About U1-8B's, at the pace of a fast card."""

TRAINING = StepModel(
    layers=42,
    layer_bytes=368 * MIB,
    copied_bytes=368 * MIB,
    micro_batches=1,
    fixed_bytes=1500 * MIB,
    layer_gradient_bytes=18 * MIB,
    ends_gradient_bytes=300 * MIB,
    trains=True,
    costs=COSTS,
    bus=Bus(pinned_rate=50 * GIB, pageable_rate=10 * GIB, pinned_bytes=100 * GIB),
    host_free_bytes=64 * GIB,
)


@pytest.fixture
def training() -> Callable[..., StepModel]:
    """A training step; fields given in place of the usual ones."""
    return lambda **changes: replace(TRAINING, **changes)


@pytest.fixture
def sampling() -> StepModel:
    """A sampling step."""
    layer = {Keep.INPUT: LayerCost(0.009, 0.0, 0, 1000 * MIB)}
    costs = replace(COSTS, layer=layer, update=UpdateCost(0.0, 0, 0))
    return replace(
        TRAINING, trains=False, costs=costs, fixed_bytes=200 * MIB, layer_gradient_bytes=0, ends_gradient_bytes=0
    )


@pytest.fixture
def untried():
    """What was found out about the 8-bit optimizer is forgotten, before the test and after it."""
    eight_bit.why_not.cache_clear()
    yield
    eight_bit.why_not.cache_clear()
