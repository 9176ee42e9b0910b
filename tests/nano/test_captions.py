"""Captions, questions and edits: true of their scene, and varied."""

import random
import re
from dataclasses import replace

from tools.nano.captions import caption, describe_full, sample_pair
from tools.nano.edits import edits
from tools.nano.named import Named, NamedGroup, agreement
from tools.nano.questions import questions
from tools.nano.reading import read
from tools.nano.scene import Group, Scene, conflict, random_scene

TWO_TREES = Scene(
    1, "night", False, "moon", "left", "hills", "blue", "snow", "lake",
    (Group("tree", "red", "large", "left", 1), Group("tree", "pink", "small", "right", 2)),
)  # fmt: skip


def words(text: str) -> set[str]:
    return set(re.findall("[a-z]+", text))


def test_captions_name_only_what_is_there():
    for seed in range(1500):
        scene, text = sample_pair(seed)
        wrong = [name for name, holds in agreement(read(text), scene) if not holds]
        assert wrong == [], text


def test_captions_name_all_or_most():
    shares = []
    for seed in range(500):
        scene, text = sample_pair(seed)
        told = agreement(Named.of(scene), read(text))
        shares.append(sum(holds for _, holds in told) / len(told))
    assert sum(shares) / len(shares) > 0.85
    assert sum(share == 1 for share in shares) > 150


def test_the_full_description_names_everything():
    for seed in range(300):
        scene = random_scene(random.Random(seed))
        assert read(describe_full(scene)) == Named.of(scene)
    assert describe_full(TWO_TREES) == (
        "a clear night sky, the moon on the left, blue hills, a lake, snow, "
        "a large red tree on the left, two small pink trees on the right"
    )


def test_a_scene_has_many_captions_and_few_words():
    scene = random_scene(random.Random(0))
    assert len({caption(scene, random.Random(seed)) for seed in range(100)}) > 90
    vocabulary = set()
    for seed in range(1000):
        scene, text = sample_pair(seed)
        rng = random.Random(seed)
        told = [text, edits(scene, rng)[0], *(part for pair in questions(scene, rng) for part in pair)]
        vocabulary |= set().union(*map(words, told))
    assert 100 < len(vocabulary) < 200


def test_reading_leaves_open_what_is_not_said():
    assert read("three birds, a green house on the right") == Named(
        groups=(NamedGroup("bird", size="small", count=3), NamedGroup("house", "green", place="right", count=1))
    )
    assert read("a grey sky") == Named(sky="overcast")
    assert read("purple prose about nothing") == Named()


def test_agreement_compares_each_group_with_its_own():
    named = Named(
        sky="night", groups=(NamedGroup("tree", colour="pink", place="right"), NamedGroup("tree", size="large"))
    )
    assert all(holds for _, holds in agreement(named, TWO_TREES))
    assert dict(agreement(Named(groups=(NamedGroup("boat", colour="red"),)), TWO_TREES)) == {
        "boat kind": False,
        "boat colour": False,
    }
    assert dict(agreement(Named(water="sea", groups=(NamedGroup("tree", count=3),)), TWO_TREES)) == {
        "water": False,
        "tree kind": True,
        "tree count": False,
    }


def test_answers_are_right():
    told = {question: answer for seed in range(20) for question, answer in questions(TWO_TREES, random.Random(seed))}
    assert told["what colour is the tree on the left?"] == "red"
    assert told["where are the pink trees?"] == "right"
    assert told["how many pink trees are there?"] == "two"
    assert told["is there a tree?"] == "yes"
    assert told["is there a boat?"] == "no"
    assert told["is there a lake?"] == "yes"
    assert told["how many houses are there?"] == "zero"
    assert told["is there a sun, a moon or neither?"] == "moon"
    assert told["what colour are the hills?"] == "blue"
    assert "what colour are the trees?" not in told


def test_edits_do_one_thing():
    for seed in range(600):
        scene = random_scene(random.Random(seed))
        instruction, after = edits(scene, random.Random(seed))
        assert conflict(after) is None
        assert after.seed == scene.seed
        before, now = set(scene.groups), set(after.groups)
        backdrop_kept = replace(after, groups=()) == replace(scene, groups=())
        if instruction.startswith(("add", "put")) and not backdrop_kept:
            assert before == now
        elif instruction.startswith(("add", "put")):
            (added,) = now - before
            assert before < now
            assert all(holds for _, holds in agreement(read(instruction), replace(scene, groups=(added,))))
        elif backdrop_kept:
            assert len(before - now) == 1
            assert len(now - before) <= 1
        else:
            assert before == now
