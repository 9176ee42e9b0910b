"""Small charts as inline SVG, coloured by the page's CSS variables, so that they follow its light or dark theme."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 560, 270
LEFT, RIGHT, TOP, BOTTOM = 58, 14, 14, 40
"""Margins around the plotted area: room for the axes' numbers and names."""

MOST_POINTS = 700
"""Of one line: more would not be seen, and a run has thousands of steps."""

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Series:
    """A line: (x, y) points by rising x, its name in the legend, and what surrounds it."""

    name: str
    points: Points
    faint: Points = ()
    """The raw values behind a smoothed line."""
    band: Sequence[tuple[float, float, float]] = ()
    """(x, low, high)."""
    dots: bool = False
    """Mark each point, for lines of few."""


def line_chart(
    series: Sequence[Series],
    x_name: str,
    y_name: str,
    log: bool = False,
    level: float | None = None,
    from_zero: bool = False,
) -> str:
    """Lines over a common x. `log` gives y a logarithmic scale; `level` draws a dashed line at that y.

    An empty text if there is nothing to draw.
    """
    drawn = [one for one in series if one.points]
    if not drawn:
        return ""
    xs = [x for one in drawn for x, _ in [*one.points, *one.faint]]
    smooth = [y for one in drawn for _, y in one.points] + [y for one in drawn for _, *ys in one.band for y in ys]
    ys = smooth + _without_tails([y for one in drawn for _, y in one.faint]) + ([level] if level is not None else [])
    ys += [0.0] if from_zero else []
    across = Axis(min(xs), max(xs), LEFT, WIDTH - RIGHT)
    up = Axis.around(ys, HEIGHT - BOTTOM, TOP, log)
    parts = [_frame(across, up, x_name, y_name)]
    if level is not None:
        parts.append(
            f'<line class="level" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{up(level):.1f}" y2="{up(level):.1f}"/>'
        )
    for number, one in enumerate(drawn):
        colour = _colour(number)
        if one.band:
            edge = [(x, high) for x, _, high in one.band] + [(x, low) for x, low, _ in reversed(one.band)]
            parts.append(f'<path class="band {colour}" d="{_path(edge, across, up)}Z"/>')
        if one.faint:
            parts.append(f'<path class="faint {colour}" d="{_path(thinned(one.faint), across, up)}"/>')
        parts.append(f'<path class="line {colour}" d="{_path(thinned(one.points), across, up)}"/>')
        if one.dots or len(one.points) == 1:
            parts += [_dot(x, y, across, up, colour, one.name) for x, y in one.points]
    return _svg(parts, f"{y_name} by {x_name}") + legend([one.name for one in drawn if one.name])


def histogram(counts: Sequence[int], expected: Sequence[float], x_name: str, y_name: str) -> str:
    """Bars over equal parts of [0, 1], with a step line of the counts that were to be expected."""
    across, up = Axis(0, 1, LEFT, WIDTH - RIGHT), Axis(0, max([*counts, *expected, 1]) * 1.05, HEIGHT - BOTTOM, TOP)
    parts, share = [_frame(across, up, x_name, y_name)], 1 / len(counts)
    for place, count in enumerate(counts):
        left, right = across(place * share) + 0.5, across((place + 1) * share) - 0.5
        height = up(0) - up(count)
        words = f"t {place * share:.2f} to {(place + 1) * share:.2f}: {count}, expected {expected[place]:.1f}"
        parts.append(
            f'<rect class="bar s0" x="{left:.1f}" y="{up(count):.1f}" width="{right - left:.1f}" '
            f'height="{height:.1f}"><title>{words}</title></rect>'
        )
    steps = [(x, value) for place, value in enumerate(expected) for x in (place * share, (place + 1) * share)]
    parts.append(f'<path class="line s1" d="{_path(steps, across, up)}"/>')
    return _svg(parts, f"{y_name} by {x_name}") + legend(["drawn", "expected"])


def legend(names: Sequence[str]) -> str:
    """The names of a chart's lines beside their colours."""
    marks = "".join(f'<span><i class="{_colour(n)}"></i>{escape(name)}</span>' for n, name in enumerate(names))
    return f'<p class="legend">{marks}</p>' if len(names) > 1 else ""


def smoothed(points: Points, window: int, log: bool = False) -> list[tuple[float, float]]:
    """The mean of each point and up to `window` - 1 before it: what has happened lately, at that step.

    `log` takes the geometric mean, as fits a logarithmic scale; then all values must be above 0.
    """
    if log:
        logs = smoothed([(x, math.log(y)) for x, y in points], window)
        return [(x, math.exp(y)) for x, y in logs]
    found, total = [], 0.0
    for place, (x, y) in enumerate(points):
        total += y - (points[place - window][1] if place >= window else 0.0)
        found.append((x, total / min(place + 1, window)))
    return found


def thinned(points: Points) -> Points:
    """Evenly chosen points where there are too many, the last always among them."""
    stride = math.ceil(len(points) / MOST_POINTS)
    return points if stride <= 1 else [*points[:-1:stride], points[-1]]


class Axis:
    """From values to places on the page, in a line or by their logarithms."""

    def __init__(self, low: float, high: float, start: float, end: float, log: bool = False) -> None:
        if high <= low:
            low, high = low - (abs(low) * 0.1 or 0.5), high + (abs(high) * 0.1 or 0.5)
        self.low, self.high, self._start, self._end, self.log = low, high, start, end, log

    @classmethod
    def around(cls, values: Sequence[float], start: float, end: float, log: bool) -> "Axis":
        """An axis with a little room on both sides of the values."""
        low, high = min(values), max(values)
        if log and low > 0:
            room = (high / low) ** 0.06 if high > low else 1.3
            return cls(low / room, high * room, start, end, True)
        room = (high - low) * 0.06
        return cls(max(0.0, low - room) if low >= 0 else low - room, high + room, start, end)

    def __call__(self, value: float) -> float:
        if self.log:
            share = math.log(max(value, self.low) / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return self._start + min(1.02, max(-0.02, share)) * (self._end - self._start)

    def ticks(self) -> list[float]:
        """Round values inside, about five."""
        if self.log and self.high / self.low > 8:
            decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            steps = (1,) if self.high / self.low > 1000 else (1, 3) if self.high / self.low > 60 else (1, 2, 5)
            found = [step * 10.0**decade for decade in decades for step in steps]
            return [tick for tick in found if self.low <= tick <= self.high]
        rough = (self.high - self.low) / 5
        unit = 10.0 ** math.floor(math.log10(rough))
        step = next(unit * times for times in (1, 2, 5, 10) if unit * times >= rough * 0.999)
        first = math.ceil(self.low / step)
        count = math.floor(self.high / step) - first + 1
        return [round((first + i) * step, 12) for i in range(count)]


def _colour(number: int) -> str:
    """The classes of the n-th line: six colours, then the same again in dashes."""
    return f"s{number % 6}" + (f" d{min(2, number // 6)}" if number >= 6 else "")


def _without_tails(values: list[float]) -> list[float]:
    """The middle 98 % of raw values: single spikes shall not flatten the line that matters."""
    ordered = sorted(values)
    cut = len(ordered) // 100
    return ordered[cut : len(ordered) - cut]


def _path(points: Points, across: Axis, up: Axis) -> str:
    return "".join(f"{'L' if place else 'M'}{across(x):.1f} {up(y):.1f}" for place, (x, y) in enumerate(points))


def _dot(x: float, y: float, across: Axis, up: Axis, colour: str, name: str) -> str:
    title = escape(f"{name + ': ' if name else ''}{y:.4g} at {x:g}")
    place = f'cx="{across(x):.1f}" cy="{up(y):.1f}"'
    return f'<circle class="dot {colour}" {place} r="3"><title>{title}</title></circle>'


def _frame(across: Axis, up: Axis, x_name: str, y_name: str) -> str:
    floor, parts = HEIGHT - BOTTOM, []
    for tick in up.ticks():
        y = up(tick)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{_short(tick)}</text>')
    for tick in across.ticks():
        parts.append(f'<text x="{across(tick):.1f}" y="{floor + 16}" text-anchor="middle">{_short(tick)}</text>')
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{floor}" y2="{floor}"/>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text class="name" x="{middle}" y="{HEIGHT - 6}" text-anchor="middle">{escape(x_name)}</text>')
    turned = f'transform="rotate(-90 12 {(TOP + floor) / 2})" text-anchor="middle"'
    parts.append(f'<text class="name" x="12" y="{(TOP + floor) / 2}" {turned}>{escape(y_name)}</text>')
    return "".join(parts)


def _svg(parts: Sequence[str], label: str) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">{"".join(parts)}</svg>'


def _short(value: float) -> str:
    if value and (abs(value) >= 1e5 or abs(value) < 1e-3):
        return f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e")
    return f"{value:,g}"
