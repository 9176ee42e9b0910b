"""One training step: whose turn it is, what is drawn for it, the loss, the gradients, the update."""

import time
from collections.abc import Mapping, Sequence
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
from u1_core.train.guard import Guard
from u1_core.train.objective import flow_loss
from u1_core.train.optimizers import averaged_weights
from u1_core.train.prefixes import CaptionPrefixes, move_prefix
from u1_core.train.recipe import Recipe, Train
from u1_core.train.rng import generator, sample_of_draw, seed_for
from u1_core.train.schedule import lr_factor
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
        self.parameters = _named(adapter)
        decay = recipe.train.ema_decay
        self.ema = {name: tensor.detach().clone() for name, tensor in self.parameters.items()} if decay else {}
        self.guard = Guard(recipe.train)
        self.updating = False
        """Whether the weights are between two states: what is seen then belongs to no step."""
        self._device = base.norm.device
        self._ahead: Turn | None = None

    def step(self, number: int) -> list[Record]:
        """Step `number`, from 1: the mean gradient over `grad_accum` pictures, then one update.

        Returns a record for each picture. Where the guard finds the step unsound they have the reason under "skipped",
        and the weights are as they were.
        """
        started, waited, train = time.perf_counter(), self.data.pictures.waited_s, self.recipe.train
        first = (number - 1) * train.grad_accum
        try:
            draws = range(first, first + train.grad_accum)
            records = [{"step": number, **record} for record in self._add_all_gradients(draws)]
            grad_norm = self._clip()
            skipped = self.guard.judge(records, grad_norm)
            lr = self._set_lr(number)
            if not skipped:
                self._update()
        finally:
            self.optimizer.zero_grad(set_to_none=True)
        shared = {
            "lr": lr,
            "grad_norm": grad_norm,
            "seconds": time.perf_counter() - started,
            "data_wait_s": self.data.pictures.waited_s - waited,
            "memory_bytes": self._peak_bytes(),
            **({"skipped": skipped} if skipped else {}),
        }
        return [{**record, **shared} for record in records]

    def weights_to_use(self) -> Adapter:
        """The adapter that a run is to leave: the running mean if there is one, or what a schedule-free optimizer
        means to be used, else the weights as they are."""
        if self.ema:
            return _with_weights(self.adapter, self.ema)
        if self.recipe.train.optimizer == "schedule_free":
            return _with_weights(self.adapter, averaged_weights(self.optimizer, self.parameters))
        return self.adapter

    @torch.no_grad()
    def restore(
        self, weights: Mapping[str, Tensor], ema: Mapping[str, Tensor], optimizer: Mapping[str, Any], guard: Any
    ) -> None:
        """Become what a checkpoint holds. Raises U1Error if it is of other weights."""
        shapes = {name: tuple(tensor.shape) for name, tensor in self.parameters.items()}
        if shapes != {name: tuple(tensor.shape) for name, tensor in weights.items()} or bool(ema) != bool(self.ema):
            raise U1Error(
                "the checkpoint holds other weights than this recipe trains; resume with the run's own recipe"
            )
        for held, saved in ((self.parameters, weights), (self.ema, ema)):
            for name, tensor in held.items():
                tensor.copy_(saved[name])
        self.optimizer.load_state_dict(dict(optimizer))
        self.guard.restore(guard)
        self.updating = False

    def _add_all_gradients(self, draws: Sequence[int]) -> list[Record]:
        """Add the mean gradient of these turns to the parameters'. Returns a record for each."""
        return [self._add_gradients(draw) for draw in draws]

    def _set_lr(self, step: int) -> float:
        """Give every group its learning rate at this step. Returns the first's."""
        factor = lr_factor(self.recipe.train, step) * self.guard.lr_scale
        for group in self.optimizer.param_groups:
            group["lr"] = group["base_lr"] * factor
        return self.optimizer.param_groups[0]["lr"]

    def _update(self) -> None:
        self.updating = True
        self.optimizer.step()
        with torch.no_grad():
            for name, mean in self.ema.items():
                mean.lerp_(self.parameters[name], 1.0 - self.recipe.train.ema_decay)
        self.updating = False

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

    def _clip(self) -> float:
        """The norm of all gradients together; if the recipe has a limit, they are scaled down to it."""
        tensors = [tensor for tensor in self.parameters.values() if tensor.grad is not None]
        norm = torch.nn.utils.get_total_norm([tensor.grad for tensor in tensors])
        if limit := self.recipe.train.max_grad_norm:
            torch.nn.utils.clip_grads_with_norm_(tensors, limit, norm)
        return norm.item()

    def _peak_bytes(self) -> int | None:
        """The most memory that has been in use on the card so far; None on a CPU."""
        return torch.cuda.max_memory_allocated(self._device) if self._device.type == "cuda" else None


def _named(adapter: Adapter) -> dict[str, Tensor]:
    """Every trained tensor by a name of its own."""
    modules = adapter.modules.items()
    terms = {f"{path}.{part}": getattr(module, part) for path, module in modules for part in ("down", "up")}
    return terms | adapter.full


def _with_weights(adapter: Adapter, weights: Mapping[str, Tensor]) -> Adapter:
    """`adapter` with these in place of its own tensors."""
    modules = {
        path: replace(module, down=weights[f"{path}.down"], up=weights[f"{path}.up"])
        for path, module in adapter.modules.items()
    }
    return replace(adapter, modules=modules, full={name: weights[name] for name in adapter.full})
