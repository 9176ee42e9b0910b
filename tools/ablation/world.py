"""The pictures of the study: training sets of each style as folders, and scenes that no run sees."""

import random
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from tools.nano.captions import caption, describe_full
from tools.nano.scene import Scene
from tools.nano.style_score import sample_scenes
from tools.nano.styles import render_styled

from .study import SETTINGS, STYLES, Setting, asked, training_folder

TRAINING, HELD_OUT = 32, 24
"""Scenes in a training set, of which the recipe holds out a quarter, and scenes to be measured on."""
FORMS = {"plain": "none", "last": "last", "contrast": "first"}
"""How the captions of a kind of training set have the trigger: a form of `asked`."""


def held_out_scenes() -> list[Scene]:
    return sample_scenes("ablation held out", HELD_OUT)


def caption_of(scene: Scene, number: int) -> str:
    """One of the scene's captions, always the same."""
    return caption(scene, random.Random(f"ablation/{number}"))


def held_out_folder(world: Path, style: str, setting: Setting) -> Path:
    """Where the held-out scenes lie in a style, captioned as the setting's training set is."""
    folder = training_folder(world, style, setting)
    return folder.with_name(f"{folder.name}, held out")


def write_world(world: Path) -> None:
    """All folders under `world`."""
    scenes = sample_scenes("ablation training", TRAINING)
    plain_scenes = sample_scenes("ablation plain", TRAINING)
    for style in STYLES:
        for setting in SETTINGS.values():
            folder = training_folder(world, style, setting)
            if style not in setting.styles or folder.exists():
                continue
            form = FORMS[folder.name]
            write_folder(folder, scenes, style, form)
            write_folder(held_out_folder(world, style, setting), held_out_scenes(), style, form)
            if setting.contrast:
                write_folder(folder, plain_scenes, "base", "none")


def write_folder(folder: Path, scenes: Sequence[Scene], style: str, form: str) -> None:
    """Pictures with captions. Their think text names everything in the scene; only one setting reads it."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, scene in enumerate(scenes):
        path = folder / f"{style}_{number:02}.png"
        Image.fromarray(render_styled(scene, style)).save(path)
        words = asked(form, caption_of(scene, number))
        path.with_suffix(".txt").write_text(f"{words}\n---think---\n{describe_full(scene)}\n", encoding="utf-8")
