"""`u1 plan RECIPE`: what a training step will take, on this card or on another, before anything is loaded."""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from u1_core.data.dataset import open_dataset
from u1_core.data.framing import Framing
from u1_core.errors import U1Error
from u1_core.model.config import U1Config
from u1_core.plan.budget import GIB, Budget, desktop_bytes, free_bytes
from u1_core.plan.costs import Bus
from u1_core.plan.estimate import Rates, estimate
from u1_core.plan.machine import host_free_bytes, model_here
from u1_core.plan.planner import choose_plan
from u1_core.plan.step_model import StepModel
from u1_core.plan.table import budget_lines, plan_lines
from u1_core.plan.work import TrainingWork
from u1_core.released import RELEASED, released_config
from u1_core.session import choose_device
from u1_core.text.tokenizer import Tokenizer
from u1_core.train.prefixes import CaptionSequences
from u1_core.train.recipe import Recipe
from u1_core.train.recipe_file import load_recipe
from u1_core.train.work import training_work
from u1_core.weights.download import resolve_model
from u1_core.weights.gguf_file import GgufSource, refuse_training_on_quantised
from u1_core.weights.host_memory import pin_limit_bytes
from u1_core.weights.snapshot import GGUF, Snapshot

READ = 512
"""Samples that are looked at, of however many there are."""
USUAL_TOKENS, USUAL_HEAD = 320, 241
"""Of a prompt with a caption of some length, and of what all captions share, where none can be counted."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", type=Path, help="the run's recipe, a YAML file")
    parser.add_argument("--model", help=f"in place of the recipe's; a name will do: {', '.join(RELEASED)}")
    parser.add_argument(
        "--budget", help="memory of the card that may be taken, in place of the recipe's runtime.budget"
    )
    parser.add_argument("--device", default="auto", help="auto, cuda or cuda:N (default: auto)")
    parser.add_argument(
        "--card-gb", type=float, metavar="GIB", help="plan for a card of this size that is not here, by estimates"
    )


def run(args: argparse.Namespace) -> int:
    if args.card_gb is not None and not args.card_gb > 0:
        raise U1Error(f"--card-gb {args.card_gb:g}: expected the size of a card in GiB, such as 12")
    recipe = load_recipe(args.recipe)
    budget = Budget.parse(args.budget or recipe.runtime.budget)
    config, tokenizer = _model(args, recipe)
    seen = _Seen.of(config, recipe, tokenizer)
    device = None if args.card_gb else _card(args.device)
    work = training_work(
        config, recipe, seen.size, seen.tokens, device or torch.device("cuda"), held_bytes=seen.held_bytes
    )
    print(f"{config.kind}, {work.optimizer}, {work.trained:,} trained; {seen.about}")
    for line in _lines(work, budget, device, args.card_gb):
        print(line)
    return 0


def _model(args: argparse.Namespace, recipe: Recipe) -> tuple[U1Config, Tokenizer | None]:
    """The model's config, and its tokenizer if it is here. Reads headers only."""
    name = args.model or recipe.model
    if not name:
        raise U1Error(f"{args.recipe}: names no model; give --model ({', '.join(RELEASED)}, or a folder)")
    if name in RELEASED:
        return released_config(name), None
    path = resolve_model(name)
    snapshot = (GgufSource if path.suffix.lower() == GGUF else Snapshot).open(path)
    refuse_training_on_quantised(snapshot)
    return snapshot.config, Tokenizer.from_folder(snapshot.folder)


def _card(device: str) -> torch.device:
    chosen = choose_device(device)
    if chosen.type == "cpu":
        raise U1Error("u1 plan: this PyTorch sees no CUDA card; give --card-gb to plan for one that is not here")
    return chosen


@dataclass(frozen=True)
class _Seen:
    """What the data ask for: the largest picture, the longest prompt, the prefix K/V kept on the card."""

    size: tuple[int, int]
    tokens: int
    held_bytes: int
    about: str

    @classmethod
    def of(cls, config: U1Config, recipe: Recipe, tokenizer: Tokenizer | None) -> "_Seen":
        folder = Path(recipe.data.data_dir).expanduser()
        if not folder.exists():
            side = int(min(recipe.data.cap_max_pixels, config.native_pixels) ** 0.5) // config.token_pixels
            size = (side * config.token_pixels,) * 2
            about = f"{size[0]}x{size[1]} and prompts of {USUAL_TOKENS} tokens, as there is no {folder} to look at"
            return cls(size, USUAL_TOKENS, 0, about)
        dataset = open_dataset(folder, recipe.data.n_samples)
        count = min(READ, len(dataset))
        data = recipe.data
        framing = Framing(data.cap_max_pixels, config.token_pixels, data.snap_bucket, data.fit, data.upscale)
        sizes = [framing.frame(*dataset.size(index)).size for index in range(count)]
        lengths = [USUAL_TOKENS]
        if tokenizer:
            sequences = CaptionSequences(tokenizer, recipe, dataset)
            lengths = [len(sequences[index].ids) for index in range(count)]
        size, longest = max(sizes, key=lambda each: each[0] * each[1]), max(lengths)
        kept = sum(lengths) / len(lengths) * len(dataset) - USUAL_HEAD * (len(dataset) - 1)
        held = min(recipe.runtime.prefix_device_mb * 10**6, int(kept * config.kv_token_bytes))
        about = f"{len(dataset)} pictures, at most {size[0]}x{size[1]}, prompts of at most {longest} tokens"
        return cls(size, longest, held if recipe.runtime.keep_kvs_on_gpu else 0, about)


def _lines(work: TrainingWork, budget: Budget, device: torch.device | None, card_gib: float | None) -> Iterator[str]:
    model, free, source = _measured(work, device) if device else _estimated(work, card_gib)
    yield source
    plan = choose_plan(model, budget, free)
    yield ""
    yield f"budget {budget}"
    yield from plan_lines(model, plan)
    yield ""
    yield from budget_lines(model)


def _measured(work: TrainingWork, device: torch.device) -> tuple[StepModel, int, str]:
    name = torch.cuda.get_device_name(device)
    return model_here(device, work), free_bytes(device), f"measured on this {name}"


def _estimated(work: TrainingWork, card_gib: float) -> tuple[StepModel, int, str]:
    rates, card_bytes = Rates(), int(card_gib * GIB)
    bus = Bus(rates.bus, rates.pageable, pin_limit_bytes())
    model = StepModel.of(work, estimate(work, rates), bus, host_free_bytes())
    return model, card_bytes - desktop_bytes(card_bytes), f"estimated for a card of {card_gib:g} GiB and {rates}"
