"""The Euler loop: from noise to a picture."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from u1_core.model.config import U1Config
from u1_core.model.generation import generation_pass
from u1_core.model.linear import TowerTerms
from u1_core.model.views import Generation, PrefixKV
from u1_core.sample.guidance import Branch, Guidance

T_EPS = 0.02
"""Floor of 1 - t in the velocity when sampling (training has its own, in the config)."""


@dataclass(frozen=True)
class Step:
    """What a step of the loop tells whoever watches."""

    index: int
    steps: int
    t: float
    x_pred: Tensor
    """The clean picture (B, 3, H, W) in [-1, 1] that this step heads for."""


OnStep = Callable[[Step], None]


def draw_noise(
    config: U1Config, shape: tuple[int, int, int, int], generator: torch.Generator, dtype: torch.dtype
) -> Tensor:
    """Scaled noise (B, 3, H, W), fp32. Drawn and scaled in `dtype`, as the released sampler does: same seed, same
    picture."""
    tokens = shape[2] * shape[3] // config.token_pixels**2
    noise = torch.randn(shape, generator=generator, device=generator.device, dtype=dtype)
    return (noise * config.noise_scale_for(tokens)).float()


@torch.no_grad()
def denoise(
    config: U1Config,
    weights: Generation,
    noise: Tensor,
    prefixes: Mapping[Branch, PrefixKV | Sequence[PrefixKV]],
    guidance: Guidance,
    timesteps: Tensor,
    terms: TowerTerms | None = None,
    on_step: OnStep | None = None,
    t_eps: float = T_EPS,
) -> Tensor:
    """Follow the velocity from noise (B, 3, H, W), t = 0, along `timesteps` (fp32, on the CPU) to t = 1.

    A branch has one prefix for all pictures or one for each. A step's branches run as one batch. The state is fp32.
    Returns pictures (B, 3, H, W) in [-1, 1].
    """
    z, batch = noise, len(noise)
    for index in range(len(timesteps) - 1):
        t = timesteps[index]
        branches = guidance.branches_at(t)
        rows = [prefix for branch in branches for prefix in _per_picture(prefixes[branch], batch)]
        x_pred = generation_pass(config, weights, z, t.expand(batch).to(z.device), rows, terms)
        remaining = (1 - t).clamp(min=t_eps).item()
        velocities = [(x - z) / remaining for x in x_pred.chunk(len(branches))]
        v = guidance.combine(dict(zip(branches, velocities, strict=True)), index == 0, config.token_pixels)
        if on_step:
            on_step(Step(index, len(timesteps) - 1, float(t), z + (1 - float(t)) * v))
        z = z + (timesteps[index + 1] - t).item() * v
    return z


def _per_picture(prefixes: PrefixKV | Sequence[PrefixKV], batch: int) -> Sequence[PrefixKV]:
    return prefixes if isinstance(prefixes, list | tuple) else [prefixes] * batch
