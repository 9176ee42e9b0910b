"""What a work holds on the card whatever the plan, for the released model."""

from dataclasses import replace

import pytest
import torch

from u1_core.model.config import GENERATION
from u1_core.plan.work import SamplingWork, ends_bytes
from u1_core.released import released_config
from u1_core.train.recipe import Recipe
from u1_core.train.work import training_work
from u1_core.weights.layout import layer_bytes

CONFIG = released_config("U1-8B")
TRAINED = 286_289_920


@pytest.fixture
def work():
    return training_work(CONFIG, Recipe(), (2048, 2048), 279, torch.device("cpu"))


def test_the_default_recipe(work):
    assert work.trained == TRAINED
    assert (work.batch, work.micro_batches, work.optimizer) == (1, 1, "adamw")
    lora = 203_685_888
    assert 42 * work.layer_gradient_bytes == 4 * lora
    assert work.ends_gradient_bytes == 4 * (TRAINED - lora)
    assert work.still_bytes == ends_bytes(CONFIG, torch.bfloat16) + 4 * TRAINED
    assert work.layer_bytes == layer_bytes(CONFIG, GENERATION, 0, torch.bfloat16)
    assert work.picture_bytes == 4 * 3 * 2048 * 2048


def test_a_running_mean_is_held_beside_what_is_trained(work):
    recipe = Recipe()
    averaged = training_work(
        CONFIG, replace(recipe, train=replace(recipe.train, ema_decay=0.9)), (2048, 2048), 279, torch.device("cpu")
    )
    assert averaged.still_bytes - work.still_bytes == 4 * TRAINED


def test_the_towers_ends_take_164_mb():
    assert ends_bytes(CONFIG, torch.bfloat16) == pytest.approx(164e6, rel=0.02)
    sampling = SamplingWork(
        config=CONFIG, dtype=torch.bfloat16, width=2048, height=2048, prefix_tokens=279, held_bytes=5
    )
    assert sampling.still_bytes == ends_bytes(CONFIG, torch.bfloat16) + 5


def test_the_optimizer_is_made_as_the_run_makes_it(work):
    parameter = torch.ones(3, requires_grad=True)
    optimizer = work.make_optimizer([parameter])
    assert type(optimizer) is torch.optim.AdamW
    assert optimizer.param_groups[0]["betas"] == (0.9, 0.95)
