"""What a scene is: a sky, a land and one to three groups of things, and which of these may stand together.

A picture is divided into three places (left, middle, right) in two layers: the sky, where balloons and birds are and
the sun or moon, and the ground below, with all else. Each place of a layer holds at most one of them, so nothing is
hidden. `seed` decides all that no caption tells (exact positions, shades, the outline of the hills), for each element
from a stream of its own: changing or removing one leaves all the others as they are.
"""

import random
from dataclasses import dataclass, replace

SKIES = ("day", "sunset", "dawn", "night", "overcast")
PLACES = ("left", "middle", "right")
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "white")
SIZES = ("small", "large")
GROUNDS = ("grass", "sand", "snow")
WATERS = ("lake", "sea", "river")
LANDS = {
    "hills": ("green", "yellow", "orange", "purple", "blue", "pink"),
    "mountains": ("grey", "blue", "purple", "brown"),
}
"""What may rise at the horizon -> the colours that it comes in."""
SHAPES = ("circle", "square", "triangle", "heart")
HIGH_KINDS = ("balloon", "bird")
LOW_KINDS = ("house", "tree", "flower", "boat", *SHAPES)
KINDS = HIGH_KINDS + LOW_KINDS
MAX_COUNT = 3

LIGHTS = {
    "day": ("sun", "sun", "sun", None),
    "sunset": ("sun", "sun", "moon", None),
    "dawn": ("sun", "moon", None),
    "night": ("moon", "moon", "moon", None),
    "overcast": (None,),
}
"""Sky -> what may shine in it, as often as it is named."""


@dataclass(frozen=True)
class Group:
    """One to three things of a kind. Only a single thing may be large."""

    kind: str
    colour: str
    size: str
    place: str
    count: int

    @property
    def high(self) -> bool:
        """Whether it is in the sky."""
        return self.kind in HIGH_KINDS


@dataclass(frozen=True)
class Scene:
    """All that a caption may tell of a picture, and the seed of what it does not tell."""

    seed: int
    sky: str
    clouds: bool
    light: str | None
    """ "sun", "moon" or nothing."""
    light_place: str | None
    land: str | None
    """ "hills", "mountains" or nothing."""
    land_colour: str | None
    ground: str
    water: str | None
    groups: tuple[Group, ...]

    def jitter(self, *element: object) -> random.Random:
        """The random stream of one element, such as "hills" or a group's kind and place."""
        return random.Random("/".join(map(str, (self.seed, *element))))

    def without(self, group: Group) -> "Scene":
        return replace(self, groups=tuple(other for other in self.groups if other != group))

    def with_group(self, group: Group) -> "Scene":
        """With one more group; they stand in the order of their places, the sky first."""
        ordered = sorted((*self.groups, group), key=lambda g: (not g.high, PLACES.index(g.place)))
        return replace(self, groups=tuple(ordered))


def conflict(scene: Scene) -> str | None:
    """Why this scene cannot be drawn so that all of it is seen, or None if it can."""
    if scene.light not in LIGHTS[scene.sky]:
        return f"no {scene.light or 'empty sky'} at {scene.sky}"
    if (scene.light is None) != (scene.light_place is None):
        return "a sun or moon has a place, and nothing else has"
    if scene.sky == "overcast" and scene.clouds:
        return "an overcast sky is one cloud"
    if (scene.land is None) != (scene.land_colour is None) or (
        scene.land is not None and scene.land_colour not in LANDS[scene.land]
    ):
        return f"no {scene.land_colour} {scene.land}"
    taken = {(True, scene.light_place)}
    for group in scene.groups:
        if (group.high, group.place) in taken:
            return f"two things at the {group.place}"
        taken.add((group.high, group.place))
        reason = _group_conflict(scene, group)
        if reason:
            return reason
    if len({(group.kind, group.colour) for group in scene.groups}) < len(scene.groups):
        return "two groups that cannot be told apart"
    on_land = [group for group in scene.groups if not group.high and group.kind != "boat"]
    if scene.water and len(on_land) == len(PLACES):
        return "the water is hidden"
    return None


def _group_conflict(scene: Scene, group: Group) -> str | None:
    if group.size == "large" and group.count > 1:
        return "large things come alone"
    if group.kind == "boat" and scene.water is None:
        return "a boat needs water"
    if scene.water == "river" and not group.high and (group.kind == "boat") != (group.place == "middle"):
        return "the river runs in the middle"
    if scene.water == "river" and group.kind == "boat" and group.count > 1:
        return "the river has room for one boat"
    return _camouflage(scene, group)


def _camouflage(scene: Scene, group: Group) -> str | None:
    if group.colour == "white":
        hidden = (scene.clouds or scene.sky == "overcast") if group.high else scene.ground == "snow"
        return "white on white" if hidden and group.kind != "boat" else None
    return "petals like leaves" if (group.kind, group.colour) == ("flower", "green") else None


def random_group(rng: random.Random) -> Group:
    """Any group, whether or not it fits a scene. A shape is drawn as often as a house."""
    kind = rng.choice((*HIGH_KINDS, "house", "tree", "flower", "boat", "shape"))
    count = rng.choice((1, 1, 1, 2, 2, 3))
    return Group(
        kind=rng.choice(SHAPES) if kind == "shape" else kind,
        colour=rng.choice(COLOURS),
        size=rng.choice(SIZES) if count == 1 else "small",
        place=rng.choice(PLACES),
        count=count,
    )


def add_group(scene: Scene, rng: random.Random) -> Scene:
    """The scene with one more group that fits it."""
    while True:
        grown = scene.with_group(random_group(rng))
        if conflict(grown) is None:
            return grown


def random_scene(rng: random.Random) -> Scene:
    """A scene in which everything named can be seen, with one to three groups."""
    sky = rng.choice(SKIES)
    light = rng.choice(LIGHTS[sky])
    land = rng.choice((None, "hills", "hills", "mountains"))
    scene = Scene(
        seed=rng.getrandbits(48),
        sky=sky,
        clouds=sky != "overcast" and rng.random() < 0.4,
        light=light,
        light_place=rng.choice(PLACES) if light else None,
        land=land,
        land_colour=rng.choice(LANDS[land]) if land else None,
        ground=rng.choice(("grass", "grass", "sand", "snow")),
        water=rng.choice((None, None, None, *WATERS)),
        groups=(),
    )
    for _ in range(rng.choice((1, 2, 2, 3, 3))):
        scene = add_group(scene, rng)
    return scene
