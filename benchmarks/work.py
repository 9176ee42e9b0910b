"""What the benchmarks have in common: the work of a step at full size, with random weights, and how it is measured."""

import argparse
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from u1_core.lora.adapter import Adapter, tower_terms
from u1_core.lora.full import with_trained_tensors
from u1_core.lora.plan import plan_lora, select_unfrozen
from u1_core.model.config import GENERATION, U1Config
from u1_core.model.generation import Pass, generation_passes
from u1_core.model.stack import Keep
from u1_core.model.views import Generation, KVChunk, LayerWeights, PrefixKV
from u1_core.released import released_config
from u1_core.sample.euler import denoise
from u1_core.sample.guidance import Branch, Guidance
from u1_core.sample.schedule import sampling_timesteps
from u1_core.train.objective import flow_loss
from u1_core.train.optimizers import make_optimizer, parameter_groups
from u1_core.train.recipe import Recipe
from u1_core.weights.arena import Arena
from u1_core.weights.layout import layer_views
from u1_core.weights.placement import Placement
from u1_core.weights.ring import StreamedLayers

PREFIX_TOKENS = 279
UNCONDITIONAL_TOKENS = 9

Row = dict[str, Any]


def parser(description: str) -> argparse.ArgumentParser:
    """The options that every benchmark has."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--config", type=Path, help="a config.json (default: U1-8B's)")
    made.add_argument("--width", type=int, default=2048)
    made.add_argument("--height", type=int, default=2048)
    made.add_argument("--device", default="cuda")
    made.add_argument("--warmup", type=int, default=3)
    made.add_argument("--repeats", type=int, default=10)
    made.add_argument("--json", type=Path, help="also write the figures here")
    return made


def machine(device: torch.device) -> str:
    return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}, Python {platform.python_version()}"


def model_config(args: argparse.Namespace) -> U1Config:
    """The model that is measured: --config's, or U1-8B."""
    return U1Config.from_file(args.config) if args.config else released_config("U1-8B")


def random_prefix(config: U1Config, tokens: int, device: torch.device) -> PrefixKV:
    """A prompt's K/V made of noise; its cost does not depend on what it says."""
    shape = (config.layers, tokens, config.kv_heads, config.head_dim)
    chunk = KVChunk(*(torch.randn(shape, device=device, dtype=torch.bfloat16) for _ in range(2)))
    return PrefixKV((chunk,), tokens)


def sampling_step(config: U1Config, weights: Generation, width: int, height: int) -> Callable[[], Tensor]:
    """A step of the sampler at cfg 4, both guidance branches in one batch."""
    device = weights.norm.device
    prefixes = {
        Branch.CONDITIONAL: random_prefix(config, PREFIX_TOKENS, device),
        Branch.UNCONDITIONAL: random_prefix(config, UNCONDITIONAL_TOKENS, device),
    }
    noise = torch.randn(1, 3, height, width, device=device)
    timesteps = sampling_timesteps(50, 3.0)[20:22]
    return lambda: denoise(config, weights, noise, prefixes, Guidance(4.0), timesteps)


@dataclass
class Training:
    """The default recipe's step: LoRA rank 64 on attention and MLP, four module groups trained whole, x0 loss."""

    config: U1Config
    adapter: Adapter
    optimizer: torch.optim.Optimizer
    about: str

    @classmethod
    def create(cls, config: U1Config, weights: Generation, recipe: Recipe) -> "Training":
        device = weights.norm.device
        adapter = Adapter.create(plan_lora(config, recipe.lora.preset), seed=0, device=device)
        names = select_unfrozen(config, recipe.unfreeze)
        adapter.full = {name: weights.modules[name].float().requires_grad_() for name in names}
        optimizer, line = make_optimizer(recipe.train, parameter_groups(recipe.train, adapter), device)
        trained = [*adapter.parameters(), *adapter.full.values()]
        return cls(config, adapter, optimizer, f"{sum(p.numel() for p in trained):,} trainable, {line}")

    def passes(self, count: int, width: int, height: int, device: torch.device) -> list[tuple[Pass, Tensor]]:
        """Turns of `count` pictures, each with the picture it is a noisy version of."""
        made = []
        for _ in range(count):
            x0, noise = (torch.randn(1, 3, height, width, device=device) for _ in range(2))
            t = torch.tensor([0.4], device=device)
            z = torch.lerp(noise * self.config.noise_scale_for(width * height // 1024), x0, t)
            made.append((Pass(z, t, [random_prefix(self.config, PREFIX_TOKENS, device)]), x0))
        return made

    def step(self, weights: Generation, turns: Sequence[tuple[Pass, Tensor]], kept: Sequence[Keep]) -> None:
        """Forward and backward of all turns together, then the optimizer."""
        self.add_gradients(weights, turns, kept)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def add_gradients(self, weights: Generation, turns: Sequence[tuple[Pass, Tensor]], kept: Sequence[Keep]) -> None:
        trained = with_trained_tensors(weights, self.adapter.full)
        terms = tower_terms(self.config, [self.adapter], GENERATION)
        passes = [replace(each, terms=terms) for each, _ in turns]
        outputs = generation_passes(self.config, trained, passes, kept)
        losses = [
            flow_loss("x0", x_pred, x0, each.z, each.t, self.config.t_eps)
            for x_pred, (each, x0) in zip(outputs, turns, strict=True)
        ]
        (sum(losses) / len(losses)).backward()


@contextmanager
def placed(arena: Arena, placement: Placement, device: torch.device) -> Iterator[StreamedLayers | list[LayerWeights]]:
    """The arena's layers, some of them on the device."""
    resident = {
        index: layer_views(arena.config, arena.tower, index, arena.layer(index).to(device))
        for index in placement.resident
    }
    everything = len(resident) == arena.config.layers
    layers = list(resident.values()) if everything else StreamedLayers(arena, resident, placement.slots, device)
    yield layers
    torch.cuda.synchronize(device)
    del layers, resident
    torch.cuda.empty_cache()


def measure(step: Callable[[], object], args: argparse.Namespace, device: torch.device) -> Row:
    """Median seconds of `args.repeats` steps after `args.warmup`, and the peak memory they reached."""
    for _ in range(args.warmup):
        step()
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    seconds = []
    for _ in range(args.repeats):
        started = time.perf_counter()
        step()
        torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - started)
    return {
        "seconds": statistics.median(seconds),
        "allocated_gib": torch.cuda.max_memory_allocated(device) / 2**30,
        "reserved_gib": torch.cuda.max_memory_reserved(device) / 2**30,
    }


def table(rows: dict[str, Row]) -> str:
    """The rows in Markdown."""
    lines = ["| work | s per step | GiB allocated | GiB reserved |", "|---|---|---|---|"]
    for work, row in rows.items():
        numbers = f"{row['seconds']:.3f} | {row['allocated_gib']:.2f} | {row['reserved_gib']:.2f}"
        lines.append(f"| {work} | {numbers} |")
    return "\n".join(lines)
