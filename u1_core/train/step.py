"""One training step: the gradients of its pictures, the update, and what is told of both."""

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from u1_core.errors import U1Error
from u1_core.lora.adapter import Adapter, tower_terms
from u1_core.lora.full import with_trained_tensors
from u1_core.model.config import GENERATION, U1Config
from u1_core.model.generation import Pass, generation_passes
from u1_core.model.views import Generation
from u1_core.plan.plan import Plan
from u1_core.train.gradients import GradientSum
from u1_core.train.guard import Guard
from u1_core.train.objective import flow_losses
from u1_core.train.optimizers import averaged_weights, restore_state
from u1_core.train.recipe import Recipe
from u1_core.train.schedule import lr_factor
from u1_core.train.turn import MicroBatch, TrainingSet, draw_turn

Record = dict[str, Any]
"""One line of the log."""


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
        plan: Plan,
        upstream: Sequence[Adapter] = (),
    ) -> None:
        """`base` is frozen; `adapter` has the trained terms and, in `full`, the tensors trained whole, all of them
        fp32 leaves on the device; `upstream` adapters stay in effect as they are. `plan` says how a step is run, and
        may be another from one step to the next.
        """
        self.config, self.base, self.adapter, self.upstream = config, base, adapter, tuple(upstream)
        self.optimizer, self.recipe, self.data, self.plan = optimizer, recipe, data, plan
        self.parameters = named_weights(adapter)
        decay = recipe.train.ema_decay
        self.ema = {name: tensor.detach().clone() for name, tensor in self.parameters.items()} if decay else {}
        self.guard = Guard(recipe.train)
        self.updating = False
        """Whether the weights are between two states: what is seen then belongs to no step."""
        self._device = base.norm.device
        self._drawing = ThreadPoolExecutor(1, thread_name_prefix="u1-draws")
        self._ahead: dict[int, Future[MicroBatch]] = {}
        """Micro-batches by number, drawn while the card is busy with those before them."""
        self._waited_s = 0.0

    def step(self, number: int) -> list[Record]:
        """Step `number`, from 1: the mean gradient over `grad_accum` micro-batches' pictures, then one update.

        Returns a record for each picture. Where the guard finds the step unsound they have the reason under "skipped",
        and the weights are as they were. So they are, and all else, if memory runs out before the update has begun
        (torch.OutOfMemoryError): the step can be taken again. If it does in the update, `updating` stays true.
        """
        started, self._waited_s = time.perf_counter(), 0.0
        self._forget_peak()
        try:
            records = [{"step": number, **record} for record in self._add_gradients(number)]
            grad_norm = self._clip()
            skipped = self.guard.judge(records, grad_norm)
            lr = self._set_lr(number)
            if not skipped:
                self._update()
        finally:
            self.optimizer.zero_grad(set_to_none=True)
            self._finish_drawing()
        shared = {
            "lr": lr,
            "grad_norm": grad_norm,
            "seconds": time.perf_counter() - started,
            "data_wait_s": self._waited_s,
            **self._peak(),
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
        restore_state(self.optimizer, optimizer)
        self.guard.restore(guard)
        self.updating = False

    def predict(self, batch: MicroBatch) -> Tensor:
        """x_pred (B, 3, H, W) of a micro-batch at the present weights."""
        return generation_passes(self.config, self.base, [self._pass(batch, self._values())], self.plan.kept)[0]

    def _add_gradients(self, step: int) -> list[Record]:
        """Add the mean gradient of the step's pictures to the parameters'. Returns a record for each picture."""
        count, together = self.recipe.train.grad_accum, self.plan.together
        first = (step - 1) * count
        batches = range(first, first + count)
        pictures = sum(len(self.data.order.draws(batch)) for batch in batches)
        sums, values = GradientSum(self.parameters), self._values()
        records = []
        for start in range(0, count, together):
            leaves = {batch: sums.stand_ins(batch - first, values) for batch in batches[start : start + together]}
            records += self._add_group(leaves, pictures)
        sums.finish()
        return records

    def _add_group(self, leaves: Mapping[int, Mapping[str, Tensor]], pictures: int) -> list[Record]:
        """Micro-batches, by number with weights of their own, taken through the layers together."""
        batches = [self._batch(number) for number in leaves]
        self._draw_ahead(max(leaves) + 1)
        # Backward begins with what went in last: so gradients come in the order in which they are to be added.
        passes = [self._pass(batch, own) for batch, own in zip(batches, leaves.values(), strict=True)]
        outputs = generation_passes(self.config, self.base, passes[::-1], self.plan.kept)[::-1]
        losses = [self._losses(batch, x_pred) for batch, x_pred in zip(batches, outputs, strict=True)]
        (torch.cat(losses).sum() / pictures).backward()
        return [
            record
            for batch, x_pred, loss in zip(batches, outputs, losses, strict=True)
            for record in self._records(batch, x_pred.detach(), loss.detach())
        ]

    def _values(self) -> dict[str, Tensor]:
        """The trained weights as the model takes them: those trained whole in the base's dtype."""
        whole = {name: tensor.detach().to(self.base.norm.dtype) for name, tensor in self.adapter.full.items()}
        return {**self.parameters, **whole}

    def _pass(self, batch: MicroBatch, weights: Mapping[str, Tensor]) -> Pass:
        adapter = _with_weights(self.adapter, weights)
        terms = tower_terms(self.config, [*self.upstream, adapter], GENERATION, batch.dropout_seed)
        ends = with_trained_tensors(self.base, adapter.full)
        return Pass(batch.z, batch.t, batch.prefixes, terms, ends)

    def _losses(self, batch: MicroBatch, x_pred: Tensor) -> Tensor:
        """(B,)."""
        train, t_eps = self.recipe.train, self.config.t_eps
        return flow_losses(train.loss_type, x_pred, batch.x0, batch.z, batch.t, t_eps, train.huber_delta, batch.weights)

    def _records(self, batch: MicroBatch, x_pred: Tensor, losses: Tensor) -> list[Record]:
        errors = {
            f"{kind}_mse": flow_losses(kind, x_pred, batch.x0, batch.z, batch.t, self.config.t_eps).tolist()
            for kind in ("x0", "v")
        }
        return [
            {
                "loss": loss,
                **{name: values[row] for name, values in errors.items()},
                "t": turn.t.item(),
                "sample": turn.sample,
                "bucket": turn.bucket,
                "dropped": turn.dropped,
            }
            for row, (turn, loss) in enumerate(zip(batch.turns, losses.tolist(), strict=True))
        ]

    def _batch(self, number: int) -> MicroBatch:
        """A micro-batch of the run, on the device."""
        started = time.perf_counter()
        drawn = (self._ahead.pop(number, None) or self._drawing.submit(self._draw, number)).result()
        self._waited_s += time.perf_counter() - started
        return drawn.to(self._device, [self.data.prefix_of(turn) for turn in drawn.turns])

    def _finish_drawing(self) -> None:
        """Nobody draws between steps, when others may look at the pictures."""
        started = time.perf_counter()
        wait(self._ahead.values())
        self._waited_s += time.perf_counter() - started

    def _draw(self, number: int) -> MicroBatch:
        turns = [draw_turn(self.config, self.recipe.train, self.data, draw) for draw in self.data.order.draws(number)]
        return MicroBatch.of(turns, pin=self._device.type == "cuda")

    def _draw_ahead(self, first: int) -> None:
        """Have the next micro-batches drawn, from number `first` on: as many as go together."""
        numbers = range(first, first + self.plan.together)
        self._ahead = {n: self._ahead.get(n) or self._drawing.submit(self._draw, n) for n in numbers}

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

    def _clip(self) -> float:
        """The norm of all gradients together; if the recipe has a limit, they are scaled down to it."""
        tensors = [tensor for tensor in self.parameters.values() if tensor.grad is not None]
        norm = torch.nn.utils.get_total_norm([tensor.grad for tensor in tensors])
        if limit := self.recipe.train.max_grad_norm:
            torch.nn.utils.clip_grads_with_norm_(tensors, limit, norm)
        return norm.item()

    def _forget_peak(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)

    def _peak(self) -> Record:
        """The most memory of the card in use in this step, and the most held by the allocator; None on a CPU."""
        if self._device.type != "cuda":
            return {"memory_bytes": None, "reserved_bytes": None}
        return {
            "memory_bytes": torch.cuda.max_memory_allocated(self._device),
            "reserved_bytes": torch.cuda.max_memory_reserved(self._device),
        }


def named_weights(adapter: Adapter) -> dict[str, Tensor]:
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
