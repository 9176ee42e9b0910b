"""What looks at a run from time to time, and what it finds put into the log."""

from pathlib import Path
from typing import Any, Protocol

from u1_core.session import Session
from u1_core.train.previews import CAPTIONS_TAKEN, Previewer, preview_prompts
from u1_core.train.recipe import Recipe
from u1_core.train.step import Trainer
from u1_core.train.validation import standard_validator, triggered


class Hook(Protocol):
    """Asked before the first step and after each whether it is due; what it finds is logged under its name.

    It changes neither the weights nor anything that is drawn, so that the run is the same without it.
    """

    name: str

    def begin(self, trainer: Trainer) -> None:
        """Do now what takes the understanding tower. Raises nothing: what fails, fails again when it is needed."""

    def due(self, step: int) -> bool: ...

    def run(self, trainer: Trainer, step: int) -> dict[str, Any]: ...


def standard_hooks(session: Session, recipe: Recipe, trainer: Trainer, previews: Path) -> list[Hook]:
    """Validation, and previews into that folder."""
    samples = trainer.data.samples
    validator = standard_validator(recipe, trainer.data)
    shown = triggered(samples, recipe.style, range(len(samples)))[:CAPTIONS_TAKEN]
    captions = [samples[number].caption for number in shown]
    return [validator, Previewer(session, recipe, preview_prompts(recipe, captions), previews)]
