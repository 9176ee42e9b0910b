"""What the nodes have in common: the studio, who watches a node at work, and how its result is handed to ComfyUI."""

import atexit
import os
import threading
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.utils
import folder_paths
from comfy_api.latest import io, ui

from u1_core.data.pictures import to_images
from u1_core.errors import U1Error
from u1_core.sample.euler import Step
from u1_core.workflow.graph import NODES
from u1_core.workflow.studio import Places, Studio, Watch

from .host import ComfyHost

PREVIEW_SIDE = 512
LAST_SAVE_S = 120.0
"""How long ComfyUI's end is held up for a run to save itself."""


@cache
def host() -> ComfyHost:
    """The one of this process."""
    return ComfyHost()


@cache
def studio() -> Studio:
    """The one of this process, with ComfyUI's folders."""
    user = Path(folder_paths.get_user_directory()) / "u1_style_studio"
    kinds = ("u1", "diffusion_models", "checkpoints")
    places = Places(
        models=tuple(Path(path) for kind in kinds for path in folder_paths.get_folder_paths(kind)),
        loras=tuple(map(Path, folder_paths.get_folder_paths("loras"))),
        output=Path(folder_paths.get_output_directory()),
        cache=user,
        input=Path(folder_paths.get_input_directory()),
    )
    studio = Studio(places, str(comfy.model_management.get_torch_device()), host())
    host().let_go, host().at_work = studio.let_go, studio.runs.at_work
    _at_the_end(studio.runs.stop_all, LAST_SAVE_S)
    return studio


def _at_the_end(call: Callable[..., None], *arguments: Any) -> None:
    """Have Python call this before all else when it ends, as at Ctrl-C.

    By the time of atexit's functions, and when the main thread counts as ended, thread pools take no more work, and a
    run could not even end its step. What `threading` calls before that, it has no public name for (3.9 and later).
    """
    getattr(threading, "_register_atexit", atexit.register)(call, *arguments)


def register_model_folder() -> None:
    """Have ComfyUI know `models/u1` and what extra_model_paths.yaml lists under `u1`."""
    folder_paths.add_model_folder_path("u1", os.path.join(folder_paths.models_dir, "u1"))


class Node(io.ComfyNode):
    """A node that does what the function of its id in u1_core.workflow does."""

    @classmethod
    def execute(cls, **inputs) -> io.NodeOutput:
        schema = cls.SCHEMA
        try:
            result = NODES[schema.node_id](studio(), _watch(cls), **inputs)
        except U1Error as problem:
            raise RuntimeError(str(problem)) from None
        shown = dict(ui.PreviewText(result.text).as_dict()) if result.text else {}
        if result.pictures is not None and schema.is_output_node:
            shown |= ui.PreviewImage(result.pictures, cls=cls).as_dict()
        if result.facts:
            shown["u1"] = [result.facts]
        return io.NodeOutput(*result.values, ui=shown or None)


def _watch(cls: type[io.ComfyNode]) -> Watch:
    """Shows a node's progress on it, in the prompt's own thread, where Cancel is meant for it."""
    bar = comfy.utils.ProgressBar(1)

    def on_step(step: Step) -> None:
        image = to_images(step.x_pred[:1].cpu())[0]
        bar.update_absolute(step.index + 1, step.steps, ("JPEG", image, PREVIEW_SIDE))

    check = comfy.model_management.throw_exception_if_processing_interrupted
    return Watch(
        on_step,
        lambda text: check(),
        lambda done, total: bar.update_absolute(done, total),
        check,
        cls.hidden.prompt,
        cls.hidden.unique_id or "",
    )
