"""Scenes: all that are drawn at random can be drawn, and all values come up about as often as they should."""

import random
from collections import Counter
from dataclasses import replace

import pytest

from tools.nano.scene import COLOURS, KINDS, PLACES, SKIES, Group, Scene, conflict, random_scene

PLAIN = Scene(1, "day", False, "sun", "left", None, None, "grass", None, (Group("house", "red", "large", "right", 1),))


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [random_scene(random.Random(seed)) for seed in range(4000)]


def test_random_scenes_have_no_conflict(scenes):
    assert [conflict(scene) for scene in scenes if conflict(scene)] == []


def test_every_value_comes_up(scenes):
    groups = [group for scene in scenes for group in scene.groups]
    assert Counter(len(scene.groups) for scene in scenes).keys() == {1, 2, 3}
    assert min(Counter(scene.sky for scene in scenes)[sky] for sky in SKIES) > 0.17 * len(scenes)
    for attribute, values, least in (("kind", KINDS, 0.02), ("colour", COLOURS, 0.07), ("place", PLACES, 0.3)):
        shares = Counter(getattr(group, attribute) for group in groups)
        assert min(shares[value] for value in values) > least * len(groups), attribute
    assert 0.2 < sum(group.size == "large" for group in groups) / len(groups) < 0.35
    assert Counter(group.count for group in groups).keys() == {1, 2, 3}


def test_the_same_seed_gives_the_same_scene():
    assert random_scene(random.Random(5)) == random_scene(random.Random(5))
    assert random_scene(random.Random(5)) != random_scene(random.Random(6))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"light": "moon"}, "no moon at day"),
        ({"light": None}, "a sun or moon has a place, and nothing else has"),
        ({"groups": (Group("bird", "red", "small", "left", 1),)}, "two things at the left"),
        ({"groups": (Group("boat", "red", "small", "left", 1),)}, "a boat needs water"),
        ({"groups": (Group("tree", "red", "large", "left", 2),)}, "large things come alone"),
        ({"ground": "snow", "groups": (Group("tree", "white", "small", "left", 2),)}, "white on white"),
        ({"water": "river", "groups": (Group("tree", "red", "small", "middle", 1),)}, "the river runs in the middle"),
        ({"land": "hills", "land_colour": "grey"}, "no grey hills"),
    ],
)
def test_conflict_says_what_does_not_fit(change, reason):
    assert conflict(PLAIN) is None
    assert conflict(replace(PLAIN, **change)) == reason
