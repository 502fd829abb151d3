"""The offset between two clocks, measured by questions and answers."""

from __future__ import annotations

from collections.abc import Iterator

from hpc_launch.rendezvous import clock_offset


def measured(moments: list[float], answers: list[float | None]) -> tuple[float, float] | None:
    """Measure with a clock and a coordinator that say these."""
    clock: Iterator[float] = iter(moments)
    others: Iterator[float | None] = iter(answers)
    return clock_offset.measure(lambda: next(others), lambda: next(clock))


def test_the_quickest_answer_counts() -> None:
    """The other clock was read in the middle, give or take half of the time."""
    assert measured([100, 104, 200, 201, 300, 308], [90.0, 190.0, 290.0]) == (10.5, 0.5)


def test_a_clock_that_is_set_back_gives_no_negative_error() -> None:
    assert measured([100, 98, 200, 201, 300, 301], [100.0, None, None]) == (-1.0, 0.0)


def test_nobody_answers() -> None:
    assert measured([1, 2, 3, 4, 5, 6], [None, None, None]) is None
