"""Seconds and peak memory of U1 at full size: one sampling step at cfg 4 and one training step, random weights.

The weights are made on the GPU. Figures are medians over the counted repeats after a warm-up, printed as a table and,
with --json FILE, written for later comparison. Training is the default recipe's: LoRA rank 64 on attention and MLP,
four module groups trained whole, x0 loss, every layer recomputed.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from u1_core.lora.adapter import Adapter, tower_terms
from u1_core.lora.plan import plan_lora, select_unfrozen
from u1_core.model.config import GENERATION, U1Config
from u1_core.model.generation import generation_pass
from u1_core.model.views import Generation, KVChunk, PrefixKV
from u1_core.sample.euler import denoise
from u1_core.sample.guidance import Branch, Guidance
from u1_core.sample.schedule import sampling_timesteps
from u1_core.train.objective import flow_loss
from u1_core.train.optimizers import make_optimizer
from u1_core.train.recipe import Recipe
from u1_core.weights.random_model import random_generation

PREFIX_TOKENS = 279
UNCONDITIONAL_TOKENS = 9


def main() -> None:
    args = _arguments()
    device = torch.device(args.device)
    config = U1Config.from_file(args.config)
    weights = random_generation(config, device, torch.bfloat16)
    rows = {
        "sampling, cfg 4": sampling_step(config, weights, args, device),
        "training, batch 1": training_step(config, weights, args, device),
    }
    print(f"{_machine(device)}, {args.width}x{args.height}, prefix of {PREFIX_TOKENS} tokens")
    print(f"{'work':<20}{'s per step':>12}{'GiB allocated':>16}{'GiB reserved':>16}")
    for work, row in rows.items():
        print(f"{work:<20}{row['seconds']:>12.3f}{row['allocated_gib']:>16.2f}{row['reserved_gib']:>16.2f}")
    if args.json:
        args.json.write_text(json.dumps({"machine": _machine(device), "rows": rows}, indent=1), encoding="utf-8")


def sampling_step(config: U1Config, weights: Generation, args: argparse.Namespace, device: torch.device) -> dict:
    """A step of the sampler with both guidance branches in one batch."""
    prefixes = {
        Branch.CONDITIONAL: random_prefix(config, PREFIX_TOKENS, device),
        Branch.UNCONDITIONAL: random_prefix(config, UNCONDITIONAL_TOKENS, device),
    }
    noise = torch.randn(1, 3, args.height, args.width, device=device)
    timesteps = sampling_timesteps(50, 3.0)[20:22]
    return measure(lambda: denoise(config, weights, noise, prefixes, Guidance(4.0), timesteps), args, device)


def training_step(config: U1Config, weights: Generation, args: argparse.Namespace, device: torch.device) -> dict:
    """A step of the default recipe: forward, backward with every layer recomputed, optimizer."""
    recipe = Recipe()
    adapter = Adapter.create(plan_lora(config, recipe.lora.preset), seed=0, device=device)
    names = select_unfrozen(config, recipe.unfreeze)
    unfrozen = {name: weights.modules[name].float().requires_grad_() for name in names}
    parameters = [*adapter.parameters(), *unfrozen.values()]
    optimizer, line = make_optimizer("auto", parameters, recipe.train.lr, device)
    print(f"{sum(p.numel() for p in parameters):,} trainable, {line}")
    prefix = random_prefix(config, PREFIX_TOKENS, device)
    x0, noise = (torch.randn(1, 3, args.height, args.width, device=device) for _ in range(2))
    t = torch.tensor([0.4], device=device)
    z = torch.lerp(noise * config.noise_scale_for(4096), x0, t)

    def step() -> None:
        cast = {name: tensor.to(torch.bfloat16) for name, tensor in unfrozen.items()}
        trained = replace(weights, modules={**weights.modules, **cast})
        terms = tower_terms(config, [adapter], GENERATION)
        x_pred = generation_pass(config, trained, z, t, [prefix], terms, recompute=True)
        flow_loss("x0", x_pred, x0, z, t, config.t_eps).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return measure(step, args, device)


def random_prefix(config: U1Config, tokens: int, device: torch.device) -> PrefixKV:
    """A prompt's K/V made of noise; its cost does not depend on what it says."""
    shape = (config.layers, tokens, config.kv_heads, config.head_dim)
    chunk = KVChunk(*(torch.randn(shape, device=device, dtype=torch.bfloat16) for _ in range(2)))
    return PrefixKV((chunk,), tokens)


def measure(step: Callable[[], object], args: argparse.Namespace, device: torch.device) -> dict:
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


def _machine(device: torch.device) -> str:
    return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}, Python {platform.python_version()}"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=Path(__file__).with_name("u1_8b.json"), help="a config.json")
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--height", type=int, default=2048)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    return parser.parse_args()


if __name__ == "__main__":
    main()
