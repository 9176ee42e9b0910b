"""What one layer, a pass's ends and the optimizer take on this card, found by running them.

A layer of the real size with random weights goes through the model's own passes with the real number of tokens: passes
over no layer and over several of the same, on each rung, tell what one layer adds. Nothing here knows how a layer
computes, so that whatever makes it faster or smaller is found in the plan at once.
"""

import statistics
import time
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from u1_core.lora.adapter import Adapter, layer_place, tower_terms
from u1_core.lora.full import with_trained_tensors
from u1_core.lora.plan import FINAL_NORM, LoraPlan
from u1_core.model.config import GENERATION
from u1_core.model.generation import Pass, embed_noisy_picture, generation_passes
from u1_core.model.linear import TowerTerms
from u1_core.model.stack import Keep
from u1_core.model.views import Generation, KVChunk, PrefixKV
from u1_core.plan.costs import NO_UPDATE, Costs, EndsCost, LayerCost, UpdateCost
from u1_core.plan.work import TrainingWork, Work
from u1_core.weights.random_model import RandomWeights
from u1_core.weights.store import load_generation, load_layer

LAYERS = 3
"""Of one stack that is measured; all are the same weights."""
REPEATS = 3
UPDATED, PIECES = 32 * 2**20, 16
"""Numbers that an update is measured with, of however many are trained, and the tensors they are in."""
ANY_T = 0.4
"""None costs more than another."""
TURN_PICTURES = 3
"""Pictures in fp32 that a turn holds: x0, z, and less than one for the pixels and their weights."""
SAMPLER_PICTURES = 2
"""Noise and the state of the flow."""


class CudaMeter:
    """A card's clock and memory, as its allocator has it."""

    settle_s = 0.7
    """A card that has just woken up is faster than it can stay: readings begin when it has worked for so long."""
    read_s = 0.3
    """And each goes on for so long."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def now(self) -> float:
        """Seconds, all work asked for so far being done."""
        torch.cuda.synchronize(self._device)
        return time.perf_counter()

    def used(self) -> int:
        return torch.cuda.memory_allocated(self._device)

    def peak(self) -> int:
        """The most in use since `restart`."""
        return torch.cuda.max_memory_allocated(self._device)

    def slack(self) -> int:
        """How much more was reserved than in use, at most, since `restart`."""
        return torch.cuda.max_memory_reserved(self._device) - self.peak()

    def restart(self) -> None:
        torch.cuda.reset_peak_memory_stats(self._device)

    def tidy(self) -> None:
        """Give back all that is reserved and not in use."""
        torch.cuda.synchronize(self._device)
        torch.cuda.empty_cache()


class ClockOnly:
    """A CPU's clock; memory is not counted there."""

    settle_s = read_s = 0.0

    def now(self) -> float:
        return time.perf_counter()

    def used(self) -> int:
        return 0

    peak = slack = used

    def restart(self) -> None:
        pass

    tidy = restart


Meter = CudaMeter | ClockOnly


def measure(work: Work, device: torch.device) -> Costs:
    """The costs of this work's parts on this device, in bytes and seconds. Takes a few seconds, and a few GiB."""
    meter = CudaMeter(device) if device.type == "cuda" else ClockOnly()
    meter.tidy()
    try:
        with torch.inference_mode(False), torch.random.fork_rng([device] if device.type == "cuda" else []):
            stage = _Stage(work, device, meter)
            stage.read(LAYERS, Keep.INPUT, isinstance(work, TrainingWork), meter.settle_s)
            return _training_costs(stage) if isinstance(work, TrainingWork) else _sampling_costs(stage)
    finally:
        meter.tidy()


@dataclass(frozen=True)
class _Reading:
    """One pass: seconds of its halves, and bytes in use beyond those before it."""

    forward_s: float
    backward_s: float
    kept_bytes: int
    """Between forward and backward."""
    peak_bytes: int
    slack_bytes: int
    """What was reserved and not in use, at the worst."""


class _Stage:
    """A pass with all that it needs, over any number of copies of one layer."""

    def __init__(self, work: Work, device: torch.device, meter: Meter) -> None:
        self.work, self.device, self.meter = work, device, meter
        self._config = replace(work.config, layers=1)
        source = RandomWeights(self._config, device=device)
        self._ends = load_generation(source, device, work.dtype, resident=False)
        self._layer = load_layer(source, GENERATION, 0, device, work.dtype).weights
        modules = tuple(module for module in work.modules if layer_place(module.path)[0] in (None, 0))
        plan = LoraPlan(work.config.kind, modules, dropout=work.dropout)
        self._adapter = Adapter.create(plan, seed=0, device=device)
        originals = {**self._ends.modules, FINAL_NORM: self._ends.norm}
        self._whole = {name: originals[name].to(torch.float32, copy=True).requires_grad_() for name in work.whole}
        for tensor in self.trained:
            tensor.grad = torch.zeros_like(tensor)
        shape = (work.batch, 3, work.height, work.width)
        self._x0, self._z = (torch.randn(shape, device=device) for _ in range(2))
        self._t = torch.full((work.batch,), ANY_T, device=device)
        kv_shape = (1, work.prefix_tokens, work.config.kv_heads, work.config.head_dim)
        self._kv = [torch.randn(kv_shape, device=device, dtype=work.dtype) for _ in range(2)]

    @property
    def trained(self) -> list[Tensor]:
        """What the pass has of what is trained: one layer's terms, and all that is at the ends."""
        return [*self._adapter.parameters(), *self._whole.values()]

    def predict(self, layers: int, keep: Keep) -> Tensor:
        """A forward pass."""
        chunk = KVChunk(*(kv.expand(max(layers, 1), -1, -1, -1) for kv in self._kv))
        prefixes = [PrefixKV((chunk,), self.work.prefix_tokens)] * (self.work.batch * self.work.branches)
        terms = tower_terms(self._config, [self._adapter], GENERATION, step_seed=0)
        turn = Pass(self._z, self._t, prefixes, TowerTerms([*terms.layers] * layers, terms.modules))
        weights = replace(self._with_casts(), layers=[self._layer] * layers)
        return generation_passes(replace(self._config, layers=layers), weights, [turn], [keep] * layers)[0]

    def embedded_bytes(self) -> int:
        """What of a pass is there before its first layer and stays to the end."""
        before = self.meter.used()
        weights = self._with_casts()
        h = embed_noisy_picture(self._config, weights, self._z, self._t).repeat(self.work.branches, 1, 1)
        rope_bytes = h.shape[0] * h.shape[1] * self.work.config.head_dim * 2 * 4
        return self.meter.used() - before + rope_bytes

    def read(self, layers: int, keep: Keep, backward: bool, seconds: float | None = None) -> _Reading:
        """Alike passes, for some time; the first is not counted."""
        self.meter.tidy()
        end = self.meter.now() + (self.meter.read_s if seconds is None else seconds)
        readings = []
        while len(readings) <= REPEATS or self.meter.now() < end:
            readings.append(self._read(layers, keep, backward))
        forward_s = statistics.median(reading.forward_s for reading in readings[1:])
        backward_s = statistics.median(reading.backward_s for reading in readings[1:])
        return replace(readings[-1], forward_s=forward_s, backward_s=backward_s)

    def _read(self, layers: int, keep: Keep, backward: bool) -> _Reading:
        meter = self.meter
        before = meter.used()
        meter.restart()
        started = meter.now()
        with torch.set_grad_enabled(backward):
            loss = F.mse_loss(self.predict(layers, keep), self._x0.repeat(self.work.branches, 1, 1, 1))
        kept, turned = meter.used() - before, meter.now()
        if loss.requires_grad:
            loss.backward()
        ended = meter.now()
        return _Reading(turned - started, ended - turned, kept, meter.peak() - before, meter.slack())

    def _with_casts(self) -> Generation:
        """The ends, with what is trained whole cast for the pass."""
        return with_trained_tensors(self._ends, self._whole)


def _training_costs(stage: _Stage) -> Costs:
    work, picture = stage.work, stage.work.picture_bytes
    ends, held = stage.read(0, Keep.INPUT, backward=True), stage.embedded_bytes()
    readings = {keep: stage.read(LAYERS, keep, backward=True) for keep in Keep}
    return Costs(
        layer={keep: _layer_cost(reading, ends, held) for keep, reading in readings.items()},
        ends=EndsCost(
            seconds=ends.forward_s + ends.backward_s,
            held_bytes=held + TURN_PICTURES * picture,
            head_kept_bytes=ends.kept_bytes - held,
            work_bytes=ends.peak_bytes - ends.kept_bytes,
        ),
        update=_update_cost(work, stage.device, stage.meter),
        slack_bytes=max(reading.slack_bytes for reading in readings.values()),
    )


def _layer_cost(reading: _Reading, ends: _Reading, held_bytes: int) -> LayerCost:
    kept = (reading.kept_bytes - ends.kept_bytes) // LAYERS
    return LayerCost(
        forward_s=(reading.forward_s - ends.forward_s) / LAYERS,
        backward_s=(reading.backward_s - ends.backward_s) / LAYERS,
        kept_bytes=kept,
        work_bytes=reading.peak_bytes - held_bytes - LAYERS * kept,
    )


def _sampling_costs(stage: _Stage) -> Costs:
    work = stage.work
    ends, layers = (stage.read(count, Keep.INPUT, backward=False) for count in (0, LAYERS))
    # After the pass: x_pred and the velocity of every branch, and what guidance makes of them.
    guidance_bytes = (2 * work.branches + 2) * work.picture_bytes
    return Costs(
        layer={Keep.INPUT: LayerCost((layers.forward_s - ends.forward_s) / LAYERS, 0.0, 0, layers.peak_bytes)},
        ends=EndsCost(ends.forward_s, SAMPLER_PICTURES * work.picture_bytes, 0, max(ends.peak_bytes, guidance_bytes)),
        update=NO_UPDATE,
        slack_bytes=max(ends.slack_bytes, layers.slack_bytes),
    )


def _update_cost(work: TrainingWork, device: torch.device, meter: Meter) -> UpdateCost:
    """Of all that is trained, by what some of it takes."""
    before, numbers = meter.used(), max(1, min(work.trained, UPDATED) // PIECES)
    pieces = [torch.zeros(numbers, device=device, requires_grad=True) for _ in range(PIECES)]
    share, held = work.trained / (PIECES * numbers), PIECES * numbers * 4
    optimizer = work.make_optimizer(pieces)
    seconds, peak = [], 0
    for _ in range(1 + REPEATS):
        for piece in pieces:
            piece.grad = torch.zeros_like(piece) if piece.grad is None else piece.grad
        meter.restart()
        started = meter.now()
        optimizer.step()
        seconds.append(meter.now() - started)
        peak, stepped = meter.peak() - before, meter.used() - before
        optimizer.zero_grad(set_to_none=True)
    gradients_stay = meter.used() - before > stepped - held // 2
    return UpdateCost(
        seconds=share * statistics.median(seconds[1:]),
        state_bytes=int(share * (stepped - 2 * held)),
        work_bytes=int(share * (peak - stepped)),
        gradients_stay=gradients_stay,
    )
