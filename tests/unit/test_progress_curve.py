"""Curves of progress: small however long training takes, and readable whatever became of their files."""

from __future__ import annotations

import itertools
import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, strategies as st

from hpc_launch import codec
from hpc_launch.records import directory, progress_curve
from hpc_launch.records.directory import JobDirectory
from hpc_launch.records.history_model import ProgressMark
from hpc_launch.records.progress_curve import (
    curve_points,
    joined_attempts,
    last_words,
    next_point,
    progress_share,
    read_curve,
)
from hpc_launch.runtime.progress_writer import ProgressWriter


class Clock:
    """Time that passes when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def job(tmp_path: Path) -> JobDirectory:
    found = JobDirectory(tmp_path, "4711.0")
    found.path.mkdir()
    return found


def word(step: float, attempt: int = 0, **values: float | str) -> dict[str, object]:
    return {"time": 1.5, "attempt": attempt, "step": step, "total": None, "values": values}


def kept(calls: int) -> list[int]:
    """Return the calls whose marks are kept."""
    return list(itertools.takewhile(lambda call: call <= calls, _kept()))


def _kept() -> itertools.accumulate[int]:
    return itertools.accumulate(itertools.repeat(1), lambda call, _: next_point(call))


def test_the_first_calls_are_all_kept() -> None:
    """A short training is in the curve as it is."""
    assert kept(400) == list(range(1, 401))


@pytest.mark.parametrize(("calls", "lines"), [(1000, 616), (10**6, 2022), (10**9, 3407)])
def test_a_curve_stays_small(calls: int, lines: int) -> None:
    """Its length grows with the logarithm of the number of calls."""
    assert len(kept(calls)) == lines


@given(st.integers(min_value=400, max_value=10**9))
def test_a_curve_is_fine_everywhere(calls: int) -> None:
    """At any time more than a hundred points lie in the second half."""
    found = kept(calls)

    assert sum(call > calls / 2 for call in found) > 100


def test_marks_are_appended_with_the_last_word(job: JobDirectory) -> None:
    """Calls within a second are one write, of whole lines; the last word is the end of the curve."""
    clock = Clock()
    writer = ProgressWriter(clock.monotonic)
    lengths = []
    for step in range(1, 1001):
        clock.now += 0.01
        writer.mark(job, 3, word(step, loss=1 / step), done=False)
        lengths.append(job.curve(3).stat().st_size)
    found = curve_points(read_curve(job, 3), "loss")

    assert len(set(lengths)) == 10
    assert found[:400] == tuple((step, 1 / step) for step in range(1, 401))
    assert (len(found), found[-1][0]) == (595, json.loads(job.progress(3).read_text())["step"])


def test_a_disk_that_is_full(job: JobDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be written is left out, and the rest of the curve can still be read."""
    clock = Clock()
    writer = ProgressWriter(clock.monotonic)
    append = directory.append

    def full(path: Path, lines: str, top: Path) -> None:
        append(path, lines[: len(lines) // 2], top)
        raise OSError(28, os.strerror(28))

    for step in range(1, 7):
        clock.now += 2
        monkeypatch.setattr(directory, "append", full if step == 3 else append)
        writer.mark(job, 0, word(step), done=False)

    # The line that follows the torn one is lost with it.
    assert [mark.step for mark in read_curve(job, 0)] == [1, 2, 5, 6]


def test_attempts_that_went_back(job: JobDirectory) -> None:
    """What was done again counts once, as it was done last."""
    for attempt, steps in enumerate([range(1, 6), range(3, 5), range(5, 9)]):
        writer = ProgressWriter(lambda: 0.0)
        for step in steps:
            writer.mark(job, 0, word(step, attempt), done=True)

    assert [(mark.step, mark.attempt) for mark in read_curve(job, 0)] == [
        *((1, 0), (2, 0)),
        *((3, 1), (4, 1)),
        *((5, 2), (6, 2), (7, 2), (8, 2)),
    ]


def test_an_attempt_that_says_no_steps() -> None:
    """Marks without a step take nothing away."""
    marks = tuple(mark(step, attempt) for attempt, step in [(0, 1), (1, None), (1, 5)])

    assert joined_attempts(marks) == marks


def mark(step: float | None, attempt: int = 0, total: float | None = None) -> ProgressMark:
    return ProgressMark(0, 1.5, attempt, step, total, {})


@given(
    st.dictionaries(
        st.sampled_from(["time", "attempt", "step", "total", "values", "x"]),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
            max_leaves=5,
        ),
    )
)
def test_marks_of_any_kind(found: dict[str, Any]) -> None:
    """Whatever a mark says, it can be read, and what is done of it is a share or unknown."""
    read = codec.salvage(ProgressMark, found, rank=7)

    assert 0 <= (progress_share(read) or 0) <= 1
    assert all(isinstance(value, float) for point in curve_points([read], "") for value in point[1:])


def test_values_that_are_no_numbers() -> None:
    """A value that is no finite number is no point of a curve, and text is kept as text."""
    values = {"loss": math.nan, "phase": "warm", "best": True, "n": [1]}
    read = codec.salvage(ProgressMark, {"step": 5, "total": "x", "values": values}, rank=0)

    assert (read.total, read.values) == (None, {"phase": "warm", "best": True})
    assert (curve_points([read], "phase"), curve_points([read], "best")) == ((), ((5, 1.0),))


@pytest.mark.parametrize(
    ("step", "total", "expected"),
    [(5, 10, 0.5), (15, 10, 1.0), (-1, 10, 0.0), (5, None, None), (None, 10, None), (5, 0, None), (5, -1, None)],
)
def test_the_share_that_is_done(step: float | None, total: float | None, expected: float | None) -> None:
    assert progress_share(mark(step, total=total)) == expected


def test_the_end_of_a_very_long_curve(job: JobDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a file that is too large the end is read."""
    monkeypatch.setattr(progress_curve, "_LARGEST", 1000)
    job.curve(0).parent.mkdir()
    job.curve(0).write_text("".join(json.dumps(word(step)) + "\n" for step in range(1000)))
    found = [mark.step for mark in read_curve(job, 0)]

    assert (len(found) > 5, found) == (True, list(range(1000 - len(found), 1000)))


def test_last_words_of_all_ranks(job: JobDirectory) -> None:
    """Ranks are in order; other files, and files that are none, are no ranks."""
    for rank in (10, 9, 0):
        directory.write_json(job.progress(rank), word(rank))
    folder = job.progress(0).parent
    for name in ("rank_0.jsonl", ".rank_1.json.77", "rank_x.json", "rank_2.json"):
        (folder / name).write_text("{")
    (folder / "rank_3.json").mkdir()

    assert [(mark.rank, mark.step) for mark in last_words(job)] == [(0, 0), (9, 9), (10, 10)]


def test_nothing_there(tmp_path: Path) -> None:
    """A job that says nothing has no curves."""
    nobody = JobDirectory(tmp_path, "1.0")

    assert (last_words(nobody), read_curve(nobody, 0)) == ((), ())
