"""How each kind of thing is drawn: at its middle, on the y it stands on (or around it, in the sky), of a width."""

import math
import random
from collections.abc import Callable

from .palette import Rgb, darker, lighter, lit, mix, rgb
from .pen import Pen

Draw = Callable[[Pen, float, float, float, Rgb, str, random.Random], None]


def house(pen: Pen, x: float, y: float, w: float, colour: Rgb, sky: str, rng: random.Random) -> None:
    half, wall, roof = 0.43 * w, 0.56 * w, 0.44 * w
    slate = lit(rgb("#5b4a55"), sky)
    pen.rectangle(x + 0.18 * w, y - wall - 0.42 * w, x + 0.29 * w, y - wall, darker(slate, 0.2))
    pen.rectangle(x - half, y - wall, x + half, y, colour)
    pen.rectangle(x + 0.14 * w, y - wall, x + half, y, darker(colour, 0.16))
    eaves = y - wall + 0.03 * w
    pen.polygon([(x - 0.54 * w, eaves), (x, eaves - roof), (x + 0.54 * w, eaves)], slate)
    pen.polygon([(x + 0.14 * w, eaves), (x, eaves - roof), (x + 0.54 * w, eaves)], darker(slate, 0.25))
    pane = rgb("#ffe27a") if sky in ("night", "sunset") else lit(rgb("#d5ecf7"), sky)
    pen.rectangle(x - 0.31 * w, y - 0.42 * w, x - 0.11 * w, y - 0.21 * w, lighter(colour, 0.75))
    pen.rectangle(x - 0.285 * w, y - 0.395 * w, x - 0.135 * w, y - 0.235 * w, pane)
    door = lit(rgb("#6d4631"), sky)
    pen.rounded(x + 0.0 * w, y - 0.34 * w, x + 0.17 * w, y, 0.05 * w, door)


def tree(pen: Pen, x: float, y: float, w: float, colour: Rgb, sky: str, rng: random.Random) -> None:
    bark = lit(rgb("#7a5238"), sky)
    trunk = 0.065 * w
    pen.polygon([(x - 1.3 * trunk, y), (x - trunk, y - 0.6 * w), (x + trunk, y - 0.6 * w), (x + 1.3 * trunk, y)], bark)
    top = y - 0.86 * w
    lumps = [(-0.24, 0.10, 0.25), (0.25, 0.08, 0.24), (0.0, -0.16, 0.29), (0.02, 0.13, 0.28)]
    lumps = [(dx + rng.uniform(-0.03, 0.03), dy + rng.uniform(-0.03, 0.03), r) for dx, dy, r in lumps]
    for dx, dy, r in lumps:
        pen.circle(x + dx * w, top + dy * w, r * w, darker(colour, 0.2))
    for dx, dy, r in lumps:
        pen.circle(x + (dx - 0.03) * w, top + (dy - 0.035) * w, (r - 0.035) * w, colour)
    for dx, dy, r in lumps[:3]:
        pen.circle(x + (dx - 0.09) * w, top + (dy - 0.09) * w, 0.45 * r * w, lighter(colour, 0.18))


def flower(pen: Pen, x: float, y: float, w: float, colour: Rgb, sky: str, rng: random.Random) -> None:
    leaf = lit(rgb("#3f8a45"), sky)
    top = y - 0.95 * w
    pen.line([(x, y), (x + 0.02 * w, y - 0.5 * w), (x, top)], 0.07 * w, leaf)
    for side in (-1, 1):
        points = [(0, -0.08), (0.16, -0.3), (0.36, -0.36), (0.26, -0.16)]
        pen.polygon([(x + side * dx * w, y + dy * w) for dx, dy in points], lighter(leaf, 0.12 * (side < 0)))
    turn = rng.uniform(0, math.tau)
    for layer, radius in ((darker(colour, 0.14), 0.175), (colour, 0.15)):
        for petal in range(6):
            angle = turn + petal * math.tau / 6
            pen.circle(x + 0.25 * w * math.cos(angle), top + 0.25 * w * math.sin(angle), radius * w, layer)
    heart = rgb("#a85a24") if colour[0] > 225 and 150 < colour[1] < 225 and colour[2] < 120 else rgb("#f7c63c")
    pen.circle(x, top, 0.15 * w, lit(heart, sky))


def boat(pen: Pen, x: float, y: float, w: float, colour: Rgb, sky: str, rng: random.Random) -> None:
    pen.ellipse(x, y + 0.01 * w, 0.5 * w, 0.055 * w, darker(colour, 0.5), 0.35)
    mast, sail = lit(rgb("#6b4a36"), sky), lit(rgb("#fbf6e9"), sky)
    pen.rectangle(x - 0.012 * w, y - 1.0 * w, x + 0.016 * w, y - 0.2 * w, mast)
    pen.polygon([(x + 0.04 * w, y - 0.97 * w), (x + 0.44 * w, y - 0.29 * w), (x + 0.04 * w, y - 0.27 * w)], sail)
    pen.polygon([(x - 0.04 * w, y - 0.92 * w), (x - 0.36 * w, y - 0.29 * w), (x - 0.04 * w, y - 0.27 * w)], colour)
    hull = [(-0.5, -0.23), (0.52, -0.23), (0.36, 0.0), (-0.34, 0.0)]
    pen.polygon([(x + dx * w, y + dy * w) for dx, dy in hull], colour)
    keel = [(-0.42, -0.1), (0.445, -0.1), (0.36, 0.0), (-0.34, 0.0)]
    pen.polygon([(x + dx * w, y + dy * w) for dx, dy in keel], darker(colour, 0.28))


def balloon(pen: Pen, x: float, y: float, w: float, colour: Rgb, sky: str, rng: random.Random) -> None:
    radius, cy = 0.48 * w, y - 0.16 * w
    pale = mix(colour, lit(rgb("#fff8e6"), sky), 0.55) if min(colour) < 150 else darker(colour, 0.16)
    neck, skirt = 0.1 * w, cy + 0.66 * w
    rope = lit(rgb("#5d4738"), sky)
    for side in (-1, 1):
        pen.line([(x + side * neck, skirt), (x + side * 0.08 * w, skirt + 0.14 * w)], 0.015 * w, rope)
    for share, tone in ((1.0, darker(colour, 0.14)), (0.86, colour), (0.5, pale), (0.2, colour)):
        pen.ellipse(x, cy, radius * share, radius, tone)
        mouth = neck * share
        low = [(x - 0.93 * radius * share, cy + 0.37 * radius), (x + 0.93 * radius * share, cy + 0.37 * radius)]
        pen.polygon([*low, (x + mouth, skirt), (x - mouth, skirt)], tone)
    pen.rounded(x - 0.11 * w, skirt + 0.12 * w, x + 0.11 * w, skirt + 0.28 * w, 0.03 * w, lit(rgb("#94653d"), sky))


def bird(pen: Pen, x: float, y: float, w: float, colour: Rgb, sky: str, rng: random.Random) -> None:
    facing = rng.choice((-1, 1))

    def at(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
        return [(x + facing * dx * w, y + dy * w) for dx, dy in points]

    pen.polygon(at([(-0.2, 0.02), (-0.54, -0.1), (-0.5, 0.06), (-0.56, 0.16), (-0.2, 0.14)]), darker(colour, 0.25))
    pen.polygon(at([(0.1, -0.02), (0.2, -0.44), (-0.02, -0.3), (-0.14, -0.02)]), darker(colour, 0.25))
    pen.ellipse(x, y + 0.07 * w, 0.32 * w, 0.18 * w, colour)
    pen.circle(x + facing * 0.27 * w, y - 0.04 * w, 0.145 * w, colour)
    pen.polygon(at([(0.38, -0.1), (0.56, -0.01), (0.38, 0.04)]), lit(rgb("#f0a03a"), sky))
    pen.polygon(at([(0.12, 0.04), (-0.3, -0.5), (-0.34, -0.22), (-0.2, 0.1)]), lighter(colour, 0.2))
    pen.circle(x + facing * 0.3 * w, y - 0.07 * w, 0.03 * w, rgb("#241c33"))


def circle(pen: Pen, x: float, y: float, w: float, colour: Rgb, sky: str, rng: random.Random) -> None:
    cy, radius = y - 0.46 * w, 0.46 * w
    pen.circle(x, cy, radius, darker(colour, 0.2))
    pen.circle(x - 0.04 * w, cy - 0.04 * w, radius - 0.05 * w, colour)
    pen.circle(x - 0.15 * w, cy - 0.16 * w, 0.13 * w, lighter(colour, 0.3))


def square(pen: Pen, x: float, y: float, w: float, colour: Rgb, sky: str, rng: random.Random) -> None:
    half = 0.41 * w
    pen.rectangle(x - half, y - 2 * half, x + half, y, darker(colour, 0.22))
    pen.rectangle(x - half, y - 2 * half, x + half - 0.1 * w, y - 0.1 * w, colour)
    pen.polygon(
        [(x - half, y - 2 * half), (x + 0.1 * w, y - 2 * half), (x - half, y - 0.32 * w)], lighter(colour, 0.16)
    )


def triangle(pen: Pen, x: float, y: float, w: float, colour: Rgb, sky: str, rng: random.Random) -> None:
    top, half = y - 0.9 * w, 0.5 * w
    pen.polygon([(x, top), (x - half, y), (x + half, y)], colour)
    pen.polygon([(x, top), (x + 0.16 * w, y), (x + half, y)], darker(colour, 0.22))
    pen.polygon([(x, top), (x - half, y), (x - 0.3 * w, y)], lighter(colour, 0.16))


def heart(pen: Pen, x: float, y: float, w: float, colour: Rgb, sky: str, rng: random.Random) -> None:
    for grow, dx, tone in ((1.0, 0.0, darker(colour, 0.22)), (0.86, -0.03 * w, colour)):
        half, cy = 0.52 * w * grow, y - 0.48 * w
        curve = [math.tau * step / 40 for step in range(40)]
        pen.polygon([(x + dx + half * _heart_x(t), cy + half * _heart_y(t)) for t in curve], tone)
    pen.circle(x - 0.26 * w, y - 0.66 * w, 0.09 * w, lighter(colour, 0.35))


def _heart_x(t: float) -> float:
    """The well known heart curve 16 sin^3 t, (13 cos t - 5 cos 2t - 2 cos 3t - cos 4t), scaled to a half width of 1."""
    return math.sin(t) ** 3


def _heart_y(t: float) -> float:
    return -(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)) / 16


DRAW: dict[str, Draw] = {
    draw.__name__: draw for draw in (house, tree, flower, boat, balloon, bird, circle, square, triangle, heart)
}
