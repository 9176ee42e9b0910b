"""Questions about a scene, with short answers."""

import random
from collections.abc import Iterator
from itertools import chain

from .scene import HIGH_KINDS, KINDS, WATERS, Group, Scene
from .words import NOUNS, plural

Pair = tuple[str, str]
NUMBER_WORDS = {0: "zero", 1: "one", 2: "two", 3: "three"}


def questions(scene: Scene, rng: random.Random) -> list[Pair]:
    """Every question of ours that this scene answers with one word, in random order and wording."""
    of_groups = chain.from_iterable(_about_group(scene, group, rng) for group in scene.groups)
    pairs = [*_about_sky(scene, rng), *_about_land(scene, rng), *of_groups, *_about_presence(scene, rng)]
    rng.shuffle(pairs)
    return pairs


def _about_sky(scene: Scene, rng: random.Random) -> Iterator[Pair]:
    yield rng.choice(("what kind of sky is it?", "what is the sky like?")), scene.sky
    yield "is there a sun, a moon or neither?", scene.light or "neither"
    if scene.light:
        yield f"where is the {scene.light}?", scene.light_place
    if scene.sky != "overcast":
        yield "are there clouds?", "yes" if scene.clouds else "no"


def _about_land(scene: Scene, rng: random.Random) -> Iterator[Pair]:
    yield rng.choice(("what is on the ground?", "what is the ground made of?")), scene.ground
    if scene.land:
        yield f"what colour are the {scene.land}?", scene.land_colour
    for land in ("hills", "mountains"):
        yield f"are there {land}?", "yes" if scene.land == land else "no"
    water = rng.choice(WATERS)
    yield f"is there a {water}?", "yes" if scene.water == water else "no"


def _about_group(scene: Scene, group: Group, rng: random.Random) -> Iterator[Pair]:
    """Where a kind comes in two groups they are told apart by place, or by colour where the place is asked for."""
    rivals = [other for other in scene.groups if other.kind == group.kind]
    noun = plural(NOUNS[group.kind][0], group.count)
    be = "is" if group.count == 1 else "are"
    apart = "" if len(rivals) == 1 else f" {'in' if group.place == 'middle' else 'on'} the {group.place}"
    colour = "" if len(rivals) == 1 else f"{group.colour} "
    if len({other.place for other in rivals}) == len(rivals):
        yield f"what colour {be} the {noun}{apart}?", group.colour
        if group.count == 1:
            yield f"is the {noun}{apart} {rng.choice(('small or large', 'large or small'))}?", group.size
    yield f"where {be} the {colour}{noun}?", group.place
    yield f"how many {colour}{plural(NOUNS[group.kind][0], 2)} are there?", NUMBER_WORDS[group.count]


def _about_presence(scene: Scene, rng: random.Random) -> Iterator[Pair]:
    """One question for a kind that is there, one for a kind that is not, and their number where there are none."""
    here = {group.kind for group in scene.groups}
    absent = [kind for kind in KINDS if kind not in here]
    for kind, answer in ((rng.choice(sorted(here)), "yes"), (rng.choice(absent), "no")):
        where = " in the sky" if kind in HIGH_KINDS else ""
        yield f"{rng.choice(('is there a', 'can you see a'))} {NOUNS[kind][0]}{where}?", answer
    yield f"how many {plural(NOUNS[rng.choice(absent)][0], 2)} are there?", NUMBER_WORDS[0]
