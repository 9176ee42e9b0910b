"""The colours of the base style: skies, lands and things, how daylight tints them, and how a shade varies."""

import colorsys
import random

Rgb = tuple[int, int, int]


def rgb(text: str) -> Rgb:
    """ "#rrggbb" as three numbers from 0 to 255."""
    return tuple(bytes.fromhex(text.removeprefix("#")))


SKY = {
    "day": ("#3f97dd", "#7cc3f0", "#cdeaf7"),
    "sunset": ("#54427f", "#b9527c", "#f2795a", "#ffc877"),
    "dawn": ("#7f97d8", "#bfb0e2", "#f3bfd0", "#ffe3c4"),
    "night": ("#0a1030", "#16225a", "#33508f"),
    "overcast": ("#76838f", "#98a4ae", "#bcc5ca"),
}
"""Sky -> its colours from the top of the picture to the horizon, at equal distances."""

DAYLIGHT = {
    "day": (1.0, 1.0, 1.0),
    "sunset": (1.0, 0.88, 0.82),
    "dawn": (1.0, 0.94, 0.95),
    "night": (0.66, 0.70, 0.88),
    "overcast": (0.86, 0.89, 0.91),
}
"""Sky -> what it multiplies the red, green and blue of everything below it by."""
THING_LIGHT = 0.75
LAND_LIGHT = 0.5
"""How far things and hills keep their own colour in it, 0 to 1: at night an orange house stays orange."""

THING = {
    "red": "#d8362f",
    "orange": "#f2852a",
    "yellow": "#fbd837",
    "green": "#3c9a4c",
    "blue": "#2f6fdf",
    "purple": "#7d45ad",
    "pink": "#f583b0",
    "white": "#f7f4ec",
}
LAND = {
    "green": "#6fae5c",
    "yellow": "#dcbf52",
    "orange": "#d98a4b",
    "purple": "#8f78b8",
    "blue": "#5488cf",
    "pink": "#d98fae",
    "grey": "#939393",
    "brown": "#94705a",
}
GROUND = {
    "grass": ("#8cc763", "#5da24c"),
    "sand": ("#f2dcae", "#dcb77c"),
    "snow": ("#f5f8fc", "#ccdbec"),
}
"""Ground -> its colours at the horizon and at the lower edge."""
WATER = {
    "day": ("#8fd0ea", "#2f86c0"),
    "sunset": ("#f5a878", "#6d5590"),
    "dawn": ("#e3c3d8", "#7d93c8"),
    "night": ("#3a5798", "#14265c"),
    "overcast": ("#a3b3bc", "#647b8a"),
}
"""Sky -> the water's colours at its far and its near shore. They hold the sky's light already."""
CLOUD = {"day": "#ffffff", "sunset": "#f7a58f", "dawn": "#fdeff0", "night": "#3f548f", "overcast": "#d3d9dd"}
SUN = {"day": "#ffdf4d", "sunset": "#ffe08a", "dawn": "#fff0b0"}
MOON = "#f4f0dc"


def mix(a: Rgb, b: Rgb, share: float) -> Rgb:
    """`share` of the way from a to b."""
    return tuple(round(x + (y - x) * share) for x, y in zip(a, b, strict=True))


def lighter(colour: Rgb, share: float) -> Rgb:
    return mix(colour, (255, 255, 255), share)


def darker(colour: Rgb, share: float) -> Rgb:
    """Towards a deep blue rather than black, as shadows under a sky are."""
    return mix(colour, (24, 20, 56), share)


def lit(colour: Rgb, sky: str, own_light: float = 0) -> Rgb:
    """The colour as it looks under this sky. With some light of its own, 0 to 1, it changes less."""
    factors = (factor + (1 - factor) * own_light for factor in DAYLIGHT[sky])
    return tuple(round(value * factor) for value, factor in zip(colour, factors, strict=True))


def shade(colour: Rgb, rng: random.Random) -> Rgb:
    """A colour near this one that goes by the same name."""
    hue, saturation, value = colorsys.rgb_to_hsv(*(channel / 255 for channel in colour))
    hue = (hue + rng.uniform(-0.012, 0.012)) % 1
    saturation *= rng.uniform(0.9, 1.06)
    value *= rng.uniform(0.94, 1.04)
    return tuple(round(255 * min(channel, 1)) for channel in colorsys.hsv_to_rgb(hue, min(saturation, 1), value))
