"""Estimates of U1-8B, against what was measured on cards whose rates are known."""

import pytest
import torch

from u1_core.lora.plan import plan_lora
from u1_core.model.stack import Keep
from u1_core.plan.costs import NO_UPDATE
from u1_core.plan.estimate import Rates, estimate
from u1_core.plan.work import SamplingWork, TrainingWork
from u1_core.released import released_config

H200 = Rates(products=700e12, attention=450e12, memory=3.5e12, bus=55e9)
MIB = 2**20


def training_work(name="U1-8B", **changes) -> TrainingWork:
    config = released_config(name)
    fields = {
        "config": config,
        "dtype": torch.bfloat16,
        "width": 2048,
        "height": 2048,
        "prefix_tokens": 279,
        "modules": plan_lora(config, "attn_mlp_no_head").modules,
        "optimizer": "paged_adamw8bit",
        "make_optimizer": torch.optim.AdamW,
    }
    return TrainingWork(**fields | changes)


def test_a_layer_of_the_8b_model_is_near_what_an_h200_measures():
    costs = estimate(training_work(), H200)
    # Measured there: 3.2 ms forward; 6.8, 6.5, 4.7 and 4.4 ms backward; 35, 69, 357 and 577 MB kept.
    measured = {
        Keep.INPUT: (0.0068, 35e6),
        Keep.ATTENTION: (0.0065, 69e6),
        Keep.PRODUCTS: (0.0047, 357e6),
        Keep.ALL: (0.0044, 577e6),
    }
    for keep, (backward_s, kept_bytes) in measured.items():
        assert costs.layer[keep].forward_s == pytest.approx(0.0032, rel=0.15)
        assert costs.layer[keep].backward_s == pytest.approx(backward_s, rel=0.15)
        assert costs.layer[keep].kept_bytes == pytest.approx(kept_bytes, rel=0.06)
    assert costs.layer[Keep.INPUT].work_bytes == pytest.approx(787e6, rel=0.1)


def test_work_is_linear_in_pictures_but_for_attention():
    one, four = (estimate(training_work(batch=batch), H200).layer[Keep.ALL] for batch in (1, 4))
    assert four.forward_s == pytest.approx(4 * one.forward_s)
    small = estimate(training_work(width=1024, height=1024, prefix_tokens=0), H200).layer[Keep.ALL]
    assert small.forward_s < one.forward_s / 4


def test_states_of_optimizers():
    states = {
        name: estimate(training_work(optimizer=name), H200).update.state_bytes for name in ("adamw", "paged_adamw8bit")
    }
    trained = plan_lora(released_config("U1-8B"), "attn_mlp_no_head").parameters
    assert states == {"adamw": 8 * trained, "paged_adamw8bit": 0}


def test_sampling_keeps_nothing_and_updates_nothing():
    work = SamplingWork(
        config=released_config("U1-8B"),
        dtype=torch.bfloat16,
        width=2048,
        height=2048,
        branches=2,
        prefix_tokens=279,
    )
    costs = estimate(work, H200)
    assert list(costs.layer) == [Keep.INPUT]
    # Measured: 6.1 ms and 1.0 GB a layer, for both branches.
    assert costs.layer[Keep.INPUT].forward_s == pytest.approx(0.0061, rel=0.2)
    assert costs.layer[Keep.INPUT].work_bytes == pytest.approx(1015e6, rel=0.1)
    assert costs.update == NO_UPDATE


def test_of_experts_only_those_count_that_a_token_visits():
    dense, experts = (estimate(training_work(name), H200).layer[Keep.ALL] for name in ("U1-8B", "U1-A3B"))
    assert experts.forward_s < dense.forward_s / 2


def test_rates_in_words():
    assert str(Rates()) == "120 TFLOP/s in products, 90 in attention, 0.8 TB/s of memory, 22 GB/s over the bus"
