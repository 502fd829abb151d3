"""The time axis of a report's picture."""

from datetime import datetime, timedelta, timezone
from itertools import pairwise

import pytest
from hypothesis import given, strategies as st

from hpc_launch.inspection import time_axis
from hpc_launch.inspection.time_axis import AxisPhase

LEFT, RIGHT = 200.0, 1100.0
NOON = datetime(2026, 11, 25, 12, tzinfo=timezone.utc).timestamp()


def phases(*parts: tuple[float, bool]) -> list[AxisPhase]:
    """Phases of so many seconds each, some of them pauses, from noon on."""
    found, at = [], NOON
    for seconds, pause in parts:
        found.append(AxisPhase(at, at + seconds, pause=pause))
        at += seconds
    return found


def test_time_runs_evenly_where_everything_can_be_seen() -> None:
    """Attempts of about the same length, and short pauses between them, are drawn to scale."""
    axis = time_axis.make_time_axis(phases((60, False), (6, True), (120, False)), LEFT, RIGHT)
    per_second = (RIGHT - LEFT) / 186

    assert axis.even
    assert axis.x(NOON) == LEFT
    assert axis.x(NOON + 60) == pytest.approx(LEFT + 60 * per_second)
    assert axis.x(NOON + 186) == pytest.approx(RIGHT)


def test_a_long_pause_is_cut() -> None:
    """Hours in the queue leave the attempts their room."""
    axis = time_axis.make_time_axis(phases((60, False), (36_000, True), (60, False)), LEFT, RIGHT)
    pause = next(piece for piece in axis.pieces if piece.cut)

    assert axis.even
    assert pause.right - pause.left < 60
    assert axis.x(NOON + 60) - LEFT == pytest.approx(RIGHT - axis.x(NOON + 36_060))


def test_short_attempts_can_be_seen() -> None:
    """Of a crash after three seconds in a run of a day there is more than a hair's breadth."""
    axis = time_axis.make_time_axis(phases((3, False), (2, True), (86_400, False)), LEFT, RIGHT)

    assert not axis.even
    assert axis.x(NOON + 3) - axis.x(NOON) > 20


times = st.lists(st.tuples(st.floats(0, 1e6), st.booleans()), max_size=60).map(lambda parts: phases(*parts))


@given(times)
def test_an_axis_keeps_the_order_of_time(parts: list[AxisPhase]) -> None:
    """Whatever the phases are, all of the room is used, and later is never further left."""
    axis = time_axis.make_time_axis(parts, LEFT, RIGHT)
    moments = sorted({edge for phase in parts for edge in (phase.begin, phase.end)})
    places = [axis.x(moment) for moment in moments]

    assert axis.pieces[0].left == LEFT
    assert axis.pieces[-1].right == pytest.approx(RIGHT)
    assert all(earlier <= later + 1e-9 for earlier, later in pairwise(places))
    assert all(LEFT <= place <= RIGHT + 1e-6 for place in places)


@given(times)
def test_marks_do_not_lie_on_each_other(parts: list[AxisPhase]) -> None:
    """There is room for the time of day at each mark."""
    marks = time_axis.make_time_axis(parts, LEFT, RIGHT).ticks(timezone.utc)

    assert all(later.x - earlier.x >= 70 for earlier, later in pairwise(marks))


def test_marks_are_at_round_moments_of_local_time() -> None:
    """A quarter of an hour is a quarter of an hour where people live, even if their offset is odd."""
    nepal = timezone(timedelta(hours=5, minutes=45))
    marks = time_axis.make_time_axis(phases((3 * 3600, False)), LEFT, RIGHT).ticks(nepal)

    assert [mark.label for mark in marks] == ["18:00", "18:30", "19:00", "19:30", "20:00", "20:30"]
    assert [mark.day for mark in marks if mark.day] == ["Wed 25 Nov"]


def test_a_new_day_is_named() -> None:
    """A run over midnight says which day it is."""
    marks = time_axis.make_time_axis(phases((86_400, False)), LEFT, RIGHT).ticks(timezone.utc)

    assert [mark.day for mark in marks if mark.day] == ["Wed 25 Nov", "Thu 26 Nov"]


def test_the_time_after_a_cut_is_named() -> None:
    """Where the axis goes on after a cut, it says when."""
    axis = time_axis.make_time_axis(phases((600, False), (36_000, True), (617, False)), LEFT, RIGHT)
    marks = axis.ticks(timezone.utc)

    assert "22:10" in [mark.label for mark in marks]


def test_many_short_attempts_have_an_axis() -> None:
    """Marks are as near to each other as they can be read, not as attempts are wide."""
    axis = time_axis.make_time_axis(phases(*[(60, False), (10, True)] * 40), LEFT, RIGHT)

    assert len(axis.ticks(timezone.utc)) >= 6
