"""Reads a caption back: what it says of a scene. It knows the words of `words` and takes phrases in any order."""

import re

from .named import Named, NamedGroup
from .scene import COLOURS, LANDS, PLACES
from .words import COUNTS, NOUNS, SIZES, SKIES, TIMES

BREAKS = re.compile(r"[,.;:]|\b(?:and|with|under|behind|before|by|beside|near)\b")
"""Between two of these stands at most one thing with all that is said of it."""
NUMBERS = {word: count for count, words in COUNTS.items() for word in words} | {"an": 1}
SIZE_WORDS = {word: size for size, words in SIZES.items() for word in words}
KINDS = {names[-1].split()[-1] + s: kind for kind, names in NOUNS.items() for s in ("", "s")}
KINDS |= {name + s: kind for kind, names in NOUNS.items() for name in names for s in ("", "s")}
PLACE_WORDS = {place: place for place in PLACES} | {"center": "middle"}
GROUND_WORDS = {
    "grass": "grass", "grassy": "grass", "meadow": "grass",
    "sand": "sand", "sandy": "sand",
    "snow": "snow", "snowy": "snow",
}  # fmt: skip
SKY_WORDS = {
    "blue": "day", "bright": "day", "daytime": "day",
    "sunset": "sunset", "evening": "sunset",
    "dawn": "dawn", "morning": "dawn",
    "night": "night",
    "overcast": "overcast", "grey": "overcast",
}  # fmt: skip
SKY_HEADS = {phrase.split()[-1] for phrases in (*SKIES.values(), *TIMES.values()) for phrase in phrases}


def read(text: str) -> Named:
    """What a caption names. What it does not name, or names in other words than ours, is left open."""
    found: dict[str, object] = {}
    groups = []
    for phrase in BREAKS.split(text.lower()):
        words = re.findall(r"[a-z]+", phrase)
        kind = _first(words, KINDS)
        if kind:
            groups.append(_read_group(kind, words))
        else:
            found |= _read_backdrop(words)
    return Named(**found, groups=tuple(groups))


def _first(words: list[str], meanings: dict[str, object]) -> object | None:
    """The meaning of the first word that has one."""
    return next((meanings[word] for word in words if word in meanings), None)


def _read_group(kind: str, words: list[str]) -> NamedGroup:
    count = _first(words, NUMBERS)
    return NamedGroup(
        kind=kind,
        colour=_first(words, {colour: colour for colour in COLOURS}),
        size="small" if count in (2, 3) else _first(words, SIZE_WORDS),
        place=_first(words, PLACE_WORDS),
        count=count,
    )


def _read_backdrop(words: list[str]) -> dict[str, object]:
    """What a phrase without a group tells; the more telling words are looked at first."""
    place = _first(words, PLACE_WORDS)
    for light in ("sun", "moon"):
        if light in words:
            return {"light": light} | ({"light_place": place} if place else {})
    for land, colours in LANDS.items():
        if land in words:
            colour = _first(words, {colour: colour for colour in colours})
            return {"land": land} | ({"land_colour": colour} if colour else {})
    for water in ("lake", "sea", "river"):
        if water in words:
            return {"water": water}
    if "clouds" in words:
        return {"clouds": True}
    ground, sky = _first(words, GROUND_WORDS), _first(words, SKY_WORDS)
    if ground:
        return {"ground": ground}
    if sky and SKY_HEADS & set(words):
        return {"sky": sky} | ({"clouds": False} if "clear" in words else {})
    return {}
