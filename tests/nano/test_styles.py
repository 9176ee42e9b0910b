"""The styles: deterministic, each far from the base and from the others, and the scene still in place."""

import random

import numpy as np
import pytest

from tools.nano.fields import blurred, luminance
from tools.nano.scene import random_scene
from tools.nano.styles import STYLES, render_styled

SCENES = [random_scene(random.Random(seed)) for seed in range(6)]


def layout(picture: np.ndarray) -> np.ndarray:
    """Where it is lighter and where darker, without texture and margin: (H, W), mean 0 and length 1."""
    coarse = blurred(luminance(picture.astype(np.float32) / 255), 5)[20:-20, 20:-20]
    coarse = coarse - coarse.mean()
    return coarse / np.linalg.norm(coarse)


def test_there_are_five():
    assert list(STYLES) == ["ink", "watercolour", "mosaic", "neon", "riso"]


@pytest.mark.parametrize("style", STYLES)
def test_a_style_is_a_function_of_picture_and_seed(style):
    picture = render_styled(SCENES[0], "base")
    first, again, other = (STYLES[style](picture, seed) for seed in (1, 1, 2))
    assert (first == again).all()
    assert (first != other).mean() > 0.05
    assert first.shape == picture.shape
    assert first.dtype == np.uint8


@pytest.mark.parametrize("style", STYLES)
def test_a_style_grows_with_the_picture(style):
    assert render_styled(SCENES[1], style, 256).shape == (256, 256, 3)


@pytest.mark.parametrize("style", ["ink", "watercolour", "mosaic", "riso"])
def test_the_scene_keeps_its_layout(style):
    """Neon aside, which turns light and dark around."""
    alike = [(layout(render_styled(s, style)) * layout(render_styled(s, "base"))).sum() for s in SCENES]
    assert np.mean(alike) > 0.75


def test_styles_are_far_from_the_base_and_from_each_other():
    sets = {name: [render_styled(scene, name).astype(float) for scene in SCENES] for name in ("base", *STYLES)}
    for one in sets:
        for other in sets:
            if one != other:
                apart = np.mean([np.abs(a - b).mean() for a, b in zip(sets[one], sets[other], strict=True)])
                assert apart > 10, (one, other)
