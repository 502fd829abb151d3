"""Curves as SVG that can stand in any page: no script, no style sheet, readable on light and on dark. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape

from hpc_launch.text import number

Points = Sequence[tuple[float, float]]

# Neither bright nor dark, so that they can be read on white and on black; and told apart by those who see few colours.
COLOURS = ("#3b82f6", "#ea7b30", "#1fa37a", "#d1568f", "#8b6fe8", "#a8902a", "#2b9fb3", "#d65a5a")

_WIDTH, _HEIGHT = 340, 132
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 8, 18, 20

# So many parts of the way are told apart: an eye sees no more, and the page stays small.
_PARTS = 90

# From this ratio on values are drawn by their logarithms.
_WIDE = 20.0


@dataclass(frozen=True)
class Line:
    """A curve with its colour and its name."""

    name: str
    colour: str
    points: Points


def plot(title: str, lines: Sequence[Line]) -> str:
    """Draw curves over the same axes; empty where none has two points."""
    drawn = [line for line in lines if len({step for step, _ in line.points}) > 1]
    if not drawn:
        return ""
    steps = [step for line in drawn for step, _ in line.points]
    values = [value for line in drawn for _, value in line.points]
    first, last, low, high = min(steps), max(steps), min(values), max(values)
    logarithmic = low > 0 and high / low >= _WIDE
    across = _scale(first, last, _LEFT, _WIDTH - _RIGHT)
    up = _scale(low, high, _HEIGHT - _BOTTOM, _TOP, logarithmic=logarithmic)
    named = f"{title}, logarithmic" if logarithmic else title
    parts = [
        *(_rule(up(value)) for value in (low, high)),
        _text(_LEFT, 10, named, "start"),
        *(_text(_LEFT - 5, up(value) + 4, f"{value:.3g}", "end") for value in dict.fromkeys((low, high))),
        _text(_LEFT, _HEIGHT - 5, number(first), "start"),
        _text(_WIDTH - _RIGHT, _HEIGHT - 5, f"step {number(last)}", "end"),
        *(_line(line, across, up) for line in reversed(drawn)),  # the first one on top
    ]
    label = escape(f"{named} of {', '.join(line.name for line in drawn)}: from {number(high)} to {number(low)}")
    return (
        f'<svg role="img" aria-label="{label}" viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" height="{_HEIGHT}" '
        f'style="display:block;max-width:100%">{"".join(parts)}</svg>'
    )


def divide(points: Points, count: int = _PARTS) -> list[Points]:
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


def _scale(low: float, high: float, begin: float, end: float, *, logarithmic: bool = False) -> Callable[[float], float]:
    if high == low:
        return lambda _: (begin + end) / 2
    if logarithmic:
        return lambda value: begin + math.log(value / low) / math.log(high / low) * (end - begin)
    return lambda value: begin + (value - low) / (high - low) * (end - begin)


def _rule(height: float) -> str:
    return (
        f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{height:.1f}" y2="{height:.1f}" stroke="currentColor" '
        'stroke-opacity="0.18"/>'
    )


def _text(across: float, up: float, words: str, anchor: str) -> str:
    return (
        f'<text x="{across:g}" y="{up:.1f}" text-anchor="{anchor}" font-size="11" fill="currentColor" '
        f'fill-opacity="0.7">{escape(words)}</text>'
    )


def _line(line: Line, across: Callable[[float], float], up: Callable[[float], float]) -> str:
    """One curve: where it has more points than can be told apart, their mean, and behind it how far they reach."""
    divided = divide(line.points)
    places = [(across(step), up(value)) for step, value in map(mean, divided)]
    behind = ""
    if len(divided) < len(line.points):
        reach = [(across(step), up(value)) for part in divided for step, value in extremes(part)]
        behind = (
            f'<polyline points="{_places(reach)}" fill="none" stroke="{line.colour}" stroke-width="1" '
            'stroke-opacity="0.3"/>'
        )
    return (
        f'{behind}<polyline points="{_places(places)}" fill="none" stroke="{line.colour}" stroke-width="1.6" '
        f'stroke-linejoin="round"><title>{escape(line.name)}</title></polyline>'
        f'<circle cx="{places[-1][0]:.1f}" cy="{places[-1][1]:.1f}" r="2.2" fill="{line.colour}"/>'
    )


def _places(places: Iterable[tuple[float, float]]) -> str:
    return " ".join(f"{across:.1f},{up:.1f}" for across, up in places)
