"""The detector: what it says of pictures whose scene is known, whole and damaged, and in the styles."""

import random

import numpy as np
import pytest
import torch

from tools.nano.damage import damaged
from tools.nano.detector import HEADS, UNKNOWN, Detector, load_detector, see, split, targets, to_tensor
from tools.nano.measure_detector import accuracies, false_alarms, false_statements, held_out_scenes, measure
from tools.nano.named import Named, agreement
from tools.nano.render import render
from tools.nano.scene import Group, Scene
from tools.nano.styles import STYLES

SCENE = Scene(
    11, "sunset", True, "sun", "left", "mountains", "brown", "sand", "lake",
    (Group("balloon", "blue", "large", "right", 1), Group("boat", "red", "small", "middle", 2)),
)  # fmt: skip


@pytest.fixture(scope="module")
def detector() -> Detector:
    return load_detector()


def test_it_reads_a_scene(detector):
    (found,) = see(detector, render(SCENE)[None])
    assert Named.of(found) == Named.of(SCENE)


def test_it_reads_a_scene_of_another_size(detector):
    (found,) = see(detector, render(SCENE, 256)[None])
    assert Named.of(found) == Named.of(SCENE)


def test_it_sees_what_was_taken_away(detector):
    (found,) = see(detector, render(SCENE.without(SCENE.groups[1]))[None])
    assert dict(agreement(Named.of(SCENE), found))["boat kind"] is False
    assert [group.kind for group in found.groups] == ["balloon"]


@pytest.mark.parametrize("harm", [False, True])
def test_it_is_right_on_held_out_scenes(detector, harm):
    found = measure(detector, held_out_scenes(150), "base", harm)
    assert min(found["accuracy"].values()) >= (0.97 if harm else 0.99)
    assert found["false alarms"]["groups"] <= 0.005
    assert found["false statements"] <= 0.005


@pytest.mark.parametrize("style", STYLES)
def test_it_is_right_in_the_styles(detector, style):
    assert measure(detector, held_out_scenes(30), style, harm=False)["accuracy"]["all"] >= 0.95


def test_targets_are_what_is_decoded():
    """Outputs that say exactly the targets come back as the scene."""
    wanted, outputs = targets(SCENE), {}
    for head, attributes in HEADS.items():
        index = wanted[head].clamp(min=0)
        parts = [torch.nn.functional.one_hot(index[..., at], len(v)) for at, v in enumerate(attributes.values())]
        outputs[head] = torch.cat(parts, dim=-1).float()[None]
    (found,) = see(lambda pictures: outputs, render(SCENE)[None])
    assert Named.of(found) == Named.of(SCENE)
    assert wanted["low"][0].tolist() == [0, UNKNOWN, UNKNOWN, UNKNOWN]
    assert split("backdrop", outputs["backdrop"])["sky"].argmax().item() == 1


def test_measures_tell_errors():
    blind = Scene(0, "sunset", True, None, None, None, None, "sand", "lake", ())
    assert accuracies([SCENE], [SCENE])["all"] == 1
    found = accuracies([SCENE], [blind])
    assert (found["sky"], found["light"], found["kind"]) == (1, 0, 0)
    assert false_alarms([SCENE, blind], [SCENE, SCENE]) == {"groups": 2 / 10, "sun, moon, land, water": 1.0}
    assert false_statements([SCENE, blind], [SCENE, blind]) == 0
    assert false_statements([blind, SCENE], [SCENE, SCENE]) == 1


def test_damage_changes_pixels_and_not_places():
    picture = render(SCENE)
    hurt = [damaged(picture, random.Random(seed)).astype(float) for seed in range(20)]
    away = [np.abs(other - picture).mean() for other in hurt]
    assert 4 < np.mean(away) < 20
    assert (damaged(picture, random.Random(3)) == hurt[3]).all()


def test_pictures_become_tensors_of_one_size():
    assert to_tensor(np.full((2, 256, 256, 3), 255, np.uint8)).shape == (2, 3, 192, 192)
    assert to_tensor(np.full((1, 192, 192, 3), 255, np.uint8)).max() == 1
