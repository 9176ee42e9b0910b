"""Finished LoRAs on the questions that a run asked itself: what an export has lost, said in the run's own terms."""

from collections.abc import Mapping
from typing import Any

from u1_core.jobs import Job
from u1_core.lora.adapter import Adapter
from u1_core.session import Session
from u1_core.train.prepare import prepared
from u1_core.train.recipe import Recipe
from u1_core.train.validation import judged_by, standard_validator


def validate(session: Session, recipe: Recipe, adapters: Mapping[str, Adapter]) -> dict[str, dict[str, Any]]:
    """Name -> its x0-MSE as a share of the base model's, on the validation pictures of `recipe`; see `Share`.

    Held-out pictures judge where the recipe holds any out. Raises U1Error if its data cannot be read any more.
    """
    shares = {}
    with prepared(Job(lambda job: None), session, recipe) as trainer:
        validator = standard_validator(recipe, trainer.data)
        for name, adapter in adapters.items():
            found = validator.look(trainer, adapter.to(session.device))
            shares[name] = found[judged_by(found)]["x0"]
    return shares
