"""Edits of a scene: an instruction, and the scene that it leads to, in which all else is as it was."""

import random
from dataclasses import replace

from .captions import thing_phrase
from .named import NamedGroup
from .scene import COLOURS, LANDS, LIGHTS, PLACES, SKIES, Group, Scene, conflict, random_group
from .words import AT, NOUNS, plural

Edit = tuple[str, Scene]
SKY_CHANGES = {
    "day": ("make it daytime", "change the sky to a blue sky"),
    "sunset": ("make it sunset", "change the sky to a sunset sky"),
    "dawn": ("make it dawn", "change the sky to a dawn sky"),
    "night": ("make it night", "change the sky to a night sky"),
    "overcast": ("make it overcast", "change the sky to an overcast sky"),
}


def edits(scene: Scene, rng: random.Random) -> Edit:
    """One edit: a colour changed, a thing added or removed, the sky, the hills' colour or the clouds changed."""
    kinds = (_recolour, _recolour, _recolour, _add, _add, _add, _remove, _remove, _sky, _sky, _land, _clouds, _light)
    while True:
        edit = rng.choice(kinds)(scene, rng)
        if edit and conflict(edit[1]) is None:
            return edit


def _recolour(scene: Scene, rng: random.Random) -> Edit:
    group = rng.choice(scene.groups)
    colour = rng.choice([other for other in COLOURS if other != group.colour])
    after = scene.without(group).with_group(replace(group, colour=colour))
    the = _the(scene, group)
    return rng.choice((f"make {the} {colour}", f"paint {the} {colour}", f"change {the} to {colour}")), after


def _add(scene: Scene, rng: random.Random) -> Edit | None:
    if len(scene.groups) == 4:
        return None
    group = random_group(rng)
    thing = thing_phrase(NamedGroup(group.kind, group.colour, group.size, None, group.count), rng)
    return f"{rng.choice(('add', 'put'))} {thing} {rng.choice(AT[group.place])}", scene.with_group(group)


def _remove(scene: Scene, rng: random.Random) -> Edit | None:
    if len(scene.groups) == 1:
        return None
    group = rng.choice(scene.groups)
    return f"{rng.choice(('remove', 'take away', 'erase'))} {_the(scene, group)}", scene.without(group)


def _the(scene: Scene, group: Group) -> str:
    """The group as it can be told from the others: by its colour too where there are more of its kind."""
    alone = sum(other.kind == group.kind for other in scene.groups) == 1
    noun = plural(NOUNS[group.kind][0], group.count)
    return f"the {noun}" if alone else f"the {group.colour} {noun}"


def _sky(scene: Scene, rng: random.Random) -> Edit:
    """Another sky. The sun becomes a moon at night and a moon the sun by day, in their place; clouds hide both."""
    sky = rng.choice([other for other in SKIES if other != scene.sky])
    light, place = scene.light, scene.light_place
    if light not in LIGHTS[sky]:
        light = LIGHTS[sky][0]
    if light is None:
        place = None
    clouds = scene.clouds and sky != "overcast"
    return rng.choice(SKY_CHANGES[sky]), replace(scene, sky=sky, light=light, light_place=place, clouds=clouds)


def _light(scene: Scene, rng: random.Random) -> Edit | None:
    """Adds a sun or moon, or takes it away; an overcast sky has neither."""
    if scene.light:
        return f"remove the {scene.light}", replace(scene, light=None, light_place=None)
    light, place = rng.choice(LIGHTS[scene.sky]), rng.choice(PLACES)
    if light is None:
        return None
    return f"add a {light} {rng.choice(AT[place])}", replace(scene, light=light, light_place=place)


def _land(scene: Scene, rng: random.Random) -> Edit | None:
    if scene.land is None:
        return None
    colour = rng.choice([other for other in LANDS[scene.land] if other != scene.land_colour])
    the = f"the {scene.land}"
    return rng.choice((f"make {the} {colour}", f"paint {the} {colour}")), replace(scene, land_colour=colour)


def _clouds(scene: Scene, rng: random.Random) -> Edit | None:
    if scene.sky == "overcast":
        return None
    removing, adding = ("remove the clouds", "take away the clouds"), ("add clouds", "add a few clouds")
    return rng.choice(removing if scene.clouds else adding), replace(scene, clouds=not scene.clouds)
