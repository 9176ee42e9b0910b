"""A recipe's step as the planner sees it."""

from collections.abc import Sequence

import torch
from torch import Tensor

from u1_core.lora.plan import LoraPlan, plan_lora, select_unfrozen
from u1_core.model.config import U1Config
from u1_core.plan.work import TrainingWork
from u1_core.train.optimizers import make_optimizer, resolve_optimizer
from u1_core.train.recipe import Recipe


def training_work(
    config: U1Config,
    recipe: Recipe,
    size: tuple[int, int],
    prefix_tokens: int,
    device: torch.device,
    dtype: torch.dtype = torch.bfloat16,
    held_bytes: int = 0,
) -> TrainingWork:
    """An update of this recipe over micro-batches of pictures of `size` (width, height), the run's largest.

    `held_bytes` are those that the run is going to hold on the card beside what is trained, such as prefix K/V. Raises
    U1Error for a spec, pattern or optimizer that cannot be.
    """
    train = recipe.train

    def optimizer(parameters: Sequence[Tensor]) -> torch.optim.Optimizer:
        group = {"params": list(parameters), "lr": train.lr, "base_lr": train.lr}
        return make_optimizer(train, [group], device)[0]

    return TrainingWork(
        config=config,
        dtype=dtype,
        width=size[0],
        height=size[1],
        batch=train.batch_size,
        prefix_tokens=prefix_tokens,
        modules=lora_plan(config, recipe).modules,
        whole=tuple(select_unfrozen(config, recipe.unfreeze)),
        dropout=recipe.lora.dropout,
        held_bytes=held_bytes,
        micro_batches=train.grad_accum,
        optimizer=resolve_optimizer(train.optimizer, device),
        make_optimizer=optimizer,
        averaged=bool(train.ema_decay),
    )


def lora_plan(config: U1Config, recipe: Recipe) -> LoraPlan:
    """The modules of the recipe's LoRA; none if it has neither spec nor preset."""
    lora = recipe.lora
    if not (lora.spec or lora.preset):
        return LoraPlan(config.kind, ())
    return plan_lora(config, lora.spec or lora.preset, lora.dropout)
