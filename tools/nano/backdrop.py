"""The sky with its sun or moon, stars and clouds; hills or mountains; the ground and the water."""

import math
import random

from .palette import (
    CLOUD,
    GROUND,
    LAND,
    LAND_LIGHT,
    MOON,
    SKY,
    SUN,
    WATER,
    Rgb,
    darker,
    lighter,
    lit,
    mix,
    rgb,
    shade,
)
from .pen import Pen, Point
from .scene import Scene

HORIZON = 0.6
SHORE = 0.8
"""Where the sea ends and the ground before it begins."""
COLUMN = {"left": 0.17, "middle": 0.5, "right": 0.83}


def draw_backdrop(pen: Pen, scene: Scene) -> None:
    """Everything behind the groups."""
    draw_sky(pen, scene)
    if scene.clouds or scene.sky == "overcast":
        draw_clouds(pen, scene)
    if scene.light:
        draw_light(pen, scene)
    if scene.land == "hills":
        draw_hills(pen, scene)
    if scene.land == "mountains":
        draw_mountains(pen, scene)
    draw_ground(pen, scene)
    if scene.water:
        draw_water(pen, scene)


def draw_sky(pen: Pen, scene: Scene) -> None:
    rng = scene.jitter("sky")
    pen.gradient(0, HORIZON + 0.02, [shade(rgb(stop), rng) for stop in SKY[scene.sky]])
    if scene.sky == "night":
        for _ in range(45):
            radius = rng.choice((0.0022, 0.0022, 0.0036))
            pen.circle(rng.random(), rng.uniform(0, 0.5), radius, (255, 250, 225), rng.uniform(0.4, 0.95))


def draw_light(pen: Pen, scene: Scene) -> None:
    rng = scene.jitter("light")
    x = COLUMN[scene.light_place] + rng.uniform(-0.03, 0.03)
    y, radius = rng.uniform(0.15, 0.21), rng.uniform(0.062, 0.07)
    if scene.light == "sun":
        colour = shade(rgb(SUN[scene.sky]), rng)
        pen.glow(x, y, 5 * radius, lighter(colour, 0.35), 0.75)
        pen.circle(x, y, 1.32 * radius, lighter(colour, 0.3), 0.45)
        pen.circle(x, y, radius, colour)
        pen.circle(x - 0.1 * radius, y - 0.1 * radius, 0.82 * radius, lighter(colour, 0.3))
        return
    pen.glow(x, y, 4 * radius, rgb(MOON), 0.5)
    pen.polygon(_crescent(x, y, 1.08 * radius, rng.uniform(-0.5, -0.2)), rgb(MOON))


def _crescent(x: float, y: float, radius: float, turn: float) -> list[Point]:
    """The outer edge is a circle of this radius, the inner one an ellipse through the same two tips."""
    angles = [math.pi * step / 24 for step in range(25)]
    outer = [(-math.sin(angle), -math.cos(angle)) for angle in angles]
    inner = [(-0.28 * math.sin(angle), -math.cos(angle)) for angle in reversed(angles)]
    c, s = math.cos(turn), math.sin(turn)
    return [(x + radius * (u * c - v * s) + 0.3 * radius, y + radius * (u * s + v * c)) for u, v in outer + inner]


def draw_clouds(pen: Pen, scene: Scene) -> None:
    rng = scene.jitter("clouds")
    colour = rgb(CLOUD[scene.sky])
    if scene.sky == "overcast":
        for row, y in enumerate((0.36, 0.24, 0.12, 0.01)):
            _cloud_bank(pen, y, mix(colour, rgb(SKY["overcast"][0]), 0.3 + 0.25 * row), rng)
        return
    for third in range(3):
        x = (third + rng.uniform(0.15, 0.85)) / 3
        _cloud(pen, x, rng.uniform(0.06, 0.36), rng.uniform(0.1, 0.15), colour, rng)


def _cloud(pen: Pen, x: float, y: float, half: float, colour: Rgb, rng: random.Random) -> None:
    """Puffs on a flat base, brighter above."""
    puffs = [(-0.62, 0.22), (-0.3, 0.36), (0.08, 0.44), (0.42, 0.32), (0.68, 0.2)]
    puffs = [(dx + rng.uniform(-0.06, 0.06), r * rng.uniform(0.85, 1.1)) for dx, r in puffs]
    pen.rounded(x - 0.86 * half, y - 0.12 * half, x + 0.88 * half, y + 0.12 * half, 0.12 * half, colour)
    for dx, r in puffs:
        pen.pie(x + dx * half, y + 0.1 * half, r * half, 1.25 * r * half, (180, 360), colour)


def _cloud_bank(pen: Pen, y: float, colour: Rgb, rng: random.Random) -> None:
    """The lumpy lower edge of a layer of clouds, from side to side."""
    pen.rectangle(0, y - 0.12, 1, y, lighter(colour, 0.06))
    x = -0.05
    while x < 1.05:
        r = rng.uniform(0.07, 0.13)
        pen.ellipse(x, y, r, 0.5 * r, colour)
        pen.ellipse(x, y - 0.02, r, 0.5 * r, lighter(colour, 0.06))
        x += 1.1 * r


def draw_hills(pen: Pen, scene: Scene) -> None:
    rng = scene.jitter("hills")
    colour, haze = lit(shade(rgb(LAND[scene.land_colour]), rng), scene.sky, LAND_LIGHT), rgb(SKY[scene.sky][-1])
    for height, share in ((0.155, 0.32), (0.095, 0.0)):
        ridge = _ridge(HORIZON - 0.5 * height, 0.5 * height, rng)
        tone = mix(colour, haze, share)
        outline = [(-0.01, HORIZON + 0.05), *ridge, (1.01, HORIZON + 0.05)]
        pen.gradient(HORIZON - height - 0.01, HORIZON + 0.05, (lighter(tone, 0.16), darker(tone, 0.1)), outline)


def _ridge(y: float, swing: float, rng: random.Random) -> list[Point]:
    """Two waves with random phases, from the left edge to the right."""
    a, b = rng.uniform(0, math.tau), rng.uniform(0, math.tau)
    long, short = rng.uniform(5.5, 8.0), rng.uniform(11.0, 14.0)
    steps = [step / 48 for step in range(49)]
    return [(x, y - swing * (0.75 * math.sin(long * x + a) + 0.25 * math.sin(short * x + b))) for x in steps]


def draw_mountains(pen: Pen, scene: Scene) -> None:
    rng = scene.jitter("mountains")
    colour, haze = lit(shade(rgb(LAND[scene.land_colour]), rng), scene.sky, LAND_LIGHT), rgb(SKY[scene.sky][-1])
    snow = lit((250, 250, 255), scene.sky)
    peaks = [(x + rng.uniform(-0.06, 0.06), rng.uniform(0.15, 0.24)) for x in (0.08, 0.36, 0.66, 0.95)]
    for x, height in sorted(peaks, key=lambda peak: -peak[1]):
        tone = mix(colour, haze, 0.5 * (height - 0.13) / 0.24)
        _mountain(pen, x, height, tone, snow, rng)


def _mountain(pen: Pen, x: float, height: float, colour: Rgb, snow: Rgb, rng: random.Random) -> None:
    foot, top, half = HORIZON + 0.03, HORIZON - height, 1.05 * height + 0.05
    fold = x + rng.uniform(0.0, 0.06)
    pen.polygon([(x - half, foot), (x, top), (x + half, foot)], lighter(colour, 0.08))
    pen.polygon([(fold, foot), (x, top), (x + half, foot)], darker(colour, 0.2))
    depth, slope = 0.3 * height, half / (height + 0.03)
    left, right, mid = x - slope * depth, x + slope * depth, x + (fold - x) * 0.3
    notch = top + 0.62 * depth
    pen.polygon([(x, top), (left, top + depth), (0.5 * (left + mid), notch), (mid, top + depth)], snow)
    shadow = darker(snow, 0.16)
    pen.polygon([(x, top), (mid, top + depth), (0.5 * (right + mid), notch), (right, top + depth)], shadow)


def draw_ground(pen: Pen, scene: Scene) -> None:
    rng = scene.jitter("ground")
    far, near = (lit(shade(rgb(stop), rng), scene.sky) for stop in GROUND[scene.ground])
    phase = rng.uniform(0, math.tau)
    edge = [(step / 24, HORIZON + 0.008 * math.sin(5 * step / 24 + phase)) for step in range(25)]
    pen.gradient(HORIZON - 0.02, 1, (far, near), [(0, 1.01), *edge, (1, 1.01)])
    for _ in range(5):
        x, y = rng.random(), rng.uniform(0.68, 1)
        pen.ellipse(x, y, rng.uniform(0.15, 0.3), 0.02, lighter(far, 0.15), 0.3)
    for _ in range(16):
        x, y = rng.random(), rng.uniform(0.66, 0.99)
        _speckle(pen, scene.ground, x, y, near)


def _speckle(pen: Pen, ground: str, x: float, y: float, colour: Rgb) -> None:
    size = 0.012 + 0.02 * (y - HORIZON)
    if ground == "grass":
        for lean in (-0.5, 0.1, 0.6):
            pen.line([(x, y), (x + lean * size, y - size)], 0.0035, darker(colour, 0.18))
    elif ground == "sand":
        pen.ellipse(x, y, 0.4 * size, 0.22 * size, darker(colour, 0.18), 0.6)
    else:
        pen.ellipse(x, y, 1.4 * size, 0.3 * size, lighter(colour, 0.6), 0.8)


def draw_water(pen: Pen, scene: Scene) -> None:
    rng = scene.jitter("water", scene.water)
    far, near = (shade(rgb(stop), rng) for stop in WATER[scene.sky])
    shore = mix(lit(rgb(GROUND[scene.ground][1]), scene.sky), near, 0.35)
    outline, bank, (top, bottom) = {"sea": _sea, "lake": _lake, "river": _river}[scene.water](rng)
    pen.polygon(bank, shore)
    pen.gradient(top, bottom, (far, near), outline)
    for _ in range(14):
        x, y = _on_water(scene.water, top, bottom, outline, rng)
        width = (0.03 if scene.water == "river" else 0.1) * (0.2 + 2 * (y - HORIZON)) * rng.uniform(0.5, 1)
        pen.rounded(
            x - width, y, x + width, y + 0.005, 0.0025, lighter(mix(far, near, (y - top) / (bottom - top)), 0.3)
        )
    if scene.light and scene.water == "sea":
        _glitter(pen, scene, COLUMN[scene.light_place], top, bottom)


def _sea(rng: random.Random) -> tuple[list[Point], list[Point], Point]:
    phase = rng.uniform(0, math.tau)
    steps = [step / 32 for step in range(33)]
    edge = [(x, SHORE + 0.012 * math.sin(7 * x + phase)) for x in reversed(steps)]
    far = HORIZON - 0.012
    outline = [(0, far), (1, far), *edge]
    bank = [(0, far), (1, far), *((x, y + 0.014) for x, y in edge)]
    return outline, bank, (far, SHORE + 0.014)


def _lake(rng: random.Random) -> tuple[list[Point], list[Point], Point]:
    phase = rng.uniform(0, math.tau)

    def shore(grow: float) -> list[Point]:
        angles = [math.tau * step / 64 for step in range(64)]
        wobble = [1 + 0.05 * math.sin(3 * angle + phase) for angle in angles]
        return [
            (0.5 + (0.45 + grow) * w * math.cos(angle), 0.725 + (0.072 + grow) * w * math.sin(angle))
            for angle, w in zip(angles, wobble, strict=True)
        ]

    return shore(0), shore(0.012), (0.645, 0.805)


def _river(rng: random.Random) -> tuple[list[Point], list[Point], Point]:
    swing = rng.choice((-1, 1)) * rng.uniform(0.8, 1)

    def banks(grow: float) -> list[Point]:
        left, right = [], []
        for step in range(25):
            t = step / 24
            middle = 0.5 + swing * 0.1 * math.sin(2.2 * math.pi * t) * (1 - t)
            half = 0.012 + 0.16 * t**1.3 + grow * (0.3 + t)
            left.append((middle - half, HORIZON + (1.01 - HORIZON) * t))
            right.append((middle + half, HORIZON + (1.01 - HORIZON) * t))
        return left + right[::-1]

    return banks(0), banks(0.014), (HORIZON - 0.005, 1)


def _on_water(water: str, top: float, bottom: float, outline: list[Point], rng: random.Random) -> Point:
    """A point well inside the water."""
    y = rng.uniform(top + 0.02, bottom - 0.03)
    if water == "sea":
        return rng.random(), y
    if water == "lake":
        return 0.5 + rng.uniform(-0.3, 0.3), 0.725 + rng.uniform(-0.045, 0.045)
    at = min(range(25), key=lambda step: abs(outline[step][1] - y))
    left, right = outline[at][0], outline[-1 - at][0]
    return rng.uniform(0.7 * left + 0.3 * right, 0.3 * left + 0.7 * right), y


def _glitter(pen: Pen, scene: Scene, x: float, top: float, bottom: float) -> None:
    """The light's reflection, in dashes that widen towards us."""
    rng = scene.jitter("glitter")
    colour = rgb(MOON) if scene.light == "moon" else lighter(rgb(SUN[scene.sky]), 0.2)
    for row in range(11):
        y = top + 0.01 + (bottom - top - 0.04) * row / 11
        width = (0.02 + 0.003 * row) * rng.uniform(0.6, 1.2)
        dx = rng.uniform(-0.015, 0.015)
        pen.rounded(x + dx - width, y, x + dx + width, y + 0.006, 0.003, colour)
