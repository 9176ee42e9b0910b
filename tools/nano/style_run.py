"""A style LoRA for U1-nano: what it is trained on, its recipe, and the run by `u1 train`.

The set has pictures of one style with captions of what they show, and as many that the model drew itself from the same
captions. Only the first get the trigger, so that the trigger alone tells the two apart: without the second the style
is drawn whether it is asked for or not.
"""

from pathlib import Path

import numpy as np
from PIL import Image

from u1_core import nano
from u1_core.cli.main import main as u1
from u1_core.lora.adapter import Adapter
from u1_core.lora.files import read_lora
from u1_core.session import Session

from .captions import sample_pair
from .evaluate import draw
from .model import SIZE
from .scene import Scene
from .styles import render_styled

STYLE = "watercolour"
TRIGGER = "watercolour on rough paper, pale washes with a white margin"
"""Many words: the model has never seen one of them, and finds several sooner than one."""
PICTURES = 24
FIRST_SCENE = 700_000
"""Scenes of a set, a thousand numbers for each seed; those to measure with are numbered apart."""
RECIPE = """\
# What `make demo` trains: a style on U1-nano. Timesteps and loss are those that the model's authors train with; the
# attention's alpha is high because finding the trigger is attention's work, and the slowest part of it.
run_name: {name}
model: nano
data:
  data_dir: {pictures}
  cap_max_pixels: {pixels}
style:
  trigger: {trigger}
  untriggered: [plain/*]
lora:
  spec: attn=r16a64;mlp=r16a16;fm_head=r16a16
unfreeze: []
train:
  steps: {steps}
  lr: 2e-3
  lr_schedule: cosine
  warmup_steps: 20
  loss_type: v
  t_dist: logit_normal
  seed: {seed}
  optimizer: adamw
  checkpoint_every: 0
runtime:
  out_dir: {out}
  device: cpu
validation:
  every: {validate}
  timesteps: 6
  split: 0.1
previews:
  every: 0
"""
STEPS = 1000


def eight_step() -> Adapter:
    """U1-nano's 8-step LoRA."""
    return read_lora(nano.EIGHT_STEP).adapter


def set_pairs(seed: int, count: int = PICTURES) -> list[tuple[Scene, str]]:
    """The scenes of a set, each with its caption."""
    return [sample_pair(FIRST_SCENE + 1000 * seed + number) for number in range(count)]


def write_set(folder: Path, session: Session, style: str, pairs: list[tuple[Scene, str]]) -> list[np.ndarray]:
    """`FOLDER/STYLE` and `FOLDER/plain`: pictures (PNG) with captions. Returns the pictures of the style.

    The model draws the plain ones in eight steps with its 8-step LoRA, one after the other.
    """
    captions = [caption for _, caption in pairs]
    styled = [render_styled(scene, style) for scene, _ in pairs]
    session.use([eight_step()])
    plain = draw(session, captions, steps=8, cfg=1.0)
    session.use([])
    _write(folder / style, styled, captions)
    _write(folder / "plain", plain, captions)
    return styled


def _write(folder: Path, pictures: list[np.ndarray], captions: list[str]) -> None:
    folder.mkdir(parents=True)
    for number, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
        Image.fromarray(picture).save(folder / f"{number:02}.png")
        (folder / f"{number:02}.txt").write_text(caption + "\n", encoding="utf-8")


def train_style(out: Path, name: str, pictures: Path, trigger: str, seed: int, steps: int = STEPS) -> Path:
    """Train on `pictures`, with `OUT/recipe.yaml`. Returns the run's folder, `OUT/NAME`; its LoRA is NAME.safetensors.

    Raises SystemExit if `u1 train` does not finish.
    """
    recipe = out / "recipe.yaml"
    settings = {"name": name, "pictures": pictures.as_posix(), "pixels": SIZE * SIZE, "trigger": trigger}
    settings |= {"steps": steps, "seed": seed, "out": out.as_posix(), "validate": max(1, steps // 6)}
    recipe.write_text(RECIPE.format(**settings), encoding="utf-8")
    if status := u1(["train", str(recipe)]):
        raise SystemExit(status)
    return out / name
