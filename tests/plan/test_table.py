"""A plan as a table."""

from u1_core.model.stack import Keep
from u1_core.plan.plan import Plan
from u1_core.plan.table import budget_lines, ladder_words, plan_lines
from u1_core.weights.placement import Placement


def test_what_goes_where_adds_up_to_the_peak(training):
    model = training(micro_batches=4)
    kept = (Keep.INPUT,) * 30 + (Keep.ATTENTION,) * 12
    plan = Plan.of(Placement.spread(42, 10, slots=3), kept, 2, model.predict)
    lines = list(plan_lines(model, plan))
    assert lines[1:] == [
        "    4.67 GiB  10 layers that stay, 3 slots for 32 of 42 layers that come and go",
        "    1.46 GiB  the tower's other tensors, what is trained, prefix K/V",
        "    0.05 GiB  optimizer's state",
        "    3.77 GiB  kept for backward: 30 x input only, 12 x attention's result",
        "    1.03 GiB  gradients at that moment",
        "    0.75 GiB  activations of a layer at work",
        "    0.21 GiB  gaps between them",
        "   11.50 GiB  in the host's memory: layers that come and go",
        "  2 of 4 micro-batches go through a layer together",
    ]
    assert lines[0] == f"predicted: {plan.seconds:.3f} s a step, 11.94 GiB of the card at the peak"
    on_the_card = sum(float(line.split()[0]) for line in lines[1:8])
    assert abs(on_the_card - 11.94) < 0.04


def test_all_layers_on_the_card(sampling):
    plan = Plan.of(Placement(frozenset(range(42))), (Keep.INPUT,) * 42, 1, sampling.predict)
    assert list(plan_lines(sampling, plan)) == [
        "predicted: 0.384 s a step, 16.56 GiB of the card at the peak",
        "   15.09 GiB  all 42 layers",
        "    0.20 GiB  the tower's other tensors, what is trained, prefix K/V",
        "    1.17 GiB  activations of a layer at work",
        "    0.10 GiB  gaps between them",
        "    0.00 GiB  in the host's memory: layers that come and go",
    ]


def test_other_budgets_up_to_the_one_that_gains_nothing(training):
    lines = list(budget_lines(training(), (4, 8, 64, 80)))
    assert [line.split("GiB")[0].strip() for line in lines[:4]] == ["budget  at the peak  s a step", "4", "8", "64"]
    assert lines[1] == "     4 GiB   too little"
    assert lines[3].endswith("42 x everything")
    assert lines[4] == "      more  gains nothing"
    assert float(lines[2].split()[4]) > float(lines[3].split()[4])


def test_rungs_in_words():
    assert ladder_words([Keep.INPUT, Keep.INPUT, Keep.ALL]) == "2 x input only, 1 x everything"
