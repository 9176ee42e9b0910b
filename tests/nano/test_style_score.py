"""The style score: every picture is nearest to its own style, and damage or half a style do not pass for one."""

import random

import numpy as np
import pytest

from tools.nano.damage import damaged
from tools.nano.style_score import NAMES, confusion, features, sample_scenes, style_space
from tools.nano.styles import STYLES, render_styled

SCENES = sample_scenes("style test", 10)


@pytest.fixture(scope="module")
def base() -> list[np.ndarray]:
    return [render_styled(scene, "base") for scene in SCENES]


def test_single_pictures_are_nearest_to_their_own_style():
    table = confusion(style_space(), SCENES, per_set=1)
    assert table.shape == (6, 6)
    assert (table.sum(axis=1) == 10).all()
    assert np.trace(table) == table.sum()


def test_styles_are_several_spreads_apart():
    centres = style_space().centres
    assert list(centres) == list(NAMES)
    apart = [np.linalg.norm(centres[a] - centres[b]) for a in NAMES for b in NAMES if a != b]
    assert min(apart) > 4


def test_progress_goes_from_none_to_all(base):
    space = style_space()
    for style in STYLES:
        styled = [render_styled(scene, style) for scene in SCENES]
        halfway = [((a.astype(float) + b) / 2).astype(np.uint8) for a, b in zip(base, styled, strict=True)]
        assert space.progress(base, base, style) == 0
        assert space.progress(styled, base, style) > 0.9
        assert 0.15 < space.progress(halfway, base, style) < 0.85


def test_damage_is_not_taken_for_a_style(base):
    hurt = [damaged(picture, random.Random(at)) for at, picture in enumerate(base)]
    for style in STYLES:
        assert style_space().progress(hurt, base, style) < 0.25, style
    assert style_space().nearest(hurt) == "base"


def test_features_do_not_depend_on_size_much():
    small, large = (features(render_styled(SCENES[0], "base", size)) for size in (192, 384))
    other = features(render_styled(SCENES[0], "ink"))
    assert small.shape == (76,)
    assert np.linalg.norm(small - large) < 0.35 * np.linalg.norm(small - other)
