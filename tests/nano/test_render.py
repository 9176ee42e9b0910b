"""The base style: deterministic, of any size, and local: a change of one element leaves the others as they were."""

import random
from dataclasses import replace

import numpy as np

from tools.nano.palette import THING, rgb
from tools.nano.render import render
from tools.nano.scene import COLOURS, Group, Scene, random_scene

HOUSE = Group("house", "red", "large", "right", 1)
TREE = Group("tree", "green", "small", "left", 1)
SCENE = Scene(7, "day", True, "sun", "middle", "hills", "purple", "grass", None, (TREE, HOUSE))


def changed_columns(a: Scene, b: Scene) -> tuple[float, float]:
    """The leftmost and rightmost column in which two pictures differ, as parts of the width."""
    columns = np.flatnonzero((render(a) != render(b)).any(axis=(0, 2)))
    return columns[0] / 192, columns[-1] / 192


def test_render_is_a_function_of_the_scene():
    scene = random_scene(random.Random(3))
    assert (render(scene) == render(replace(scene))).all()
    assert (render(scene) != render(replace(scene, seed=scene.seed + 1))).mean() > 0.3


def test_render_gives_the_size_asked_for():
    small, large = render(SCENE, 96), render(SCENE, 256)
    assert small.shape == (96, 96, 3)
    assert large.shape == (256, 256, 3)
    assert large.dtype == np.uint8
    halved = render(SCENE).reshape(96, 2, 96, 2, 3).mean(axis=(1, 3))
    assert np.abs(halved - small).mean() < 4


def test_only_what_is_changed_changes():
    left, right = changed_columns(SCENE, SCENE.without(HOUSE))
    assert 0.65 < left < right < 1
    recoloured = SCENE.without(TREE).with_group(replace(TREE, colour="pink"))
    left, right = changed_columns(SCENE, recoloured)
    assert 0.05 < left < right < 0.3


def test_things_have_their_colour():
    """A circle's middle is near its colour's reference and nearest to it among all, under every sky."""
    for sky in ("day", "sunset", "dawn", "night", "overcast"):
        for colour in COLOURS:
            scene = replace(SCENE, sky=sky, light=None, light_place=None, clouds=False)
            scene = replace(scene, groups=(Group("circle", colour, "large", "middle", 1),))
            patch = render(scene)[158:162, 94:98].reshape(-1, 3).mean(axis=0)
            distances = {name: np.linalg.norm(patch - rgb(value)) for name, value in THING.items()}
            assert min(distances, key=distances.get) == colour, (sky, colour, patch)
