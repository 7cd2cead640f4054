"""Plots as numbers for the SVG templates templates/labeling/_columns.html, _curve.html and _interval.html. Pure functions.

Coordinates are percentages of the plot, x to the right and y downwards, so that a plot is as wide as its page without any
script or style; curves lie in an inner drawing of 100 × 100 that is stretched.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

N_LABELS = 5  # below the x axis, at most
GAP = 0.2  # between columns, of their distance


@dataclass(frozen=True)
class Tick:
    at: float
    label: str


@dataclass(frozen=True)
class Column:
    x: float
    width: float
    y: float
    height: float
    label: str
    value: int


@dataclass(frozen=True)
class Columns:
    columns: list[Column]
    y_ticks: list[Tick]
    x_ticks: list[Tick]


@dataclass(frozen=True)
class Point:
    x: float
    y: float
    label: str
    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Curve:
    """`line` and `band` are lists of points for <polyline> and <polygon>; the band is empty without intervals."""

    points: list[Point]
    line: str
    band: str
    y_ticks: list[Tick]
    x_ticks: list[Tick]


@dataclass(frozen=True)
class Interval:
    """`at` the value, `start` and `end` its interval (None: there is none), `reference` what it is to be compared with."""

    at: float
    start: float | None
    end: float | None
    reference: float | None


def columns(values: Sequence[tuple[str, int]]) -> Columns:
    """A column per (label, count)."""
    top, steps = scale(max((value for _, value in values), default=0))
    step = 100 / max(len(values), 1)
    made = [
        Column(
            x=step * (k + GAP / 2),
            width=step * (1 - GAP),
            y=100 * (1 - value / top),
            height=100 * value / top,
            label=label,
            value=value,
        )
        for k, (label, value) in enumerate(values)
    ]
    ticks = [Tick(100 * (1 - y / top), f"{y:,}") for y in steps]
    return Columns(made, ticks, _thinned([Tick(column.x + column.width / 2, column.label) for column in made]))


def curve(
    values: Sequence[tuple[str, float, float | None, float | None]], low: float, high: float, steps: Sequence[float]
) -> Curve:
    """A curve through (label, value, low, high) between the limits `low` and `high` of the y axis."""

    def y(value: float) -> float:
        return 100 * (1 - (min(max(value, low), high) - low) / (high - low))

    last = max(len(values) - 1, 1)
    x = [100 * k / last if len(values) > 1 else 50.0 for k in range(len(values))]
    points = [Point(x[k], y(value), label, value, a, b) for k, (label, value, a, b) in enumerate(values)]
    limits = [
        (point.x, y(point.low), y(point.high)) for point in points if point.low is not None and point.high is not None
    ]
    band = [(at, top) for at, _, top in limits] + [(at, bottom) for at, bottom, _ in reversed(limits)]
    return Curve(
        points,
        _path([(point.x, point.y) for point in points]),
        _path(band) if len(limits) > 1 else "",
        [Tick(y(step), f"{step:g}") for step in steps],
        _thinned([Tick(point.x, point.label) for point in points]),
    )


def interval(
    value: float | None,
    low: float | None,
    high: float | None,
    least: float,
    most: float,
    reference: float | None = None,
) -> Interval | None:
    """One value with its interval on an axis from `least` to `most`; what lies outside is drawn at the end."""
    if value is None:
        return None

    def place(one: float) -> float:
        return 100 * (min(max(one, least), most) - least) / (most - least)

    start, end, compared = (None if one is None else place(one) for one in (low, high, reference))
    return Interval(place(value), start, end, compared)


def scale(most: int) -> tuple[int, list[int]]:
    """A round number from `most` on, and the steps up to it: whole numbers, three to six of them where there is room."""
    step = 1
    for factor in (10**power * one for power in range(15) for one in (1, 2, 5)):
        step = factor
        if most / factor <= 5:
            break
    top = max(math.ceil(most / step), 1) * step
    return top, list(range(0, top + 1, step))


def _path(points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:.2f},{y:.2f}" for x, y in points)


def _thinned(ticks: Sequence[Tick]) -> list[Tick]:
    """Every n-th, so that they do not overlap; the last one is among them."""
    every = math.ceil(len(ticks) / N_LABELS) or 1
    return list(ticks)[::-1][::every][::-1]
