"""Scatter plots as inline SVG: points with labels that do not overlap, and the front of the best ones."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from unicodedata import east_asian_width

from quantmill.measure.report.collect import pareto

WIDTH, HEIGHT = 480, 320
LEFT, RIGHT, TOP, BOTTOM = 78, 14, 12, 42
FONT = 12
CHARACTER = 7.6  # width of a letter at FONT: types are capitals and digits
WIDE = 12.5  # of the widest Latin letters, and of Chinese and Japanese signs
NEARER = 3.0  # how much nearer a label lies to its own point than to any other
LINE_LABELS = (0.0, 0.95, 0.5, 0.25, 0.75)  # where along a line its label may stand, best first


@dataclass(frozen=True)
class Point:
    """error: half length of the bar in y, 0 for none."""

    x: float
    y: float
    error: float
    label: str
    hint: str


@dataclass(frozen=True)
class Line:
    """A horizontal line: the base."""

    y: float
    label: str


def scatter(
    points: Sequence[Point],
    x_title: str,
    y_title: str,
    log: bool,
    line: Line | None = None,
    equal: bool = False,
) -> str:
    """An SVG element. Less is better on both axes, and a line joins the points that no other beats; or, with `equal`,
    the line is where both are the same. log: a logarithmic y axis."""
    ys = [p.y for p in points] + ([line.y] if line else [])
    # A narrow range has no decade to mark.
    log = log and max(ys) > 3 * min(ys) > 0
    spans = [y for p in points for y in (p.y - p.error, p.y + p.error) if not log or y > 0]
    xs = [p.x for p in points]
    if equal:
        xs, ys = [0.0, *xs, *ys], [0.0, *xs, *ys]
    x_axis = _Axis.linear(xs, LEFT, WIDTH - RIGHT)
    limits = ys + spans
    y_axis = (_Axis.logarithmic if log else _Axis.linear)(limits, HEIGHT - BOTTOM, TOP)
    parts = [
        f'<svg class="plot" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(f"{y_title} against {x_title}")}">',
        *_axes(x_axis, y_axis, x_title, y_title),
    ]
    places = [(x_axis.at(p.x), y_axis.at(p.y)) for p in points]
    named = [(p.label, *place) for p, place in zip(points, places, strict=True)]
    front = [] if equal else pareto([(p.x, p.y) for p in points])
    blocked = [(x - 6, y - 6, x + 6, y + 6) for x, y in places]
    if line is not None:
        y = y_axis.at(line.y)
        parts.append(f'<line class="base" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        blocked += _along([(LEFT, y), (WIDTH - RIGHT, y)])
    if equal:
        ends = [(x_axis.at(v), y_axis.at(v)) for v in (min(xs), max(xs))]
        blocked += _along(ends)
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in ends)
        parts.append(f'<polyline class="front" points="{path}"/>')
    if len(front) > 1:
        blocked += _along([places[i] for i in front])
        path = " ".join(f"{places[i][0]:.1f},{places[i][1]:.1f}" for i in front)
        parts.append(f'<polyline class="front" points="{path}"/>')
    for i, (point, (x, y)) in enumerate(zip(points, places, strict=True)):
        if point.error > 0 and (not log or point.y > point.error):
            low, high = y_axis.at(point.y - point.error), y_axis.at(point.y + point.error)
            parts.append(f'<line class="error" x1="{x:.1f}" x2="{x:.1f}" y1="{low:.1f}" y2="{high:.1f}"/>')
        kind = "best" if i in front or equal else "other"
        parts.append(
            f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="4.5"><title>{escape(point.hint)}</title></circle>'
        )
    parts += _labels(named, blocked, "label", owners=places)
    if line is not None:
        along = [
            (line.label, LEFT + share * (WIDTH - RIGHT - LEFT), y_axis.at(line.y)) for share in LINE_LABELS
        ]
        parts += _labels(along, blocked, "base", first=True)
    return "".join([*parts, "</svg>"])


Box = tuple[float, float, float, float]  # x0, y0, x1, y1


def _labels(
    labels: Sequence[tuple[str, float, float]],
    blocked: list[Box],
    kind: str,
    first: bool = False,
    owners: Sequence[tuple[float, float]] = (),
) -> list[str]:
    """Text beside each (label, x, y) where it covers no other text, point or line; added to `blocked`. A label
    without room is left to its hint. first: only the first label that finds room. owners: all points that have a
    label; a text that lies nearer to another than to its own would be read as that one's."""
    parts = []
    for label, x, y in labels:
        width = text_width(label)
        others = [place for place in owners if place != (x, y)]
        for dx, dy in _around(width):
            box = (x + dx, y + dy - FONT + 2, x + dx + width, y + dy + 3)
            inside = box[0] >= LEFT + 2 and box[2] <= WIDTH - 2 and box[1] >= 0 and box[3] <= HEIGHT - BOTTOM
            free = inside and not any(_overlap(box, other) for other in blocked)
            if free and all(_distance(box, other) > _distance(box, (x, y)) + NEARER for other in others):
                blocked.append(box)
                parts.append(f'<text class="{kind}" x="{box[0]:.1f}" y="{y + dy:.1f}">{escape(label)}</text>')
                if first:
                    return parts
                break
    return parts


def text_width(text: str) -> float:
    """An upper bound of a text's width at FONT, in the plot's units."""
    return sum(WIDE if sign in "mwMW@%" or east_asian_width(sign) in "WF" else CHARACTER for sign in text)


def _distance(box: Box, place: tuple[float, float]) -> float:
    """From a point to the nearest edge of a box."""
    dx = max(box[0] - place[0], 0.0, place[0] - box[2])
    dy = max(box[1] - place[1], 0.0, place[1] - box[3])
    return math.hypot(dx, dy)


def _around(width: float) -> list[tuple[float, float]]:
    """Where a label may begin, seen from its point: right, left, above, below, and the corners, near ones first."""
    out = [(8.0, 4.0), (-8 - width, 4.0)]
    for distance in (9, 16, 26):
        for dx in (6, -6 - width, -width / 2):
            out += [(dx, -distance + 2.0), (dx, distance + 8.0)]
    return out


def _along(corners: Sequence[tuple[float, float]]) -> list[Box]:
    """Small boxes that cover a line through the corners."""
    boxes = []
    for (x0, y0), (x1, y1) in itertools.pairwise(corners):
        n = max(1, math.ceil(math.hypot(x1 - x0, y1 - y0) / 4))
        for i in range(n + 1):
            x, y = x0 + (x1 - x0) * i / n, y0 + (y1 - y0) * i / n
            boxes.append((x - 1.5, y - 1.5, x + 1.5, y + 1.5))
    return boxes


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


@dataclass(frozen=True)
class _Axis:
    """Maps values between low and high to pixels; `ticks` are values with their text."""

    low: float
    high: float
    first: float
    last: float
    log: bool
    ticks: tuple[tuple[float, str], ...]

    def at(self, value: float) -> float:
        scale = math.log if self.log else float
        share = (scale(value) - scale(self.low)) / (scale(self.high) - scale(self.low))
        return self.first + share * (self.last - self.first)

    @staticmethod
    def linear(values: Sequence[float], first: float, last: float) -> _Axis:
        low, high = min(values), max(values)
        margin = 0.08 * (high - low) or 0.05 * abs(high) or 1.0
        low, high = (max(0.0, low - margin) if low >= 0 else low - margin), high + margin
        step = _round_step((high - low) / 4.5)
        digits = max(0, -math.floor(math.log10(step) + 1e-9))
        ticks = [i * step for i in range(math.ceil(low / step), math.floor(high / step) + 1)]
        return _Axis(low, high, first, last, False, tuple((t, f"{t:.{digits}f}") for t in ticks))

    @staticmethod
    def logarithmic(values: Sequence[float], first: float, last: float) -> _Axis:
        positive = [v for v in values if v > 0] or [1.0]
        low, high = min(positive) / 1.35, max(positive) * 1.35
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        factors = (1.0,) if len(decades) > 4 else (1.0, 3.0) if len(decades) > 2 else (1.0, 2.0, 5.0)
        ticks = [factor * 10.0**decade for decade in decades for factor in factors]
        shown = tuple((t, f"{t:.6f}".rstrip("0").rstrip(".")) for t in ticks if low <= t <= high)
        return _Axis(low, high, first, last, True, shown)


def _round_step(step: float) -> float:
    """The next of 1, 2, 5 · 10ⁿ."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= step * (1 - 1e-9))


def _axes(x_axis: _Axis, y_axis: _Axis, x_title: str, y_title: str) -> list[str]:
    bottom, middle = HEIGHT - BOTTOM, (TOP + HEIGHT - BOTTOM) / 2
    parts = []
    for value, text in x_axis.ticks:
        x = x_axis.at(value)
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{bottom}"/>')
        parts.append(f'<text class="tick" x="{x:.1f}" y="{bottom + 15}" text-anchor="middle">{text}</text>')
    for value, text in y_axis.ticks:
        y = y_axis.at(value)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{text}</text>')
    parts.append(
        f'<text class="title" x="{(LEFT + WIDTH - RIGHT) / 2:.0f}" y="{HEIGHT - 6}" text-anchor="middle">'
        f"{escape(x_title)}</text>"
    )
    parts.append(
        f'<text class="title" transform="translate(11 {middle:.0f}) rotate(-90)" text-anchor="middle">'
        f"{escape(y_title)}</text>"
    )
    return parts
