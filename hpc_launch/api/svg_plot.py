"""Curves as shapes: where each line, mark and word is drawn. Pure; `curves.svg.jinja` only writes it down."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from hpc_launch.inspection.time_axis import between, short
from hpc_launch.text import number

Points = Sequence[tuple[float, float]]
Place = tuple[float, float]

_WIDTH, _HEIGHT = 340.0, 132.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 58.0, 332.0, 18.0, 112.0

# So many parts of the way are told apart: an eye sees no more, and the page stays small.
_PARTS = 90

# From this ratio on values are drawn by their logarithms.
_WIDE = 20.0


@dataclass(frozen=True)
class PlottedCurve:
    """A curve with its colour and its name."""

    name: str
    colour: str
    points: Points


@dataclass(frozen=True)
class Curve:
    """A line as drawn: its path, how far its points reach (empty where it goes through all of them), and its end."""

    name: str
    colour: str
    path: str
    reach: str
    end: Place


@dataclass(frozen=True)
class Plot:
    """Curves over the same axes. `rules` are lines across, with their heights and values; `label` says it in words."""

    title: str
    label: str
    rules: tuple[tuple[float, str], ...]
    first: str
    last: str
    curves: tuple[Curve, ...]
    width: float = _WIDTH
    height: float = _HEIGHT
    left: float = _LEFT
    right: float = _RIGHT


def plot_svg(title: str, lines: Sequence[PlottedCurve]) -> Plot | None:
    """Draw curves over the same axes; None where none has two points."""
    drawn = [line for line in lines if len({step for step, _ in line.points}) > 1]
    if not drawn:
        return None
    steps = [step for line in drawn for step, _ in line.points]
    values = [value for line in drawn for _, value in line.points]
    first, last, low, high = min(steps), max(steps), min(values), max(values)
    logarithmic = low > 0 and high / low >= _WIDE
    of = math.log if logarithmic else float

    def place(point: Place) -> Place:
        step, value = point
        return between(step, first, last, _LEFT, _RIGHT), between(of(value), of(low), of(high), _BOTTOM, _TOP)

    named = f"{title}, logarithmic" if logarithmic else title
    return Plot(
        named,
        f"{named} of {', '.join(line.name for line in drawn)}: from {number(high)} to {number(low)}",
        tuple((place((first, value))[1], f"{value:.3g}") for value in dict.fromkeys((low, high))),
        number(first),
        number(last),
        tuple(_curve(line, place) for line in reversed(drawn)),  # the first one on top
    )


def divide_curve(points: Points, count: int = _PARTS) -> list[Points]:
    """Divide a curve into so many parts of the way, at most; those without a point are left out. Pure."""
    first, last = points[0][0], points[-1][0]
    groups: dict[int, list[tuple[float, float]]] = {}
    for point in points:
        groups.setdefault(min(int((point[0] - first) / ((last - first) or 1) * count), count - 1), []).append(point)
    return [*groups.values()]


def extremes(part: Points) -> Points:
    """The lowest and the highest point of a part, as they come. Pure."""
    return sorted({min(part, key=lambda point: point[1]), max(part, key=lambda point: point[1])})


def mean(part: Points) -> tuple[float, float]:
    """The middle of a part. Pure."""
    return sum(step for step, _ in part) / len(part), sum(value for _, value in part) / len(part)


def _curve(line: PlottedCurve, place: Callable[[Place], Place]) -> Curve:
    """One curve: where it has more points than can be told apart, their mean, and behind it how far they reach."""
    divided = divide_curve(line.points)
    means = [place(mean(part)) for part in divided]
    reach = [place(point) for part in divided for point in extremes(part)] if len(divided) < len(line.points) else []
    return Curve(line.name, line.colour, _path(means), _path(reach), means[-1])


def _path(places: Iterable[Place]) -> str:
    return " ".join(f"{short(x)},{short(y)}" for x, y in places)
