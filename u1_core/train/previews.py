"""Pictures drawn while training: fixed prompts and seed, by the sampler that users will use, each beside the picture
that the model draws without the LoRA. A preview that fails is told of and never ends the run.
"""

import copy
import json
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from u1_core.data.buckets import parse_size
from u1_core.data.pictures import save_png, to_images
from u1_core.lora.adapter import Adapter
from u1_core.model.config import U1Config
from u1_core.model.views import PrefixKV
from u1_core.sample.branches import build_branches, draw
from u1_core.sample.guidance import Branch, Guidance
from u1_core.sample.settings import SampleSettings
from u1_core.sample.text_to_image import queries
from u1_core.session import Session
from u1_core.train.prefixes import move_prefix
from u1_core.train.recipe import Recipe
from u1_core.train.step import Trainer

CAPTIONS_TAKEN = 2
"""Training captions that are drawn where the recipe names no prompts."""

BASE = "base"
"""How the file names of the unadapted pictures begin; the others begin with step_000600 or the like."""


def preview_settings(config: U1Config, recipe: Recipe) -> SampleSettings:
    """How previews are drawn. Raises U1Error for a size or a number of steps that the model cannot do."""
    wanted = recipe.previews
    pixels = min(recipe.data.cap_max_pixels, config.native_pixels)
    size = parse_size(wanted.size or "1:1", config.token_pixels, pixels=pixels)
    settings = SampleSettings(*size, wanted.steps, seed=wanted.seed, guidance=Guidance(wanted.cfg))
    settings.check(config)
    return settings


def preview_prompts(recipe: Recipe, captions: Sequence[str]) -> tuple[str, ...]:
    """The recipe's prompts, or these captions as training sees them: the trigger before each."""
    before = f"{recipe.style.trigger}, " if recipe.style.trigger else ""
    return recipe.previews.prompts or tuple(f"{before}{caption}" for caption in captions)


class Previewer:
    """Draws the prompts each `previews.every` steps, and whenever it is run. A hook of the training loop."""

    name = "preview"

    def __init__(self, session: Session, recipe: Recipe, prompts: Sequence[str], folder: Path) -> None:
        """PNGs go into `folder`. Raises U1Error for settings that the model cannot do."""
        self._session, self._every, self._prompts, self._folder = session, recipe.previews.every, tuple(prompts), folder
        self._settings = preview_settings(session.config, recipe)
        self._built: dict[str, dict[Branch, PrefixKV]] = {}

    def due(self, step: int) -> bool:
        return self._every > 0 and step > 0 and step % self._every == 0

    def begin(self, trainer: Trainer) -> None:
        """Build the prompts' K/V now, if the recipe asks for previews; from then on it lies in the host's memory."""
        if self._every:
            with suppress(Exception):
                self._build(trainer.upstream)

    def run(self, trainer: Trainer, step: int) -> dict[str, Any]:
        """Draw with the weights that the run would leave now.

        Returns {"files", "base_files", "prompts", "seconds"}, or {"failed": why}. File names stand alone, in the order
        of the prompts. Pictures of the same step are drawn over.
        """
        started = time.perf_counter()
        try:
            self._build(trainer.upstream)
            base_files = self._draw_all(BASE, trainer.upstream, again=False)
            files = self._draw_all(f"step_{step:06}", [*trainer.upstream, trainer.weights_to_use()], again=True)
        except Exception as problem:  # whatever it is, hours of training are worth more than this picture
            if self._session.device.type == "cuda":
                torch.cuda.empty_cache()
            return {"failed": " ".join(f"{type(problem).__name__}: {problem}".split())}
        seconds = time.perf_counter() - started
        return {"files": files, "base_files": base_files, "prompts": list(self._prompts), "seconds": seconds}

    def _build(self, upstream: Sequence[Adapter]) -> None:
        """The prompts' K/V, with the understanding side of the LoRAs under the one that is trained; built once."""
        session = self._session_with(upstream)
        for prompt in self._prompts:
            if prompt not in self._built:
                built = build_branches(session, queries(prompt), self._settings)
                self._built[prompt] = {
                    branch: move_prefix(one.kv, torch.device("cpu")) for branch, one in built.items()
                }

    def _draw_all(self, stem: str, adapters: Sequence[Adapter], again: bool) -> list[str]:
        """A file for each prompt; those that are there already are kept unless they are to be drawn again."""
        self._folder.mkdir(parents=True, exist_ok=True)
        session = self._session_with(adapters)
        names = [f"{stem}_{number}.png" for number in range(1, len(self._prompts) + 1)]
        for name, prompt in zip(names, self._prompts, strict=True):
            path, facts = self._folder / name, {"prompt": prompt, "picture": stem, "settings": asdict(self._settings)}
            if not again and _facts_in(path) == json.loads(json.dumps(facts)):
                continue
            prefixes = {branch: move_prefix(kv, session.device) for branch, kv in self._built[prompt].items()}
            with torch.no_grad():
                drawn = draw(session, prefixes, self._settings, session.generator(self._settings.seed))
            (image,) = to_images(drawn.cpu())
            path.unlink(missing_ok=True)
            save_png(image, path, facts)
        return names

    def _session_with(self, adapters: Sequence[Adapter]) -> Session:
        """The session with these LoRAs in place of those that its other users have put on."""
        session = copy.copy(self._session)
        session.adapters = list(adapters)
        return session


def newest_preview(folder: Path, every: int) -> Path | None:
    """The last of the first prompt's pictures that the recipe asked for; None if there is none.

    Pictures drawn on demand do not count: they are not there when the run is repeated.
    """
    steps = {path: int(path.stem.split("_")[1]) for path in sorted(folder.glob("step_*_1.png"))}
    return next((path for path, step in reversed(steps.items()) if every and step % every == 0), None)


def _facts_in(path: Path) -> dict[str, Any] | None:
    """What `save_png` wrote into a picture; None where there is no whole one."""
    try:
        with Image.open(path) as image:
            image.load()
            return json.loads(image.info["u1"])
    except (OSError, SyntaxError, KeyError, ValueError):
        return None
