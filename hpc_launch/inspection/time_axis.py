"""Axes: where a moment, or a value, is drawn, and what is written beside it. Pure."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, tzinfo

# Seconds between marks of the axis that a person counts in.
_STEPS = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400, 172800, 604800)

# Marks of the axis are not nearer to each other, in units of the picture.
_APART = 76.0

# An attempt is not drawn narrower, if there is room for it.
_NARROWEST = 26.0

# A pause that takes more than this part of the picture is cut, and takes so many units instead.
_LONG_PAUSE = 0.12
_CUT = 48.0


@dataclass(frozen=True)
class AxisPhase:
    """A stretch of time that is one thing.

    Attributes:
        begin: seconds since the epoch.
        end: seconds since the epoch.
        pause: nothing ran, so that it may be cut short in the picture.
    """

    begin: float
    end: float
    pause: bool = False

    @property
    def seconds(self) -> float:
        """How long it lasted."""
        return max(0.0, self.end - self.begin)


@dataclass(frozen=True)
class AxisPiece:
    """A part of the axis on which time runs evenly."""

    begin: float
    end: float
    left: float
    right: float
    cut: bool = False

    @property
    def rate(self) -> float:
        """How much of the picture a second takes."""
        return (self.right - self.left) / (self.end - self.begin)


@dataclass(frozen=True)
class AxisTick:
    """A mark of the axis."""

    x: float
    label: str
    day: str = ""


@dataclass(frozen=True)
class TimeAxis:
    """Where a moment is drawn.

    Attributes:
        pieces: in order, without gaps between them.
        even: time runs evenly over all pieces that are not cut.
    """

    pieces: tuple[AxisPiece, ...]
    even: bool

    def x(self, time: float) -> float:
        """The place of a moment; what lies outside of the axis is put at its end."""
        at = max(0, bisect_right([piece.begin for piece in self.pieces], time) - 1)
        piece = self.pieces[at]
        return between(min(piece.end, max(piece.begin, time)), piece.begin, piece.end, piece.left, piece.right)

    def ticks(self, zone: tzinfo | None) -> tuple[AxisTick, ...]:
        """Marks at round moments of local time, and where the axis goes on after a cut; none too near to another."""
        wanted = sorted(self._wanted(zone), key=lambda mark: not mark[1])
        kept: list[tuple[float, float]] = []
        for time, _ in wanted:
            x = self.x(time)
            if all(abs(x - other) >= _APART for other, _ in kept):
                kept.append((x, time))
        return tuple(_labelled(sorted(kept), zone))

    def _wanted(self, zone: tzinfo | None) -> Iterator[tuple[float, bool]]:
        """Moments that could be marked, and whether they come before others."""
        after_cut = False
        for piece in self._stretches():
            if not piece.cut:
                if after_cut or not self.even:
                    yield piece.begin, True
                for time in _round_moments(piece, zone):
                    yield time, False
            after_cut = piece.cut

    def _stretches(self) -> list[AxisPiece]:
        """The pieces, those together in which time runs equally fast."""
        found: list[AxisPiece] = []
        for piece in self.pieces:
            last = found[-1] if found else None
            if last and not last.cut and not piece.cut and math.isclose(last.rate, piece.rate, rel_tol=1e-3):
                found[-1] = AxisPiece(last.begin, piece.end, last.left, piece.right)
            else:
                found.append(piece)
        return found


def between(value: float, low: float, high: float, begin: float, end: float) -> float:
    """Where a value is drawn on an even axis, on which `low` is at `begin` and `high` at `end`; alone in its middle."""
    return begin + (value - low) / (high - low) * (end - begin) if high != low else (begin + end) / 2


def short(number: float) -> str:
    """A place in a picture, to a tenth of a unit."""
    return f"{number:.1f}".removesuffix(".0")


def make_time_axis(phases: Sequence[AxisPhase], left: float, right: float) -> TimeAxis:
    """Lay phases out between two places.

    Time runs evenly, but for two things that would make the picture useless: long pauses are cut, and attempts which
    would be too narrow to be seen are drawn wider than they were.
    """
    phases = [phase for phase in phases if phase.seconds > 0] or [AxisPhase(0.0, 1.0)]
    total = sum(phase.seconds for phase in phases)
    cut = [phase.pause and phase.seconds > _LONG_PAUSE * total and len(phases) > 1 for phase in phases]
    room = max(right - left - _CUT * sum(cut), (right - left) / 4)
    least = min(_NARROWEST, room / (2 * len(phases)))
    drawn = [phase for phase, is_cut in zip(phases, cut, strict=True) if not is_cut]
    widths, even = _widths([phase.seconds for phase in drawn], [0.0 if phase.pause else least for phase in drawn], room)
    pieces: list[AxisPiece] = []
    rest = iter(widths)
    x = left
    for phase, is_cut in zip(phases, cut, strict=True):
        width = (right - left - sum(widths)) / sum(cut) if is_cut else next(rest)
        pieces.append(AxisPiece(phase.begin, phase.end, x, x + width, cut=is_cut))
        x += width
    return TimeAxis(tuple(pieces), even)


def _widths(seconds: Sequence[float], least: Sequence[float], room: float) -> tuple[list[float], bool]:
    """Share out the room by time, nobody getting less than the least; and whether it went by time alone."""
    widths = [0.0] * len(seconds)
    free = set(range(len(seconds)))
    left = room
    while free:
        total = sum(seconds[at] for at in free)
        poor = {at for at in free if left * seconds[at] / total < least[at]}
        if not poor:
            for at in free:
                widths[at] = left * seconds[at] / total
            break
        for at in poor:
            widths[at] = least[at]
            left -= least[at]
        free -= poor
    return widths, len(free) == len(seconds)


def _round_moments(piece: AxisPiece, zone: tzinfo | None) -> Iterator[float]:
    """Round moments of local time in a piece, as many as there is room for."""
    span = piece.end - piece.begin
    width = piece.right - piece.left
    if span <= 0 or width < _APART:
        return
    needed = _APART * span / width
    step = next((step for step in _STEPS if step >= needed), math.ceil(needed / 604800) * 604800)
    first = datetime.fromtimestamp(piece.begin, zone)
    midnight = first.replace(hour=0, minute=0, second=0, microsecond=0)
    count = math.ceil((first - midnight).total_seconds() / step)
    while (time := (midnight + timedelta(seconds=count * step)).timestamp()) <= piece.end:
        yield time
        count += 1


def _labelled(marks: Sequence[tuple[float, float]], zone: tzinfo | None) -> Iterator[AxisTick]:
    """Write the time beside each mark, with the day where it changes."""
    moments = [datetime.fromtimestamp(time, zone) for _, time in marks]
    seconds = any(moment.second for moment in moments)
    day = ""
    for (x, _), moment in zip(marks, moments, strict=True):
        today = moment.strftime("%a %d %b")
        yield AxisTick(x, moment.strftime("%H:%M:%S" if seconds else "%H:%M"), today if today != day else "")
        day = today
