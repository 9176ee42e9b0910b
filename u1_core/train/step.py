"""One training step: whose turn it is, what is drawn for it, the loss, the gradients, the update."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from u1_core.data.dataset import Dataset
from u1_core.data.picture_cache import PictureCache
from u1_core.errors import U1Error
from u1_core.lora.adapter import Adapter, tower_terms
from u1_core.lora.plan import FINAL_NORM
from u1_core.model.config import GENERATION, U1Config
from u1_core.model.generation import generation_pass
from u1_core.model.views import Generation, PrefixKV
from u1_core.train.objective import flow_loss
from u1_core.train.prefixes import CaptionPrefixes, move_prefix
from u1_core.train.recipe import Recipe, Train
from u1_core.train.rng import generator, sample_of_draw, seed_for
from u1_core.train.timesteps import draw_timesteps

Record = dict[str, Any]
"""One line of the log."""


@dataclass(frozen=True)
class TrainingSet:
    """Samples, with their pictures and prefixes by the same number."""

    samples: Dataset
    pictures: PictureCache
    prefixes: CaptionPrefixes

    def number_at(self, train: Train, draw: int) -> int:
        """The number of the sample whose turn it is at `draw`."""
        turns = self.samples.turns
        return turns[sample_of_draw(train.seed, draw, len(turns), train.shuffle)]


@dataclass(frozen=True)
class Turn:
    """One picture's turn: everything that its loss depends on besides the weights. t = 1 is clean, t = 0 is noise."""

    draw: int
    sample: str
    picture: Tensor
    """(1, 3, H, W), uint8."""
    mask: Tensor | None
    """(1, H, W), uint8: how much each pixel's loss weighs; None weighs all alike."""
    noise: Tensor
    """(1, 3, H, W), fp32, already scaled for the number of tokens."""
    t: Tensor
    """(1,), fp32."""
    prefix: PrefixKV
    dropped: str
    """Which dropout took the caption away: "text", "both", or nothing."""
    dropout_seed: int

    @cached_property
    def x0(self) -> Tensor:
        """The clean picture in [-1, 1], fp32."""
        return self.picture.float() / 127.5 - 1.0

    @cached_property
    def z(self) -> Tensor:
        """The noisy picture, t * x0 + (1 - t) * noise."""
        return torch.lerp(self.noise, self.x0, self.t)

    @cached_property
    def weights(self) -> Tensor | None:
        """The mask as fp32."""
        return None if self.mask is None else self.mask.float() / 255

    @property
    def bucket(self) -> str:
        return f"{self.picture.shape[3]}x{self.picture.shape[2]}"

    def to(self, device: torch.device) -> "Turn":
        moved = {name: getattr(self, name).to(device) for name in ("picture", "noise", "t")}
        mask = None if self.mask is None else self.mask.to(device)
        return replace(self, **moved, mask=mask, prefix=move_prefix(self.prefix, device))


def draw_turn(config: U1Config, train: Train, data: TrainingSet, draw: int) -> Turn:
    """The turn numbered `draw`, counted from 0 over the run, on the CPU (its prefix is where it rests).

    It depends on the seed, `draw` and the sample alone.
    """
    index = data.number_at(train, draw)
    sample = data.samples[index].id

    def drawn_for(purpose: str) -> torch.Generator:
        return generator(train.seed, draw, sample, purpose)

    fetched = data.pictures.fetch(index)
    data.pictures.expect(data.number_at(train, ahead) for ahead in range(draw + 1, draw + 1 + data.pictures.ahead))
    picture = fetched.pixels[None]
    noise = torch.randn(picture.shape, generator=drawn_for("noise"))
    noise *= config.noise_scale_for(picture.shape[2] * picture.shape[3] // config.token_pixels**2)
    dropped = _dropout_at(train, torch.rand((), generator=drawn_for("condition")).item())
    return Turn(
        draw=draw,
        sample=sample,
        picture=picture,
        mask=None if fetched.mask is None else fetched.mask[None],
        noise=noise,
        t=draw_timesteps(train, 1, config.t_eps, drawn_for("t")),
        prefix=data.prefixes.unconditional if dropped else data.prefixes.captions[index],
        dropped=dropped,
        dropout_seed=seed_for(train.seed, draw, sample, "dropout"),
    )


def _dropout_at(train: Train, u: float) -> str:
    """Which dropout a number drawn uniformly from [0, 1) means."""
    if u < train.cond_dropout_text:
        return "text"
    return "both" if u < train.cond_dropout_text + train.cond_dropout_both else ""


def with_trained_tensors(base: Generation, full: dict[str, Tensor]) -> Generation:
    """`base` with the tensors that are trained whole in place of its own, in its dtype; gradients flow through."""
    cast = {name: tensor.to(base.norm.dtype) for name, tensor in full.items()}
    norm = cast.pop(FINAL_NORM, base.norm)
    return replace(base, norm=norm, modules={**base.modules, **cast})


class Trainer:
    """The weights being trained and what is needed for a step."""

    def __init__(
        self,
        config: U1Config,
        base: Generation,
        adapter: Adapter,
        optimizer: torch.optim.Optimizer,
        recipe: Recipe,
        data: TrainingSet,
        upstream: Sequence[Adapter] = (),
    ) -> None:
        """`base` is frozen; `adapter` has the trained terms and, in `full`, the tensors trained whole, all of them
        fp32 leaves on the device; `upstream` adapters stay in effect as they are.
        """
        self.config, self.base, self.adapter, self.upstream = config, base, adapter, tuple(upstream)
        self.optimizer, self.recipe, self.data = optimizer, recipe, data
        self._device = base.norm.device
        self._ahead: Turn | None = None

    def step(self, number: int) -> list[Record]:
        """Step `number`, from 1: the mean gradient over `grad_accum` pictures, then one update.

        Returns a record for each picture. Raises U1Error, with the weights left as they were, if the loss or the
        gradient is not finite.
        """
        started, train = time.perf_counter(), self.recipe.train
        first = (number - 1) * train.grad_accum
        records = [{"step": number, **self._add_gradients(draw)} for draw in range(first, first + train.grad_accum)]
        grad_norm = self._gradient_norm()
        if not all(math.isfinite(number) for number in (grad_norm, *(record["loss"] for record in records))):
            self.optimizer.zero_grad(set_to_none=True)
            raise U1Error(_diverged(number, records, grad_norm))
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        shared = {"lr": train.lr, "grad_norm": grad_norm, "seconds": time.perf_counter() - started}
        return [{**record, **shared, "memory_bytes": self._peak_bytes()} for record in records]

    def predict(self, turn: Turn) -> Tensor:
        """x_pred (1, 3, H, W) of a turn on the device, at the present weights."""
        weights = with_trained_tensors(self.base, self.adapter.full)
        terms = tower_terms(self.config, [*self.upstream, self.adapter], GENERATION, turn.dropout_seed)
        keep_last = self.recipe.runtime.gc_skip_last
        return generation_pass(self.config, weights, turn.z, turn.t, [turn.prefix], terms, True, keep_last)

    def _add_gradients(self, draw: int) -> Record:
        train, t_eps = self.recipe.train, self.config.t_eps
        turn = self._turn(draw).to(self._device)
        x_pred = self.predict(turn)
        loss = flow_loss(train.loss_type, x_pred, turn.x0, turn.z, turn.t, t_eps, train.huber_delta, turn.weights)
        (loss / train.grad_accum).backward()
        # The card is busy with the above until `item` waits for it: time to draw what comes next on the CPU.
        self._ahead = draw_turn(self.config, train, self.data, draw + 1)
        x_pred = x_pred.detach()
        return {
            "loss": loss.item(),
            "x0_mse": flow_loss("x0", x_pred, turn.x0, turn.z, turn.t, t_eps).item(),
            "v_mse": flow_loss("v", x_pred, turn.x0, turn.z, turn.t, t_eps).item(),
            "t": turn.t.item(),
            "sample": turn.sample,
            "bucket": turn.bucket,
            "dropped": turn.dropped,
        }

    def _turn(self, draw: int) -> Turn:
        ahead = self._ahead
        return ahead if ahead and ahead.draw == draw else draw_turn(self.config, self.recipe.train, self.data, draw)

    def _gradient_norm(self) -> float:
        gradients = [p.grad for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
        return torch.nn.utils.get_total_norm(gradients).item()

    def _peak_bytes(self) -> int | None:
        """The most memory that has been in use on the card so far; None on a CPU."""
        return torch.cuda.max_memory_allocated(self._device) if self._device.type == "cuda" else None


def _diverged(number: int, records: Sequence[Record], grad_norm: float) -> str:
    worst = next((record for record in records if not math.isfinite(record["loss"])), records[-1])
    return (
        f"step {number}: loss {worst['loss']:g}, gradient norm {grad_norm:g} (sample {worst['sample']}, t "
        f"{worst['t']:.3f}): the run has diverged and was stopped before this step's update; lower train.lr"
    )
