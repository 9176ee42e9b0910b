from dataclasses import replace

import pytest
import torch

from u1_core.jobs import Job
from u1_core.model.stack import Keep
from u1_core.train.gradients import GradientSum
from u1_core.train.prepare import prepare


def test_gradients_are_added_in_the_micro_batches_order_whatever_theirs():
    """In fp32, 1 + 1e8 - 1e8 depends on the order: from the left it is 0."""
    parts = torch.tensor([1.0, 1e8, -1e8])
    for order in ([0, 1, 2], [2, 1, 0], [1, 2, 0], [2, 0, 1]):
        weight = torch.zeros(1, requires_grad=True)
        sums = GradientSum({"weight": weight})
        leaves = [sums.stand_ins(number, {"weight": weight})["weight"] for number in range(3)]
        for number in order:
            (leaves[number] * parts[number]).sum().backward()
        sums.finish()
        assert weight.grad.item() == 0.0
        assert all(leaf.grad is None for leaf in leaves)


def test_a_micro_batch_that_a_weight_had_no_part_in_keeps_none_waiting():
    weight = torch.zeros(1, requires_grad=True)
    sums = GradientSum({"weight": weight})
    leaves = [sums.stand_ins(number, {"weight": weight})["weight"] for number in range(3)]
    (leaves[2] * 5.0).sum().backward()
    (leaves[1] * 2.0).sum().backward()
    assert weight.grad is None
    sums.finish()
    assert weight.grad.item() == 7.0


def test_stand_ins_in_another_dtype_give_gradients_in_the_weights_own():
    weight = torch.zeros(2, requires_grad=True)
    sums = GradientSum({"weight": weight})
    leaf = sums.stand_ins(0, {"weight": weight.detach().bfloat16()})["weight"]
    (leaf.float() * torch.tensor([1.0, 3.0])).sum().backward()
    assert weight.grad.dtype == torch.float32
    assert weight.grad.tolist() == [1.0, 3.0]


def weights_after(session, recipe, steps=3, **plan):
    trainer = prepare(Job(print), session, recipe)
    trainer.plan = replace(trainer.plan, **plan)
    for step in range(1, steps + 1):
        trainer.step(step)
    return {name: tensor.detach().clone() for name, tensor in trainer.parameters.items()}


@pytest.mark.parametrize("batch_size", [1, 2])
def test_no_plan_changes_a_bit_of_the_weights(session, recipe, with_train, batch_size):
    recipe = with_train(recipe, grad_accum=5, batch_size=batch_size, cond_dropout_text=0.3)
    recipe = replace(recipe, lora=replace(recipe.lora, dropout=0.2))
    alone = weights_after(session, recipe, together=1, kept=(Keep.ALL,) * 3)
    for together, kept in ((2, Keep.INPUT), (3, Keep.ATTENTION), (5, Keep.PRODUCTS), (8, Keep.ALL)):
        found = weights_after(session, recipe, together=together, kept=(kept,) * 3)
        assert all(torch.equal(found[name], tensor) for name, tensor in alone.items())
