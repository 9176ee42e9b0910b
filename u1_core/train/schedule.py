"""How the learning rate goes over a run: a function of the step alone, so that a resumed run needs no state of it."""

import math

from u1_core.train.recipe import Train


def lr_factor(train: Train, step: int) -> float:
    """What the learning rates are multiplied by at `step`, from 1.

    A linear rise over `warmup_steps`, then constant, or down to `lr_end` at the last step: a line or half a cosine.
    """
    warm_up = min(1.0, step / train.warmup_steps) if train.warmup_steps else 1.0
    if train.lr_schedule == "constant":
        return warm_up
    done = min(1.0, max(0, step - train.warmup_steps) / max(1, train.steps - train.warmup_steps))
    left = 1.0 - done if train.lr_schedule == "linear" else (1.0 + math.cos(math.pi * done)) / 2
    return warm_up * (train.lr_end + (1.0 - train.lr_end) * left)
