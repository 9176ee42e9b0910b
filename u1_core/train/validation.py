"""How much better than the base model the training has made it, on questions that never change.

A question is a picture with its caption, a timestep t (1 is clean, 0 is noise) and noise, all of them fixed for the
run. The error on each is compared with the error that the model made before training, so that neither hard pictures nor
unlucky noise move the curve: 100 % is the base model, less is better. Pictures that are held out of training tell
learning from memorising; where the set is too small to spare any, training pictures are asked about, and only these.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from u1_core.data.folder import Sample
from u1_core.errors import U1Error
from u1_core.lora.adapter import Adapter, tower_terms
from u1_core.lora.full import with_full_tensors
from u1_core.model.config import GENERATION
from u1_core.model.generation import generation_pass
from u1_core.train.objective import flow_loss
from u1_core.train.prefixes import move_prefix
from u1_core.train.recipe import Recipe, Style, Validation
from u1_core.train.rng import generator
from u1_core.train.step import Trainer
from u1_core.train.turn import TrainingSet

T_EDGES = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Between these the errors are also told apart: the layout is decided near t = 0, the detail near 1."""

SPARED_OF = 25
"""Unless told how many, pictures are held out where the set has this many times as many."""

RESAMPLES = 1000
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Share:
    """A mean error as a percentage of the base model's, with a confidence band."""

    percent: float
    low: float
    high: float
    mean: float
    base_mean: float


def compare(ours: Tensor, base: Tensor) -> Share:
    """Errors (N,) of the same N questions, before and after -> 100 * mean / base mean.

    The band holds 95 % of what `RESAMPLES` paired bootstrap samples give: the same questions drawn for both, so that
    it tells how far other questions could have moved the percentage.
    """
    ours, base = ours.double().cpu(), base.double().cpu()
    drawn = torch.randint(len(ours), (RESAMPLES, len(ours)), generator=torch.Generator().manual_seed(0))
    ratios = ours[drawn].sum(1) / base[drawn].sum(1)
    tails = torch.tensor([(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2], dtype=torch.float64)
    low, high = (100 * torch.quantile(ratios, tails)).tolist()
    return Share(100 * (ours.sum() / base.sum()).item(), low, high, ours.mean().item(), base.mean().item())


def judged_by(found: Mapping[str, Any]) -> str:
    """Which pictures' errors a run is judged by: those held out, if any are."""
    return "held_out" if "held_out" in found else "training"


@dataclass(frozen=True)
class Question:
    """A picture by its number, and where between noise and picture the model is asked."""

    number: int
    t: float
    place: int
    """Which of the picture's timesteps this is: its noise is drawn for it."""


def triggered(samples: Sequence[Sample], style: Style, numbers: Sequence[int]) -> Sequence[int]:
    """Those of these numbers whose samples get the trigger: the others are not what is to be learned."""
    return [number for number in numbers if style.triggers(samples[number].id)] if style.untriggered else numbers


def held_out(numbers: Sequence[int], settings: Validation, seed: int) -> list[int]:
    """Those of these samples that validation keeps from training, drawn at random from `seed`; in order.

    Raises U1Error if none would be left to train on.
    """
    samples = len(numbers)
    count = round(settings.split * samples) if settings.split is not None else 0
    if settings.split:
        count = max(1, count)
    if settings.split is None and settings.every and samples >= SPARED_OF * settings.pictures:
        count = settings.pictures
    if count >= samples:
        raise U1Error(f"validation.split is {settings.split:g}: that leaves none of {samples} pictures to train on")
    drawn = torch.randperm(samples, generator=generator(seed, 0, "", "held out"))[:count]
    return sorted(numbers[place] for place in drawn.tolist())


class Validator:
    """Asks the questions each `validation.every` steps, from step 0 on. A hook of the training loop."""

    name = "validation"

    def __init__(self, settings: Validation, training: Sequence[int], held_out: Sequence[int], seed: int) -> None:
        """`training` and `held_out` are the numbers of samples; a training sample may be there several times."""
        self._settings, self._seed = settings, seed
        self._sets = {"training": self._pick(training), "held_out": self._pick(held_out)}
        self._base: dict[str, Tensor] = {}

    def begin(self, trainer: Trainer) -> None:
        """Nothing: captions' prefixes are there."""

    def due(self, step: int) -> bool:
        every = self._settings.every
        return every > 0 and step % every == 0

    def run(self, trainer: Trainer, step: int) -> dict[str, Any]:
        """Errors of the weights that the run would leave now, as a share of the base model's, for the log.

        "held_out" and "training" each have x0-MSE and v-MSE over all questions and x0-MSE by range of t, as `Share`s;
        "gap" is by how many points held-out pictures lag behind training pictures. What no picture is there for is
        absent.
        """
        started = time.perf_counter()
        return {**self.look(trainer, trainer.weights_to_use()), "seconds": time.perf_counter() - started}

    def look(self, trainer: Trainer, adapter: Adapter) -> dict[str, Any]:
        """The same for any adapter, without the time it took."""
        found = {}
        for name, numbers in self._sets.items():
            if not numbers:
                continue
            questions = self._questions(numbers)
            if name not in self._base:
                self._base[name] = errors(trainer, questions, None, self._seed)
            ours = errors(trainer, questions, adapter, self._seed)
            found[name] = _shares(ours, self._base[name], questions, trainer.config.t_eps)
        if len(found) == 2:
            found["gap"] = found["held_out"]["x0"]["percent"] - found["training"]["x0"]["percent"]
        return found

    def _pick(self, numbers: Sequence[int]) -> list[int]:
        """So many different ones of these, the same each time."""
        order = torch.randperm(len(numbers), generator=generator(self._seed, 0, "", "validation pictures"))
        picked: dict[int, None] = {}
        for place in order:
            picked[numbers[int(place)]] = None
            if len(picked) == self._settings.pictures:
                break
        return sorted(picked)

    def _questions(self, numbers: Sequence[int]) -> list[Question]:
        """Every picture at the middles of as many equal parts of t as there are to be timesteps."""
        count = self._settings.timesteps
        return [Question(number, (place + 0.5) / count, place) for number in numbers for place in range(count)]


def standard_validator(recipe: Recipe, data: TrainingSet) -> Validator:
    """The recipe's own, about the samples that are trained on with the trigger and those held out."""
    turns = triggered(data.samples, recipe.style, data.samples.turns)
    return Validator(recipe.validation, turns, data.held_out, recipe.train.seed)


@torch.no_grad()
def errors(trainer: Trainer, questions: Sequence[Question], adapter: Adapter | None, seed: int) -> Tensor:
    """x0-MSE of each question, (N,) on the CPU: with `adapter` at its strength, or without (None is the base model).

    The trainer's frozen upstream LoRA is in effect in both. Nothing is dropped out.
    """
    config, device, data = trainer.config, trainer.base.norm.device, trainer.data
    adapters = [*trainer.upstream, *([adapter] if adapter else [])]
    weights = with_full_tensors(trainer.base, [adapter] if adapter else [])
    terms = tower_terms(config, adapters, GENERATION)
    found = []
    for question in questions:
        fetched = data.pictures.fetch(question.number)
        picture, mask = fetched.pixels[None], fetched.mask
        drawn = generator(seed, question.place, data.samples[question.number].id, "validation noise")
        noise = torch.randn(picture.shape, generator=drawn)
        noise *= config.noise_scale_for(picture.shape[2] * picture.shape[3] // config.token_pixels**2)
        x0, t = picture.to(device).float() / 127.5 - 1.0, torch.tensor([question.t], device=device)
        z = torch.lerp(noise.to(device), x0, t)
        prefix = move_prefix(data.prefixes.captions[question.number], device)
        x_pred = generation_pass(config, weights, z, t, [prefix], terms)
        shares = None if mask is None else mask[None].to(device).float() / 255
        found.append(flow_loss("x0", x_pred, x0, z, t, config.t_eps, weights=shares).item())
    return torch.tensor(found, dtype=torch.float64)


def _shares(ours: Tensor, base: Tensor, questions: Sequence[Question], t_eps: float) -> dict[str, Any]:
    """The comparison over all questions, for x0 and for v, and for x0 in each range of t that has any."""
    t = torch.tensor([question.t for question in questions], dtype=torch.float64)
    to_v = (1 - t).clamp(min=t_eps).square()
    ranges = []
    for start, end in pairwise(T_EDGES):
        inside = (t >= start) & (t < end)
        if inside.any():
            ranges.append({"from": start, "to": end, **asdict(compare(ours[inside], base[inside]))})
    return {
        "x0": asdict(compare(ours, base)),
        "v": asdict(compare(ours / to_v, base / to_v)),
        "ranges": ranges,
        "pictures": len({question.number for question in questions}),
        "questions": len(questions),
    }
