import pytest

from u1_core.train.recipe import Train
from u1_core.train.schedule import lr_factor


def factors(**settings):
    train = Train(steps=10, **settings)
    return [lr_factor(train, step) for step in (1, 2, 4, 6, 8, 10)]


def test_constant_linear_and_cosine_after_a_warm_up():
    assert factors() == [1] * 6
    assert factors(warmup_steps=4) == [0.25, 0.5, 1, 1, 1, 1]
    assert factors(lr_schedule="linear") == pytest.approx([0.9, 0.8, 0.6, 0.4, 0.2, 0.0])
    assert factors(lr_schedule="linear", lr_end=0.5, warmup_steps=2) == pytest.approx([0.5, 1, 0.875, 0.75, 0.625, 0.5])
    assert factors(lr_schedule="cosine", warmup_steps=2) == pytest.approx([0.5, 1, 0.8535534, 0.5, 0.1464466, 0.0])
