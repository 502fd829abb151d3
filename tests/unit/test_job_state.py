"""How a job stands: what it says itself, what Slurm says, and what nobody can see."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hpc_launch.inspection.job_state import FRESH, SlurmAnswer, State, judge_job_state
from hpc_launch.records.history_model import Attempt, History, Requeue, Run
from hpc_launch.records.plan_record import PlanRecord
from hpc_launch.slurm.job import JobRecord
from tests.support import mentions

NOW = 1_718_000_500.0


def run(**facts: Any) -> Run:
    """Return a run that began a while ago."""
    return Run(0, PlanRecord(), {}, "12.0.0", 0, NOW - 100, None, None) if not facts else replace(run(), **facts)


def attempt(ending: str = "", *, number: int = 0, code: int = 0, signal: str = "") -> Attempt:
    end = NOW - 10 if ending else None
    return Attempt(number, 0, 2, ("gpu01",), NOW - 90, end, ending, code, "", signal, "", ())


def story(*attempts: Attempt, requeues: int = 0, **facts: Any) -> History:
    """Return the history of a job of one run."""
    asked = tuple(Requeue(NOW - 5, "timeout", "time limit", number, 0, None, True) for number in range(requeues))
    return History(Path("12.0"), runs=(run(**facts),), attempts=attempts, requeues=asked)


def record(state: str, **more: Any) -> SlurmAnswer:
    step = more.pop("step", None)
    return SlurmAnswer(JobRecord("12", state, **more), step=step)


BLIND = SlurmAnswer(blind="nobody there")
FORGOTTEN = SlurmAnswer()
NOTHING = History(Path("12.0"))
UNCONFIRMED = replace(
    story(attempt("failed", code=7)),
    requeues=(Requeue(NOW - 5, "failure", "rank 0 failed", 0, 0, None, unknown=True),),
)
LONG = FRESH + 100

W, R, Q, D = State.WAITING, State.RUNNING, State.REQUEUED, State.DONE
F, S, U = State.FAILED, State.STOPPED, State.UNKNOWN


@pytest.mark.parametrize(
    ("found", "seen", "stands", "words"),
    [
        # It has said so itself.
        (story(attempt("done")), (record("RUNNING"), None, 10), (D, True, 0), "done"),
        (story(attempt("done")), (None, False, 10), (D, True, 0), "done"),
        (story(attempt("done")), (BLIND, None, 10), (D, True, 0), "done"),
        (story(attempt("failed", code=7)), (record("FAILED"), None, 10), (F, True, 7), "failed 7"),
        (
            story(attempt("failed", code=143, signal="SIGTERM")),
            (FORGOTTEN, None, 9),
            (S, True, 143),
            "stopped SIGTERM 143",
        ),
        (story(end=NOW, status=69), (None, None, 1), (F, True, 69), "failed 69"),
        (story(end=NOW, status=0), (None, None, 1), (D, True, 0), "done"),
        # It runs.
        (story(attempt()), (record("RUNNING"), None, 1), (R, False, None), "running"),
        (story(attempt("restart", code=1)), (record("RUNNING"), None, 1), (R, False, None), "running"),
        (story(attempt()), (record("COMPLETING"), None, 1), (R, False, None), "ending"),
        (story(attempt()), (None, True, LONG), (R, False, None), "running"),
        (story(attempt()), (record("RUNNING", step=True), None, LONG), (R, False, None), "running"),
        (story(attempt()), (BLIND, None, 20), (R, False, None), "running 20 s"),
        # Nobody has seen its end.
        (story(attempt()), (BLIND, None, LONG), (U, False, None), "23 min 20 s"),
        (story(attempt()), (None, None, LONG), (U, False, None), "23 min 20 s"),
        (story(attempt()), (FORGOTTEN, None, 20), (U, True, None), "over Slurm 20 s"),
        (story(attempt()), (None, False, 20), (F, True, None), "processes 20 s"),
        (story(attempt()), (record("NODE_FAIL"), None, 20), (F, True, 1), "node fail (Slurm)"),
        (story(attempt()), (record("COMPLETED"), None, 20), (U, True, None), "over Slurm"),
        (story(attempt()), (record("RUNNING", step=False), None, LONG), (F, True, None), "step 23 min 20 s"),
        (story(attempt()), (record("CANCELLED"), None, 20), (S, True, 143), "cancelled (Slurm)"),
        (story(attempt()), (record("SUSPENDED"), None, 20), (R, False, None), "running suspended (Slurm)"),
        # It has not begun.
        (NOTHING, (record("PENDING", reason="None"), None, None), (W, False, None), "waiting"),
        (NOTHING, (record("CANCELLED"), None, None), (S, True, 143), "cancelled (Slurm)"),
        (NOTHING, (record("PENDING", reason="Priority"), None, None), (W, False, None), "waiting (Priority"),
        (NOTHING, (record("RUNNING"), None, None), (R, False, None), "running (Slurm) hpc-launch"),
        (NOTHING, (BLIND, None, None), (U, False, None), ""),
        # It runs again.
        (story(attempt("failed"), requeues=1), (BLIND, None, 9), (Q, False, None), "requeued failed"),
        (
            story(attempt("failed"), requeues=1),
            (record("PENDING", reason="BeginTime"), None, 9),
            (Q, False, None),
            "requeued waits (BeginTime failed",
        ),
        (story(attempt("failed"), requeues=1), (record("RUNNING"), None, 9), (Q, False, None), "about requeued failed"),
        (
            story(attempt("failed"), requeues=1),
            (record("RUNNING", restarts=1), None, 9),
            (R, False, None),
            "started again Slurm failed",
        ),
        (
            story(attempt("failed", code=7), requeues=1),
            (record("CANCELLED"), None, 9),
            (S, True, 7),
            "requeued cancelled (Slurm)",
        ),
        (story(attempt("failed", code=7), requeues=1), (FORGOTTEN, None, 9), (F, True, 7), "requeued Slurm"),
        (
            story(attempt("failed", code=7)),
            (record("PENDING", restarts=1), None, 9),
            (Q, False, None),
            "requeued waits failed 7",
        ),
        (story(attempt()), (record("PENDING", restarts=1), None, 9), (Q, False, None), "requeued waits"),
        (story(attempt()), (record("RUNNING", restarts=1), None, 9), (R, False, None), "started again Slurm"),
        # Nobody had asked for it here.
        (
            story(attempt("done")),
            (record("CANCELLED", restarts=1), None, 9),
            (S, True, 143),
            "requeued cancelled (Slurm)",
        ),
        (
            story(attempt("failed", code=7)),
            (record("FAILED", restarts=1, exit_code=2), None, 9),
            (F, True, 2),
            "requeued failed (Slurm)",
        ),
        (
            story(attempt("failed", code=7)),
            (record("COMPLETED", restarts=1), None, 9),
            (U, True, 0),
            "requeued completed (Slurm)",
        ),
        (story(attempt("done")), (record("COMPLETED", restarts=1), None, 9), (D, True, 0), "done"),
        # A step from outside does not know that the job had been started again.
        (story(attempt("done")), (record("CANCELLED", restarts=1, start=NOW - 200), None, 9), (D, True, 0), "done"),
        (story(attempt()), (record("RUNNING", restarts=1, start=NOW - 200), None, 1), (R, False, None), "running"),
        # Slurm has never said whether it did what it was asked for.
        (UNCONFIRMED, (record("FAILED", exit_code=7), None, 9), (F, True, 7), "failed 7"),
        (UNCONFIRMED, (FORGOTTEN, None, 9), (F, True, 7), "failed 7"),
        (UNCONFIRMED, (record("CANCELLED", restarts=1), None, 9), (S, True, 7), "requeued cancelled (Slurm)"),
        (UNCONFIRMED, (record("RUNNING"), None, 9), (Q, False, None), "about requeued failed"),
        # An earlier requeue says nothing of the run that followed it.
        (story(attempt("done"), requeues=1, restart_count=1), (BLIND, None, 9), (D, True, 0), "done"),
    ],
)
def test_how_a_job_stands(
    found: History,
    seen: tuple[SlurmAnswer | None, bool | None, float | None],
    stands: tuple[State, bool, int | None],
    words: str,
) -> None:
    """Its own word counts first, Slurm's second; without either nobody says that it does not run."""
    slurm, alive, age = seen
    judged = judge_job_state(found, slurm, alive=alive, now=NOW, sign=None if age is None else NOW - age)

    assert stands == (judged.state, judged.over, judged.status)
    assert mentions(judged.words, words), judged.words
    assert ("requeued" in judged.words) == ("requeued" in words), judged.words


@pytest.mark.parametrize(
    ("found", "slurm", "outcome", "expected"),
    [
        (NOTHING, None, 0, (D, "done", 0)),
        (NOTHING, FORGOTTEN, 2, (F, "failed 2", 2)),
        # What the attempt says of its end says more.
        (story(attempt("failed", code=143, signal="SIGTERM")), None, 143, (S, "stopped SIGTERM 143", 143)),
        # Slurm may be late.
        (story(attempt()), record("RUNNING"), 0, (D, "done", 0)),
        # A job from Python runs again as any other.
        (story(attempt("failed", code=7), requeues=1), record("PENDING"), 1, (Q, "requeued waits failed 7", None)),
    ],
)
def test_an_end_that_was_written_down_for_the_whole_job(
    found: History, slurm: SlurmAnswer | None, outcome: int, expected: tuple[State, str, int | None]
) -> None:
    """It counts where the job itself has not said how it ended."""
    judged = judge_job_state(found, slurm, now=NOW, outcome=outcome)
    state, words, status = expected

    assert (judged.state, judged.status) == (state, status)
    assert mentions(judged.words, words), judged.words


def test_what_slurm_has_said_before() -> None:
    """It is believed of a job that has not begun, as far as anybody can see; of a run it is no news."""
    before = SlurmAnswer(JobRecord("12", "PENDING"), blind="nobody there yet")

    assert judge_job_state(NOTHING, before, now=NOW).state is W
    assert judge_job_state(story(attempt()), before, now=NOW, sign=NOW - 20).state is R


@pytest.mark.parametrize(("state", "status"), [("TIMEOUT", 143), ("NODE_FAIL", 1), ("CANCELLED", 143)])
def test_the_exit_status_of_a_job_that_slurm_has_ended(state: str, status: int) -> None:
    """Success is only what Slurm calls so: what it ended before any script could has the status of a signal."""
    assert judge_job_state(NOTHING, record(state), now=NOW).status == status


def test_what_cannot_be_seen_is_never_said_not_to_run() -> None:
    """Whatever the records say short of an end, blindness ends in running or unknown."""
    for found in (story(attempt()), story(attempt("restart")), NOTHING, story(attempt("failed"), requeues=1)):
        for age in (None, 1.0, 1e6):
            judged = judge_job_state(found, BLIND, alive=None, now=NOW, sign=None if age is None else NOW - age)
            assert not judged.over
            assert judged.state in (R, U, Q)


STOPPED = attempt("failed", code=143, signal="SIGTERM")


@pytest.mark.parametrize(
    ("ended", "seen", "words"),
    [
        (replace(STOPPED, job_ending="time limit"), FORGOTTEN, "time limit 143"),
        (replace(STOPPED, job_ending="cancelled", user="alice"), FORGOTTEN, "alice scancel 143"),
        (STOPPED, record("TIMEOUT"), "time limit 143"),
        (STOPPED, record("OUT_OF_MEMORY"), "out of memory 143"),
        (STOPPED, record("NODE_FAIL"), "node failure 143"),
        (STOPPED, record("CANCELLED", cancelled_by="0"), "root scancel 143"),
        (replace(STOPPED, job_ending="time limit"), record("CANCELLED", cancelled_by="0"), "time limit 143"),
        (STOPPED, record("FAILED"), "SIGTERM 143"),
        (replace(STOPPED, job_ending="cancelled or over"), record("CANCELLED"), "cancelled 143"),
        (replace(STOPPED, job_ending="cancelled or over"), record("CANCELLED", cancelled_by="0"), "root scancel 143"),
        (replace(STOPPED, job_ending="cancelled or over"), record("COMPLETED"), "script ended 143"),
        (replace(STOPPED, job_ending="cancelled or over"), record("TIMEOUT"), "time limit 143"),
        (replace(STOPPED, job_ending="cancelled or over"), FORGOTTEN, "scancel script ended 143"),
        # As earlier versions have called it.
        (replace(STOPPED, job_ending="cancelled"), record("FAILED"), "script ended 143"),
        (replace(STOPPED, job_ending="script ended"), record("FAILED"), "script ended 143"),
        (replace(STOPPED, job_ending="cancelled", user="alice"), record("FAILED"), "alice scancel 143"),
        (STOPPED, record("RUNNING"), "SIGTERM 143"),
        (replace(STOPPED, job_ending="signalled"), record("CANCELLED", cancelled_by="0"), "SIGTERM 143"),
        (attempt("failed", code=137), record("OUT_OF_MEMORY"), "137 out of memory"),
        (attempt("failed", code=137), record("FAILED"), "137"),
    ],
)
def test_what_stopped_it_is_said_in_slurm_s_words(ended: Attempt, seen: SlurmAnswer, words: str) -> None:
    """What Slurm said when the signal came counts, else what it says of the job now."""
    judged = judge_job_state(story(ended), seen, now=NOW, sign=NOW - 20)

    assert mentions(judged.words, words), judged.words
