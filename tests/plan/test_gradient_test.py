"""The self-test finds gradients that are right, and those that are not."""

from dataclasses import replace

import pytest
import torch

from u1_core.model.stack import Keep
from u1_core.plan import gradient_test as module
from u1_core.plan.gradient_test import GradientTest, difference, gradient_test

CPU = torch.device("cpu")


@pytest.fixture
def config(tiny):
    return tiny("u1").config


def test_on_a_cpu_streamed_gradients_are_the_resident_ones_to_the_bit(config):
    found = gradient_test(config, CPU, torch.float32, side=4 * config.token_pixels)
    assert found == GradientTest(0.0, dict.fromkeys(Keep, 0.0), "4 layers of width 64, 32x32 pixels, 2 slots")
    assert found.agrees
    assert str(found) == (
        "streamed and resident agree within the noise: 0.0e+00 apart, noise 0.0e+00 (4 layers of width 64, 32x32 "
        "pixels, 2 slots)"
    )


def test_a_slot_that_is_overwritten_too_early_is_found(config, monkeypatch):
    # As if the copy for the next layer began while this one is still needed.
    monkeypatch.setattr(module.Emptied, "wait", lambda copies, slot: slot.flat.fill_(float("nan")))
    found = gradient_test(config, CPU, torch.float32, side=4 * config.token_pixels)
    assert not found.agrees
    assert "DIFFER: do not train with layers that come and go here" in str(found)


def test_a_difference_within_the_noise_agrees_and_one_beyond_does_not():
    found = GradientTest(1e-3, dict.fromkeys(Keep, 1.4e-3), "")
    assert found.agrees
    assert not replace(found, differences={**found.differences, Keep.ALL: 1.6e-3}).agrees


def test_differences_are_relative_together_and_the_worst_alone():
    theirs = [torch.tensor([3.0, 0.0]), torch.tensor([0.0, 4.0])]
    ours = [torch.tensor([3.0, 0.3]), torch.tensor([0.0, 4.0])]
    together, worst = difference(ours, theirs)
    assert together == pytest.approx(0.3 / 5)
    assert worst == pytest.approx(0.1)
    assert difference([torch.tensor([float("nan"), 0.0]), theirs[1]], theirs) == (float("inf"), float("inf"))
