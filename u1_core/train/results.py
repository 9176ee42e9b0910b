"""What a run's result says of itself, and the proof that it was written as it was trained.

The metadata keys are those that other programs show: modelspec.* (the Stability "model metadata standard") and ss_*
(kohya's trainers). Nothing in it depends on the time or the machine, so that the same run gives the same bytes.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch

from u1_core import __version__
from u1_core.errors import U1Error
from u1_core.lora.adapter import Adapter
from u1_core.lora.files import read_lora
from u1_core.train.page import thumbnail
from u1_core.train.recipe import Recipe

THUMBNAIL_SIDE, THUMBNAIL_QUALITY = 256, 80
"""Some ten kilobytes inside the file."""


def result_metadata(
    recipe: Recipe,
    step: int,
    pictures: int,
    base_name: str,
    hashes: Mapping[str, str],
    preview: Path | None = None,
) -> dict[str, str]:
    """Metadata of the LoRA after `step` steps on so many pictures.

    `base_name` is the base model's, `hashes` what `base_hashes` tells of it; `preview` becomes the thumbnail.
    Ranks, alphas and the kind of model are added by `write_lora` itself.
    """
    train, trigger = recipe.train, recipe.style.trigger
    side = int(recipe.data.cap_max_pixels**0.5)
    whole_hash = hashlib.sha256(json.dumps(sorted(hashes.values())).encode()).hexdigest()
    found = {
        "modelspec.implementation": f"u1-style-studio {__version__}",
        "modelspec.resolution": f"{side}x{side}",
        "modelspec.prediction_type": "x0",
        "modelspec.timestep_range": "0,1",
        "ss_network_module": "networks.lora",
        "ss_base_model_version": "sensenova_u1",
        "ss_sd_model_name": base_name,
        "ss_output_name": recipe.run_name,
        "ss_steps": str(step),
        "ss_max_train_steps": str(train.steps),
        "ss_num_train_images": str(pictures),
        "ss_resolution": f"({side}, {side})",
        "ss_learning_rate": f"{train.lr:g}",
        "ss_optimizer": train.optimizer,
        "ss_gradient_accumulation_steps": str(train.grad_accum),
        "ss_loss_type": train.loss_type,
        "ss_seed": str(train.seed),
        "ss_network_dropout": f"{recipe.lora.dropout:g}",
        "ss_training_comment": f"timesteps {train.t_dist}, trained with U1 Style Studio",
        "u1.base_model": base_name,
        "u1.step": str(step),
    }
    if hashes:
        found |= {"u1.base_hashes": json.dumps(dict(sorted(hashes.items()))), "ss_new_sd_model_hash": whole_hash}
    if trigger:
        found |= {"modelspec.trigger_phrase": trigger, "ss_tag_frequency": json.dumps({"dataset": {trigger: pictures}})}
    if preview is not None:
        found["modelspec.thumbnail"] = thumbnail(preview, THUMBNAIL_SIDE, THUMBNAIL_QUALITY)
    return found


def base_hashes(manifest: Path) -> dict[str, str]:
    """What a run's manifest.json tells of the base model: "fingerprint", and file -> SHA-256 where it is known."""
    if not manifest.is_file():
        return {}
    model = json.loads(manifest.read_text(encoding="utf-8"))["model"]
    known = {name: facts["sha256"] for name, facts in model["files"].items() if facts["sha256"]}
    return {"fingerprint": model["fingerprint"], **known}


def check_saved(path: Path, adapter: Adapter) -> None:
    """Load a result back and compare it with what was trained, number by number. Raises U1Error if it differs."""
    saved = read_lora(path).adapter
    differing = []
    if saved.modules.keys() != adapter.modules.keys() or saved.full.keys() != adapter.full.keys():
        differing.append("the names of its tensors")
    for name, module in adapter.modules.items():
        back = saved.modules.get(name)
        if back and (back.alpha != module.alpha or not _same(back.down, module.down) or not _same(back.up, module.up)):
            differing.append(name)
    both = saved.full.keys() & adapter.full.keys()
    differing += [name for name in adapter.full if name in both and not _same(saved.full[name], adapter.full[name])]
    if differing:
        raise U1Error(f"{path}: reads back differently from what was trained ({differing[0]}); is the disk sound?")


def _same(saved: torch.Tensor, trained: torch.Tensor) -> bool:
    return torch.equal(saved, trained.detach().to("cpu", saved.dtype))
