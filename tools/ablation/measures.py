"""What is measured of a LoRA: pictures drawn with it, and its errors on questions that no run has seen."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tools.nano.evaluate import adherence
from tools.nano.fields import luminance
from tools.nano.style_score import style_space
from u1_core.data.pictures import to_images
from u1_core.jobs import Job
from u1_core.lora.adapter import Adapter
from u1_core.lora.files import read_lora
from u1_core.model.config import GENERATION
from u1_core.nano import EIGHT_STEP
from u1_core.sample.branches import Branch
from u1_core.sample.euler import denoise, draw_noise
from u1_core.sample.schedule import sampling_timesteps
from u1_core.session import Session
from u1_core.text import prompts
from u1_core.text.sequence import build_sequence
from u1_core.train.prepare import prepare
from u1_core.train.recipe import Recipe
from u1_core.train.run_log import read_run
from u1_core.train.validation import Question, errors

from .study import Way, asked
from .world import caption_of, held_out_scenes

QUESTION_PICTURES, TIMES = 16, 8
"""Held-out pictures that errors are measured on, and the timesteps of each."""
TOKEN = 16
"""Pixels of a token's side."""

Pictures = list[np.ndarray]


@cache
def captions() -> list[str]:
    return [caption_of(scene, number) for number, scene in enumerate(held_out_scenes())]


def draw(session: Session, adapters: Sequence[Adapter], way: Way) -> Pictures:
    """A picture (H, W, 3) of each held-out caption, each from its own noise: the same for every LoRA."""
    session.use([*([read_lora(EIGHT_STEP).adapter] if way.few_steps else []), *adapters])
    texts = [prompts.text_to_image(asked(way.form, caption)) for caption in captions()]
    *conditional, unconditional = session.build_prefixes(
        [build_sequence(session.tokenizer, text) for text in (*texts, prompts.unconditional())]
    )
    settings = way.settings
    noise = [
        draw_noise(session.config, settings.shape, torch.Generator().manual_seed(seed), torch.float32)
        for seed in range(len(texts))
    ]
    drawn = denoise(
        session.config,
        session.generation,
        torch.cat(noise).to(session.device),
        {Branch.CONDITIONAL: [built.kv for built in conditional], Branch.UNCONDITIONAL: unconditional.kv},
        settings.guidance,
        sampling_timesteps(settings.steps, settings.shift),
        session.terms(GENERATION),
    )
    return [np.asarray(image) for image in to_images(drawn.cpu())]


def measure_pictures(pictures: Pictures, base: Pictures, style: str) -> dict[str, float]:
    """Style movement from `base`, what the model draws without a LoRA; adherence to the captions; grain and grid."""
    return {
        "style": style_space().progress(pictures, base, style),
        "adherence": adherence(captions(), pictures),
        "grain": grain(pictures),
        "grid": grid(pictures),
    }


def grain(pictures: Pictures) -> float:
    """How much lightness differs from the mean of its four neighbours, root mean square, in levels of 255: speckle."""
    light = np.stack([luminance(picture.astype(np.float32)) for picture in pictures])
    middle = light[:, 1:-1, 1:-1]
    around = light[:, :-2, 1:-1] + light[:, 2:, 1:-1] + light[:, 1:-1, :-2] + light[:, 1:-1, 2:]
    return float(np.sqrt(np.square(middle - around / 4).mean()))


def grid(pictures: Pictures) -> float:
    """Mean step of lightness across the borders of tokens over that between other neighbours: 1 if there is no grid."""
    light = np.stack([luminance(picture.astype(np.float32)) for picture in pictures])
    across, inside = [], []
    for axis in (1, 2):
        steps = np.abs(np.diff(light, axis=axis)).mean(axis=(0, 3 - axis))
        border = np.arange(1, len(steps) + 1) % TOKEN == 0
        across.append(steps[border].mean())
        inside.append(steps[~border].mean())
    return float(np.mean(across) / np.mean(inside))


def measure_errors(
    session: Session, recipe: Recipe, folder: Path, adapters: Sequence[Adapter | None]
) -> list[list[float]]:
    """x0-MSE on each question with each adapter (None is the base model), prompted as `recipe` trains.

    Questions are the first pictures of `folder`, each at `question_times`.
    """
    recipe = replace(
        recipe,
        data=replace(recipe.data, data_dir=str(folder), n_samples=QUESTION_PICTURES),
        validation=replace(recipe.validation, every=0, split=None),
        runtime=replace(recipe.runtime, upstream_lora_path=None),
    )
    trainer = prepare(Job(lambda job: None), session, recipe)
    numbers = range(QUESTION_PICTURES)
    questions = [Question(number, t, place) for number in numbers for place, t in enumerate(question_times())]
    placed = [adapter and adapter.to(session.device) for adapter in adapters]
    return [errors(trainer, questions, adapter, seed=0).tolist() for adapter in placed]


def question_times() -> list[float]:
    """The timesteps of a picture's questions; 1 is clean."""
    return [(place + 0.5) / TIMES for place in range(TIMES)]


def training_curve(folder: Path) -> dict[str, Any]:
    """What a run's own log says: by step x0-MSE, v-MSE, t and whether the caption was dropped; and its validation."""
    log = read_run(folder)
    steps = {key: [round(record[key], 6) for record in log.pictures] for key in ("x0_mse", "v_mse", "t")}
    validation = [
        {"step": record["step"], **{part: record[part]["x0"]["percent"] for part in ("held_out", "training")}}
        for record in log.validations
    ]
    return {**steps, "dropped": sum(bool(record["dropped"]) for record in log.pictures), "validation": validation}
