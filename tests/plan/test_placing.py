"""Where a tower lies follows from the budget and from what else is on the card."""

from types import SimpleNamespace

import pytest
import torch

from u1_core.errors import U1Error
from u1_core.plan import placing as module
from u1_core.plan.budget import Budget
from u1_core.plan.placing import Placing
from u1_core.plan.planner import choose_plan
from u1_core.plan.work import ends_bytes
from u1_core.weights.placement import Placement

GIB = 2**30


@pytest.fixture
def card(monkeypatch, training) -> SimpleNamespace:
    """A card of 80 GiB with nothing on it, on which a step is the made-up one."""
    state = SimpleNamespace(allocated=0, free=80 * GIB, model=training())
    monkeypatch.setattr(module, "model_here", lambda device, work: state.model)
    monkeypatch.setattr(module, "free_bytes", lambda device: state.free)
    monkeypatch.setattr(module.torch.cuda, "memory_allocated", lambda device: state.allocated)
    return state


@pytest.fixture
def placing(tiny):
    def make(budget: str = "auto", **fields) -> Placing:
        config = tiny("u1").config
        return Placing(config, torch.bfloat16, torch.device("cuda"), Budget.parse(budget), **fields)

    return make


def plan(placing: Placing, loaded=False, held=False, already_bytes=0):
    return placing.plan(None, loaded, held, already_bytes)


def test_with_nothing_else_on_the_card_it_is_the_planners_choice(card, placing):
    assert plan(placing("16")) == choose_plan(card.model, Budget.parse("16"), 0)
    assert plan(placing("auto")) == choose_plan(card.model, Budget(), card.free)


def test_what_else_is_on_the_card_leaves_that_much_less(card, placing):
    card.allocated = 4 * GIB
    assert plan(placing("16")).placement == choose_plan(card.model, Budget.parse("12"), 0).placement
    assert plan(placing("16"), already_bytes=4 * GIB) == choose_plan(card.model, Budget.parse("16"), 0)


def test_the_tower_itself_is_not_something_else(card, placing):
    placement = Placement.spread(42, 20, slots=3)
    mine = placing("24", placement=placement)
    card.allocated = card.model.weights_bytes(placement) + ends_bytes(mine.config, mine.dtype)
    assert plan(mine, loaded=True) == choose_plan(card.model, Budget.parse("24"), 0)


@pytest.mark.parametrize("why", ["held", "fixed"])
def test_a_placement_that_has_to_stay_stays(card, placing, why):
    placement = Placement.spread(42, 7, slots=2)
    mine = placing("24", placement=placement, fixed=why == "fixed")
    found = plan(mine, held=why == "held")
    assert found.placement == placement
    assert found == choose_plan(card.model, Budget.parse("24"), 0, placement)


def test_too_small_a_budget_is_refused(card, placing):
    card.allocated = 10 * GIB
    with pytest.raises(
        U1Error, match=r"budget 12\.00 GiB: 12\.00 GiB may be taken on the card and at least 14\.97 GiB"
    ):
        plan(placing("12"))


def test_room_is_lacking_for_more_pixels_than_before(placing):
    mine = placing()
    assert mine.lacks_room((1, 3, 64, 64), 2)
    mine.made_for((1, 3, 64, 64), 2)
    assert not mine.lacks_room((2, 3, 64, 64), 1)
    assert mine.lacks_room((1, 3, 64, 64), 3)
    mine.made_for((1, 3, 32, 32), 1)  # another placement, which leaves less room
    assert mine.lacks_room((1, 3, 64, 64), 2)
    assert not placing(placement=Placement(frozenset()), fixed=True).lacks_room((9, 3, 999, 999), 9)


def test_what_others_have_on_the_card_is_not_for_prompts(card, placing):
    card.allocated = 5 * GIB
    assert placing("16").beside_others(12.0 * GIB, own_bytes=2 * GIB) == 9 * GIB
    assert placing("16").beside_others(4.0 * GIB, own_bytes=0) == 0
    assert placing("low").beside_others(12.0 * GIB, own_bytes=2 * GIB) == 0


def test_the_work_of_a_pass(placing):
    mine = placing(copied_bytes=5)
    assert mine.native_shape() == (1, 3, 512, 512)
    work = mine.sampling_work((3, 3, 64, 96), 2, 17)
    assert (work.batch, work.height, work.width, work.branches, work.prefix_tokens) == (3, 64, 96, 2, 17)
    assert work.copied_bytes == 5
