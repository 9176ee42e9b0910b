import sys
from copy import deepcopy

import pytest
import torch

from u1_core.errors import U1Error
from u1_core.lora.adapter import Adapter, LoraModule
from u1_core.plan import eight_bit
from u1_core.train import optimizers
from u1_core.train.optimizers import averaged_weights, make_optimizer, parameter_groups
from u1_core.train.recipe import Train

CPU = torch.device("cpu")


def group(tensor, lr=1e-2):
    return [{"params": [tensor], "lr": lr, "base_lr": lr}]


def test_auto_on_a_cpu_is_adamw():
    optimizer, words = make_optimizer(Train(), group(torch.ones(3, requires_grad=True)), CPU)
    assert isinstance(optimizer, torch.optim.AdamW)
    assert words == "AdamW, fused"
    assert optimizer.param_groups[0]["betas"] == (0.9, 0.95)


def test_the_first_step_moves_by_the_learning_rate_and_decays():
    parameter = torch.full((1000,), 2.0, requires_grad=True)
    optimizer, _ = make_optimizer(Train(optimizer="adamw"), group(parameter), CPU)
    parameter.grad = torch.full((1000,), 5.0)
    optimizer.step()
    # Adam's first step is lr * sign(gradient); decay takes lr * 0.01 of the weight.
    torch.testing.assert_close(parameter.detach(), torch.full((1000,), 2.0 - 1e-2 - 1e-4 * 2.0))


def test_8bit_asked_for_where_it_cannot_be_had():
    with pytest.raises(
        U1Error, match=r"^train\.optimizer is paged_adamw8bit, but the device is cpu; use adamw or auto$"
    ):
        make_optimizer(Train(optimizer="paged_adamw8bit"), group(torch.ones(1, requires_grad=True)), CPU)


def test_down_up_and_whole_tensors_have_their_learning_rates():
    adapter = Adapter({"a": LoraModule(torch.ones(2, 3), torch.ones(4, 2), 2.0)}, {"b": torch.ones(5)})
    groups = parameter_groups(Train(lr=1e-3, lora_plus=16, lr_full=1e-5), adapter)
    assert [(found["params"][0].shape, found["lr"]) for found in groups] == [
        ((2, 3), 1e-3),
        ((4, 2), 1.6e-2),
        ((5,), 1e-5),
    ]
    assert len(parameter_groups(Train(), Adapter({}, {"b": torch.ones(5)}))) == 1


@pytest.mark.parametrize("name", ["adafactor", "prodigy", "schedule_free", "adamw"])
def test_every_optimizer_lowers_a_square_and_goes_on_from_its_state_to_the_bit(name):
    train = Train(optimizer=name, lr=1.0 if name == "prodigy" else 0.05)

    def descend(parameter, optimizer, steps):
        for _ in range(steps):
            (parameter - 3).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()

    whole = torch.zeros(4, 4, requires_grad=True)
    optimizer, _ = make_optimizer(train, group(whole, train.lr), CPU)
    descend(whole, optimizer, 50)
    assert (whole - 3).abs().max() < 3 - 1e-3
    again = whole.detach().clone().requires_grad_()
    resumed, _ = make_optimizer(train, group(again, train.lr), CPU)
    resumed.load_state_dict(deepcopy(optimizer.state_dict()))
    descend(whole, optimizer, 5)
    descend(again, resumed, 5)
    assert torch.equal(whole, again)


def test_averaging_leaves_the_weights_as_they_are():
    parameter = torch.zeros(100, requires_grad=True)
    optimizer, _ = make_optimizer(Train(optimizer="schedule_free"), group(parameter), CPU)
    for _ in range(7):
        (parameter - 3).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    before = parameter.detach().clone()
    averaged = averaged_weights(optimizer, {"a": parameter})["a"]
    assert torch.equal(parameter, before)
    assert not torch.equal(averaged, before)


def test_a_package_that_is_missing_is_named_before_anything_is_looked_at(session, recipe, with_train, run, monkeypatch):
    monkeypatch.setitem(sys.modules, "prodigyopt", None)
    job = run(session, with_train(recipe, optimizer="prodigy", lr=1))
    assert str(job.error) == (
        "train.optimizer is prodigy, but prodigyopt is not installed; `pip install prodigyopt`, or use adamw"
    )
    assert [event.kind for event in job.events()] == ["started", "failed"]


def test_a_card_without_the_8_bit_optimizer_takes_the_plain_one_and_says_why(monkeypatch):
    monkeypatch.setattr(eight_bit, "why_not", lambda device: "bitsandbytes does not work: no library")
    monkeypatch.setitem(optimizers._MAKERS, "adamw", lambda groups, decay: (None, "AdamW, fused"))
    _, words = make_optimizer(Train(), [], torch.device("cuda"))
    assert words == "AdamW, fused (not the paged 8-bit one: bitsandbytes does not work: no library)"
