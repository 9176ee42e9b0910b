import pytest
import torch

from u1_core.errors import U1Error
from u1_core.train.optimizers import make_optimizer

CPU = torch.device("cpu")


def test_auto_on_a_cpu_is_adamw_and_says_why():
    parameter = torch.ones(3, requires_grad=True)
    optimizer, words = make_optimizer("auto", [parameter], 1e-3, CPU)
    assert isinstance(optimizer, torch.optim.AdamW)
    assert words == "AdamW, fused (not the paged 8-bit one: the device is cpu)"
    assert optimizer.param_groups[0]["betas"] == (0.9, 0.95)


def test_the_first_step_moves_by_the_learning_rate_and_decays():
    parameter = torch.full((1000,), 2.0, requires_grad=True)
    optimizer, _ = make_optimizer("adamw", [parameter], 1e-2, CPU)
    parameter.grad = torch.full((1000,), 5.0)
    optimizer.step()
    # Adam's first step is lr * sign(gradient); decay takes lr * 0.01 of the weight.
    torch.testing.assert_close(parameter.detach(), torch.full((1000,), 2.0 - 1e-2 - 1e-4 * 2.0))


def test_8bit_asked_for_where_it_cannot_be_had():
    with pytest.raises(
        U1Error, match=r"^train\.optimizer is paged_adamw8bit, but the device is cpu; use adamw or auto$"
    ):
        make_optimizer("paged_adamw8bit", [torch.ones(1, requires_grad=True)], 1e-3, CPU)
