"""Captions of a scene in varied English, and the one that tells all. Only what is there is named."""

import random

from .named import Named, NamedGroup
from .scene import Scene, random_scene
from .words import AT, COUNTS, GROUNDS, LANDS, LIGHTS, NOUNS, SIZES, SKIES, TIMES, WATERS, plural, with_article

OMIT = {
    "clouds": 0.35,
    "light": 0.1,
    "light_place": 0.15,
    "land": 0.1,
    "land_colour": 0.1,
    "ground": 0.3,
    "water": 0.05,
}
"""How often a caption that leaves something out leaves this out."""
OMIT_OF_GROUP = {"size": 0.4, "place": 0.15, "colour": 0.05}
STANDING = ("", "", "", "standing ")
FLYING = ("", "", "flying ", "in the sky ")


def sample_pair(seed: int) -> tuple[Scene, str]:
    """A scene and a caption of it. Each seed gives another pair, always the same one."""
    rng = random.Random(f"pair/{seed}")
    scene = random_scene(rng)
    return scene, caption(scene, rng)


def caption(scene: Scene, rng: random.Random) -> str:
    """One of the many captions of a scene. Half of them name all there is, the others most of it."""
    named = Named.of(scene) if rng.random() < 0.5 else leave_out(Named.of(scene), rng)
    return rng.choice((_listed, _listed, _sentence, _sky_first))(named, rng)


def leave_out(named: Named, rng: random.Random) -> Named:
    """The same with some attributes left open."""
    kept = _thinned(named.backdrop(), OMIT, rng)
    if "light" not in kept:
        kept.pop("light_place", None)
    if "land" not in kept:
        kept.pop("land_colour", None)
    groups = tuple(NamedGroup(**_thinned(group.named(), OMIT_OF_GROUP, rng)) for group in named.groups)
    return Named(**kept, groups=groups)


def _thinned(attributes: dict[str, object], omit: dict[str, float], rng: random.Random) -> dict[str, object]:
    return {name: value for name, value in attributes.items() if rng.random() >= omit.get(name, 0)}


def describe_full(scene: Scene) -> str:
    """The caption that names every attribute, in one order and with the first word for each."""
    named = Named.of(scene)
    parts = [sky_phrase(named), light_phrase(named), land_phrase(named), named.water and WATERS[named.water][0]]
    parts += [GROUNDS[named.ground][0], *(group_phrase(group) for group in named.groups)]
    return ", ".join(part for part in parts if part)


def _pick(choices: tuple[str, ...], rng: random.Random | None) -> str:
    """Any of them, or the first if there is nothing to choose with."""
    return choices[0] if rng is None else rng.choice(choices)


def sky_phrase(named: Named, rng: random.Random | None = None) -> str:
    """Such as "a clear blue sky" or "a night sky with clouds"."""
    sky = _pick(SKIES[named.sky], rng)
    if named.clouds is None:
        return with_article(sky)
    if named.clouds:
        return with_article(sky) + _pick((" with clouds", " with a few clouds", " with some clouds"), rng)
    return with_article(f"clear {sky}")


def light_phrase(named: Named, rng: random.Random | None = None) -> str:
    """Such as "the moon on the left"; empty if there is neither sun nor moon."""
    if named.light is None:
        return ""
    light = _pick(LIGHTS[named.light], rng)
    return f"{light} {_pick(AT[named.light_place], rng)}" if named.light_place else light


def land_phrase(named: Named, rng: random.Random | None = None) -> str:
    if named.land is None:
        return ""
    land = _pick(LANDS[named.land], rng)
    if named.land_colour is None:
        return land
    *adjective, noun = land.split()
    return " ".join((*adjective, named.land_colour, noun))


def group_phrase(group: NamedGroup, rng: random.Random | None = None) -> str:
    """Such as "two small red houses on the left" or "on the right stands a tree"."""
    thing = thing_phrase(group, rng)
    if group.place is None:
        return thing
    place = _pick(AT[group.place], rng)
    if rng is None:
        return f"{thing} {place}"
    if rng.random() < 0.2:
        return f"{place} {_pick(('there is', 'we see'), rng) if group.count == 1 else 'we see'} {thing}"
    return f"{thing} {_pick(FLYING if group.kind in ('balloon', 'bird') else STANDING, rng)}{place}"


def thing_phrase(group: NamedGroup, rng: random.Random | None = None) -> str:
    """The group without its place: "two small red houses". More than one is small, and need not be said to be."""
    words = [_pick(SIZES[group.size], rng)] if group.size else []
    if rng is not None and group.count != 1 and rng.random() < 0.6:
        words = []
    words += [group.colour] if group.colour else []
    words.append(plural(_pick(NOUNS[group.kind], rng), group.count or 1))
    phrase = " ".join(words)
    number = _pick(COUNTS[group.count or 1], rng)
    return with_article(phrase) if number == "a" else f"{number} {phrase}"


def _groups(named: Named, rng: random.Random) -> list[str]:
    groups = list(named.groups)
    rng.shuffle(groups)
    return [group_phrase(group, rng) for group in groups]


def _listed(named: Named, rng: random.Random) -> str:
    """Phrases with commas between, the groups first or last."""
    backdrop = [
        sky_phrase(named, rng) if rng.random() < 0.8 or named.clouds is not None else _pick(TIMES[named.sky], rng),
        light_phrase(named, rng),
        land_phrase(named, rng),
        _pick(GROUNDS[named.ground], rng) if named.ground else "",
        _pick(WATERS[named.water], rng) if named.water else "",
    ]
    rng.shuffle(backdrop)
    parts = _groups(named, rng) + backdrop if rng.random() < 0.5 else backdrop + _groups(named, rng)
    return ", ".join(part for part in parts if part)


def _sentence(named: Named, rng: random.Random) -> str:
    """Groups, where they are, what is behind them, and the sky: "a tree in the snow under a night sky"."""
    text = _joined(_groups(named, rng))
    if named.ground:
        text += f", on {_pick(GROUNDS[named.ground], rng)}"
    if named.water:
        text += f", {_pick(('by', 'beside', 'near'), rng)} {_pick(WATERS[named.water], rng)}"
    if named.land:
        text += f", {_pick(('with', 'before'), rng)} {land_phrase(named, rng)}"
    text += f", under {sky_phrase(named, rng)}"
    if named.light:
        text += f" {'and' if named.clouds else 'with'} {light_phrase(named, rng)}"
    return text


def _sky_first(named: Named, rng: random.Random) -> str:
    """ "under a night sky with the moon on the left, two houses and a tree, with green hills behind"."""
    text = f"under {sky_phrase(named, rng)}"
    if named.light:
        text += f", {light_phrase(named, rng)}"
    text += f", {_joined(_groups(named, rng))}"
    if named.water or named.ground:
        places = [_pick(WATERS[named.water], rng)] if named.water else []
        places += [_pick(GROUNDS[named.ground], rng)] if named.ground else []
        text += f", {' and '.join(places)}"
    if named.land:
        text += f", with {land_phrase(named, rng)} {_pick(('behind', 'in the distance'), rng)}"
    return text


def _joined(phrases: list[str]) -> str:
    """ "x", "x and y", "x, y and z"."""
    return " and ".join(filter(None, (", ".join(phrases[:-1]), phrases[-1])))
