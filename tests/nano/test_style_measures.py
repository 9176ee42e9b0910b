"""The measures of a style LoRA, on pictures that were drawn to be known: all of the style, none of it, and copies."""

import random

import numpy as np
import pytest
from PIL import Image

from tools.nano import style_measures
from tools.nano.captions import sample_pair
from tools.nano.damage import damaged
from tools.nano.evaluate import HELD_OUT
from tools.nano.style_measures import Drawn, draw_all, held_out_captions, measure, nearest, nearest_files, novelty
from tools.nano.style_run import set_pairs
from tools.nano.styles import render_styled

COUNT = 6


@pytest.fixture(scope="module")
def training() -> list[np.ndarray]:
    return [render_styled(scene, "watercolour") for scene, _ in set_pairs(seed=0)]


def drawn_as(style: str) -> list[np.ndarray]:
    return [render_styled(sample_pair(HELD_OUT + number)[0], style) for number in range(COUNT)]


def test_a_perfect_lora_and_none_at_all(training):
    base, styled = drawn_as("base"), drawn_as("watercolour")
    perfect = measure(Drawn(base, styled, base), held_out_captions(COUNT), "watercolour", training)
    assert perfect.style > 0.85
    assert perfect.adherence > 0.95
    assert (perfect.leakage, perfect.novelty) == (0, 1)
    nothing = measure(Drawn(base, base, styled), held_out_captions(COUNT), "watercolour", training)
    assert nothing.style == 0
    assert nothing.leakage > 0.85


def test_another_scene_does_not_adhere(training):
    base, styled = drawn_as("base"), drawn_as("watercolour")
    found = measure(Drawn(base, styled[1:] + styled[:1], base), held_out_captions(COUNT), "watercolour", training)
    assert found.adherence < 0.6


def test_copies_are_not_new(training):
    copies = [damaged(picture, random.Random(at)) for at, picture in enumerate(training[:COUNT])]
    assert novelty(training[:COUNT], training, "watercolour") == 0
    assert novelty(copies, training, "watercolour") < 0.5
    assert nearest(copies, training)[0] == list(range(COUNT))


def test_nearest_files(training, tmp_path):
    paths = [tmp_path / f"{number}.png" for number in range(3)]
    for path, picture in zip(paths, training, strict=False):
        Image.fromarray(picture).save(path)
    assert nearest_files([paths[2], paths[0]], paths) == [paths[2], paths[0]]


def test_what_is_drawn_with_which_loras_and_prompts(monkeypatch):
    class Session:
        def use(self, adapters):
            self.adapters = list(adapters)

    def draw(session, captions, steps, cfg):
        return [(caption, *session.adapters, steps, cfg) for caption in captions]

    monkeypatch.setattr(style_measures, "draw", draw)
    found = draw_all(Session(), ["style"], "ink", ["a hut"], 8, 1.0, fast=["8-step"])
    assert found.base == [("a hut", "8-step", 8, 1.0)]
    assert found.styled == [("ink, a hut", "8-step", "style", 8, 1.0)]
    assert found.untriggered == [("a hut", "8-step", "style", 8, 1.0)]
