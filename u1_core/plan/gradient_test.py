"""Whether layers that come and go give the gradients that layers give which stay: on this card, at real size.

Weights that are overwritten in a slot while backward still needs them corrupt gradients silently, and tiny layers do
not show it. So layers of the full width run at the full number of tokens, through slots that are filled with NaN before
each copy and copies that are late, on every rung of the ladder, and their gradients are compared with plain autograd's
over resident layers. The noise floor is what runs of the latter differ by: an attention's backward may add up in no
fixed order.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from u1_core.lora.adapter import Adapter, tower_terms
from u1_core.lora.plan import plan_lora
from u1_core.model.config import GENERATION, U1Config
from u1_core.model.generation import Pass, generation_passes
from u1_core.model.stack import Keep
from u1_core.model.views import KVChunk, LayerWeights, PrefixKV
from u1_core.weights.arena import Arena
from u1_core.weights.copies import CudaCopies, PlainCopies, Slot
from u1_core.weights.layout import layer_views
from u1_core.weights.random_model import RandomWeights
from u1_core.weights.ring import StreamedLayers
from u1_core.weights.store import load_generation

LATE_CYCLES = 40_000_000
"""About 20 ms of a card's clock: more than it takes to copy a layer or to compute with it."""
TOLERANCE = 1.5
"""How many times the noise floor a difference may be: two draws of the same noise differ."""
PREFIX_TOKENS = 279
FLOOR_RUNS = 3


class Hostile(CudaCopies):
    """Leaves nothing of a slot's last layer, and copies late."""

    late = False

    def start(self, slot: Slot, host: Tensor, pinned: bool) -> None:
        self._settle(slot)
        for event in slot.free.values():
            self._stream.wait_event(event)
        with torch.cuda.stream(self._stream):
            slot.flat.fill_(float("nan"))
            if self.late:
                torch.cuda._sleep(LATE_CYCLES)
        super().start(slot, host, pinned)


class Late(Hostile):
    late = True


class Emptied(PlainCopies):
    """Leaves nothing of a slot's last layer, on a CPU."""

    def __init__(self, device: torch.device, slots: Sequence[Slot]) -> None:
        pass

    def start(self, slot: Slot, host: Tensor, pinned: bool) -> None:
        slot.flat.fill_(float("nan"))
        super().start(slot, host, pinned)


@dataclass(frozen=True)
class GradientTest:
    """What was found. A difference is |ours - theirs| / |theirs| over all gradients together."""

    floor: float
    """Of plain runs among themselves."""
    differences: dict[Keep, float]
    """Of streamed layers, by their rung."""
    about: str

    @property
    def agrees(self) -> bool:
        return all(found <= TOLERANCE * self.floor for found in self.differences.values())

    def __str__(self) -> str:
        worst = max(self.differences.values())
        verdict = "agree within the noise" if self.agrees else "DIFFER: do not train with layers that come and go here"
        return f"streamed and resident {verdict}: {worst:.1e} apart, noise {self.floor:.1e} ({self.about})"


def gradient_test(
    config: U1Config, device: torch.device, dtype: torch.dtype, side: int, layers: int = 4, slots: int = 2
) -> GradientTest:
    """Compare, with so many layers of `config` and a picture of `side` x `side` pixels."""
    stack = _Stack(replace(config, layers=layers), device, dtype, side)
    expected = stack.gradients(stack.resident, Keep.ALL)
    again = [stack.gradients(stack.resident, Keep.ALL) for _ in range(FLOOR_RUNS)]
    differences = {}
    for keep in Keep:
        found = [stack.gradients(layers, keep) for layers in stack.streamed(slots)]
        differences[keep] = max(difference(each, expected)[0] for each in found)
    about = f"{layers} layers of width {config.width}, {side}x{side} pixels, {slots} slots"
    return GradientTest(max(difference(each, expected)[0] for each in again), differences, about)


def difference(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> tuple[float, float]:
    """|ours - theirs| / |theirs| of all tensors together, and the largest of one tensor; infinite for what is NaN."""
    errors = torch.stack([(a - b).double().norm() for a, b in zip(ours, theirs, strict=True)]).nan_to_num(nan=math.inf)
    sizes = torch.stack([b.double().norm() for b in theirs])
    return float(errors.norm() / sizes.norm()), float((errors / sizes).max())


class _Stack:
    """Random layers, on the device and in host memory, and a step over either."""

    def __init__(self, config: U1Config, device: torch.device, dtype: torch.dtype, side: int) -> None:
        self._config, self._device = config, device
        source = RandomWeights(config, device=device)
        self._ends = load_generation(source, device, dtype, resident=False)
        self._arena = Arena(config, GENERATION, range(config.layers), dtype, device)
        self._arena.fill(source, pin=device.type == "cuda")
        self.resident = [
            layer_views(config, GENERATION, index, self._arena.layer(index).to(device))
            for index in range(config.layers)
        ]
        self._adapter = Adapter.create(plan_lora(config, "attn_mlp_no_head"), seed=0, device=device)
        for module in self._adapter.modules.values():
            torch.nn.init.normal_(module.up.data, std=0.01)  # at zero, half of the gradients would be
        z, self._x0 = (torch.randn(1, 3, side, side, device=device) for _ in range(2))
        kv_shape = (config.layers, PREFIX_TOKENS, config.kv_heads, config.head_dim)
        chunk = KVChunk(*(torch.randn(kv_shape, device=device, dtype=dtype) for _ in range(2)))
        terms = tower_terms(config, [self._adapter], GENERATION)
        prefix = PrefixKV((chunk,), PREFIX_TOKENS)
        self._pass = Pass(z, torch.full((1,), 0.4, device=device), [prefix], terms)

    def streamed(self, slots: int) -> Iterator[StreamedLayers]:
        """The same layers through so many slots: where copies are what waits, and where the arithmetic does."""
        kinds = (Hostile, Late) if self._device.type == "cuda" else (Emptied,)
        for kind in kinds:
            yield StreamedLayers(self._arena, {}, slots, self._device, partial(kind, self._device))

    def gradients(self, layers: Sequence[LayerWeights], keep: Keep) -> list[Tensor]:
        """Of every low-rank term."""
        weights = replace(self._ends, layers=layers)
        x_pred = generation_passes(self._config, weights, [self._pass], [keep] * self._config.layers)[0]
        return list(torch.autograd.grad(F.mse_loss(x_pred, self._x0), self._adapter.parameters()))
