"""Measuring, on a CPU: the same passes as on a card, by the clock; and what is made of a card's readings."""

import pytest
import torch

from u1_core.lora.plan import plan_lora, select_unfrozen
from u1_core.model.stack import Keep
from u1_core.plan import measure as module
from u1_core.plan.costs import EndsCost, UpdateCost
from u1_core.plan.measure import measure
from u1_core.plan.work import SamplingWork, TrainingWork

CPU = torch.device("cpu")


def training_work(config, **changes) -> TrainingWork:
    fields = {
        "config": config,
        "dtype": torch.float32,
        "width": 4 * config.token_pixels,
        "height": 2 * config.token_pixels,
        "prefix_tokens": 9,
        "modules": plan_lora(config, "attn=r2").modules,
        "whole": tuple(select_unfrozen(config, [r"timestep_embedder"])),
        "optimizer": "sgd",
        "make_optimizer": lambda parameters: torch.optim.SGD(parameters, lr=0.1),
    }
    return TrainingWork(**fields | changes)


class ScriptedMeter(module.ClockOnly):
    """A card on which a layer takes 2 s forward and 5 back, an end 1 and 3; with as much memory as a pass says."""

    def __init__(self, device: torch.device) -> None:
        self.clock = 0.0
        self.allocated = 1000

    def now(self) -> float:
        return self.clock

    def used(self) -> int:
        return self.allocated

    def peak(self) -> int:
        return self.allocated + 40

    def slack(self) -> int:
        return 7


@pytest.fixture
def scripted(monkeypatch):
    """Every pass over n layers is such a card's: forward takes time and keeps 100 bytes a layer, 10 at the ends."""
    meter = ScriptedMeter(CPU)
    monkeypatch.setattr(module, "ClockOnly", lambda: meter)
    real = module._Stage.predict

    def predict(stage, layers, keep):
        x_pred = real(stage, layers, keep)
        meter.clock += 1 + 2 * layers
        meter.allocated += 10 + 100 * layers

        def back(gradient):
            meter.clock += 3 + 5 * layers
            meter.allocated -= 10 + 100 * layers

        if x_pred.requires_grad:
            x_pred.register_hook(back)
        else:
            meter.allocated -= 10 + 100 * layers
        return x_pred

    monkeypatch.setattr(module._Stage, "predict", predict)
    return meter


def test_one_layer_is_what_several_add_to_none(scripted, tiny):
    costs = measure(training_work(tiny("u1").config), CPU)
    for keep in Keep:
        layer = costs.layer[keep]
        assert (layer.forward_s, layer.backward_s, layer.kept_bytes) == (2.0, 5.0, 100)
    assert costs.ends.seconds == 4.0
    assert costs.slack_bytes == 7


def test_sampling_has_no_backward(scripted, tiny):
    config = tiny("u1").config
    work = SamplingWork(config=config, dtype=torch.float32, width=16, height=16, branches=2, prefix_tokens=9)
    costs = measure(work, CPU)
    assert list(costs.layer) == [Keep.INPUT]
    assert (costs.layer[Keep.INPUT].forward_s, costs.layer[Keep.INPUT].backward_s) == (2.0, 0.0)
    assert costs.ends == EndsCost(1.0, 2 * work.picture_bytes, 0, 6 * work.picture_bytes)
    assert costs.update == UpdateCost(0.0, 0, 0)


def test_every_kind_of_model_is_measured_by_the_clock(tiny, kind):
    costs = measure(training_work(tiny(kind).config), CPU)
    assert set(costs.layer) == set(Keep)
    assert costs.ends.seconds > 0
    assert costs.update.seconds > 0


def test_it_leaves_the_random_numbers_and_the_gradient_mode_as_they_are(tiny):
    work = training_work(tiny("u1").config, modules=(), whole=())
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    with torch.no_grad():
        measure(work, CPU)
        assert not torch.is_grad_enabled()
    assert torch.equal(torch.rand(3), expected)
