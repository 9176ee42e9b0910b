"""What a style LoRA does to U1-nano's pictures of held-out captions: four measures.

- *style*: how much of the way from the base model's pictures to the style their place in `style_score` has gone;
- *leakage*: the same for pictures drawn with the LoRA and without the trigger;
- *adherence*: the share of the attributes named in the captions that the detector finds in the styled pictures;
- *novelty*: how far styled pictures are from the nearest picture that the LoRA was trained on, against how far scenes
  are that were drawn in the style without it. Copies have 0, pictures as new as those 1.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from u1_core.lora.adapter import Adapter
from u1_core.session import Session

from .captions import sample_pair
from .evaluate import HELD_OUT, adherence, draw
from .style_score import style_space
from .styles import render_styled

COARSE = 12
"""Pictures are compared as so many times so many colours: where what is, and not in which strokes."""


@dataclass(frozen=True)
class Drawn:
    """Pictures (H, W, 3) of the same captions, each from the same noise."""

    base: list[np.ndarray]
    """By the model without the LoRA."""
    styled: list[np.ndarray]
    """With it, and the trigger before the caption."""
    untriggered: list[np.ndarray]
    """With it, and without the trigger."""


@dataclass(frozen=True)
class StyleMeasures:
    """As in the module's words."""

    style: float
    leakage: float
    adherence: float
    novelty: float


def draw_all(
    session: Session,
    adapters: Sequence[Adapter],
    trigger: str,
    captions: Sequence[str],
    steps: int,
    cfg: float,
    fast: Sequence[Adapter] = (),
) -> Drawn:
    """The captions without and with `adapters`. `fast`, the 8-step LoRA, is in effect in all of them."""
    session.use(fast)
    base = draw(session, captions, steps, cfg)
    session.use([*fast, *adapters])
    styled = draw(session, [f"{trigger}, {caption}" for caption in captions], steps, cfg)
    untriggered = draw(session, captions, steps, cfg)
    session.use([])
    return Drawn(base, styled, untriggered)


def held_out_captions(count: int) -> list[str]:
    """Captions of scenes that neither the model nor a LoRA has been trained on."""
    return [sample_pair(HELD_OUT + number)[1] for number in range(count)]


def measure(drawn: Drawn, captions: Sequence[str], style: str, training: Sequence[np.ndarray]) -> StyleMeasures:
    """All four, for pictures of `held_out_captions`. `training` has the pictures that the LoRA was trained on."""
    space = style_space()
    return StyleMeasures(
        style=space.progress(drawn.styled, drawn.base, style),
        leakage=space.progress(drawn.untriggered, drawn.base, style),
        adherence=adherence(captions, drawn.styled),
        novelty=novelty(drawn.styled, training, style),
    )


def novelty(pictures: Sequence[np.ndarray], training: Sequence[np.ndarray], style: str) -> float:
    """The mean distance to the nearest training picture, as a share of the same for held-out scenes in the style."""
    scenes = (sample_pair(HELD_OUT + number)[0] for number in range(len(pictures)))
    new = [render_styled(scene, style) for scene in scenes]
    return float(np.mean(nearest(pictures, training)[1]) / np.mean(nearest(new, training)[1]))


def nearest(pictures: Sequence[np.ndarray], others: Sequence[np.ndarray]) -> tuple[list[int], list[float]]:
    """For each picture the number of the most similar of `others`, and the root mean square difference of 0 to 255."""
    ours, theirs = (np.stack([_coarse(picture) for picture in side]) for side in (pictures, others))
    apart = np.sqrt(((ours[:, None] - theirs[None]) ** 2).mean(axis=2))
    return apart.argmin(axis=1).tolist(), apart.min(axis=1).tolist()


def nearest_files(pictures: Sequence[Path], others: Sequence[Path]) -> list[Path]:
    """For each picture's file that of the most similar of `others`."""
    found, _ = nearest(*([np.asarray(Image.open(path).convert("RGB")) for path in side] for side in (pictures, others)))
    return [others[number] for number in found]


def _coarse(picture: np.ndarray) -> np.ndarray:
    small = Image.fromarray(picture).resize((COARSE, COARSE), Image.Resampling.BOX)
    return np.asarray(small, dtype=np.float64).ravel()
