"""From a scene to its picture in the base style: soft gradients, clean flat shapes, a little shading."""

import numpy as np

from .backdrop import COLUMN, SHORE, draw_backdrop
from .palette import THING, THING_LIGHT, lit, rgb, shade
from .pen import Pen
from .scene import Group, Scene
from .things import DRAW

SIZE = 192

WIDTH = {"large": 0.235, "small": 0.135}
"""The width of a single thing, in parts of the picture's side."""
SEVERAL_WIDTH = {2: 0.12, 3: 0.09}
SCALE = {"flower": 0.86, "boat": 1.06, "bird": 1.1, "circle": 0.92, "square": 0.92, "triangle": 0.95}
"""What a kind's width is multiplied by to look as large as the others."""
SPREAD = {1: ((0.0, 0.0),), 2: ((-0.074, -0.02), (0.074, 0.02)), 3: ((-0.1, 0.012), (0.0, -0.03), (0.1, 0.018))}
"""Count -> where they are around the middle of the group."""
AFLOAT = {"sea": 0.715, "lake": 0.735, "river": 0.88}
"""Water -> the y of a boat's keel."""


def render(scene: Scene, size: int = SIZE) -> np.ndarray:
    """The picture, uint8 (size, size, 3): a pure function of the scene. Sizes are multiples of 16."""
    pen = Pen(size)
    draw_backdrop(pen, scene)
    for group in scene.groups:
        draw_group(pen, scene, group)
    return pen.picture()


def draw_group(pen: Pen, scene: Scene, group: Group) -> None:
    """All things of a group, those further back first."""
    rng = scene.jitter(group.kind, group.place)
    colour = lit(shade(rgb(THING[group.colour]), rng), scene.sky, THING_LIGHT)
    width = WIDTH[group.size] if group.count == 1 else SEVERAL_WIDTH[group.count]
    width *= SCALE.get(group.kind, 1) * rng.uniform(0.95, 1.03)
    x = COLUMN[group.place] + rng.uniform(-0.012, 0.012)
    y = _level(scene, group) + rng.uniform(-0.012, 0.012)
    for dx, dy in sorted(SPREAD[group.count], key=lambda offset: offset[1]):
        at_x, at_y = x + dx + rng.uniform(-0.004, 0.004), y + dy * (1.8 if group.high else 1)
        if not group.high and group.kind != "boat":
            pen.ellipse(at_x + 0.08 * width, at_y, 0.52 * width, 0.09 * width, (30, 30, 60), 0.22)
        DRAW[group.kind](pen, at_x, at_y, width, colour, scene.sky, rng)


def _level(scene: Scene, group: Group) -> float:
    """The y that the group's things stand on, or of their middle in the sky."""
    if group.high:
        return 0.27
    if group.kind == "boat":
        return AFLOAT[scene.water]
    return 0.93 if scene.water in ("sea", "lake") else SHORE + 0.1
