import math

import torch

from u1_core.train.recipe import Train
from u1_core.train.rng import generator
from u1_core.train.timesteps import draw_timesteps

COUNT = 40_000


def test_uniform_runs_from_t_eps_to_one():
    t = draw_timesteps(Train(t_dist="uniform"), COUNT, 0.05, generator(0, 0, "", "t"))
    assert t.dtype == torch.float32
    assert 0.05 <= t.min() < 0.051
    assert 0.999 < t.max() <= 1.0
    std = 0.95 / math.sqrt(12)
    assert abs(t.mean() - 0.525) < 3 * std / math.sqrt(COUNT)
    assert abs(t.std() - std) < 0.002


def test_logit_normal_has_its_mean_and_std_in_the_logit_and_is_clamped():
    train = Train(t_dist="logit_normal", t_logit_mean=-0.8, t_logit_std=0.8)
    t = draw_timesteps(train, COUNT, 1e-6, generator(0, 0, "", "t"))
    logit = torch.logit(t.double())
    assert abs(logit.mean() + 0.8) < 3 * 0.8 / math.sqrt(COUNT)
    assert abs(logit.std() - 0.8) < 3 * 0.8 / math.sqrt(2 * COUNT)
    clamped = draw_timesteps(train, COUNT, 0.05, generator(0, 0, "", "t"))
    assert torch.equal(clamped, t.clamp(0.05, 0.95))
    assert clamped.min() == torch.tensor(0.05)
