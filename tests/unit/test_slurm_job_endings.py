"""What Slurm's record says of a stop signal, and the words for it."""

from __future__ import annotations

import pytest

from hpc_launch.records.failure_messages import stop_words
from hpc_launch.slurm.job import Ending, JobRecord, ending_of, read_accounting
from tests.support import mentions


@pytest.mark.parametrize(
    ("record", "ending"),
    [
        (JobRecord("7", "COMPLETING", "TimeLimit"), Ending.TIME_LIMIT),
        (JobRecord("7", "TIMEOUT"), Ending.TIME_LIMIT),
        (JobRecord("7", "DEADLINE"), Ending.TIME_LIMIT),
        (JobRecord("7", "COMPLETING", "NodeDown"), Ending.NODE_FAILED),
        (JobRecord("7", "NODE_FAIL"), Ending.NODE_FAILED),
        (JobRecord("7", "COMPLETING", "OutOfMemory"), Ending.OUT_OF_MEMORY),
        (JobRecord("7", "OUT_OF_MEMORY"), Ending.OUT_OF_MEMORY),
        (JobRecord("7", "COMPLETING", "None"), Ending.CANCELLED_OR_OVER),
        (JobRecord("7", "COMPLETING", "NonZeroExitCode", exit_code=3), Ending.SCRIPT_ENDED),
        (JobRecord("7", "COMPLETING", "JobLaunchFailure", signal=9), Ending.SCRIPT_ENDED),
        (JobRecord("7", "COMPLETING", "RaisedSignal:9(Killed)", signal=9), Ending.SCRIPT_ENDED),
        (JobRecord("7", "COMPLETED"), Ending.SCRIPT_ENDED),
        (JobRecord("7", "FAILED", "NonZeroExitCode"), Ending.SCRIPT_ENDED),
        (JobRecord("7", "CANCELLED"), Ending.CANCELLED),
        (JobRecord("7", "COMPLETING", "None", preempt_time=1.0), Ending.PREEMPTED),
        (JobRecord("7", "RUNNING", "NodeDown"), Ending.RUNNING),
        (JobRecord("7", "COMPLETING", "NodeDown", restarts=1), Ending.REQUEUED),
        (None, Ending.UNKNOWN),
    ],
)
def test_what_a_signal_means(record: JobRecord | None, ending: Ending) -> None:
    """By the state where the job is over, and by the reason while it is being ended."""
    assert ending_of(record, 0) is ending


def test_every_ending_has_words() -> None:
    """Those that Slurm knows nothing of are called by the signal; who cancelled is named where that is known."""
    said = {ending: stop_words("SIGTERM", ending.value) for ending in Ending}
    assert len({*said.values()}) == len(Ending) - 1
    assert said[Ending.RUNNING] == said[Ending.UNKNOWN] == stop_words("SIGTERM")
    assert mentions(stop_words("SIGTERM", Ending.CANCELLED.value, "alice"), "alice scancel")
    assert "scancel" not in said[Ending.SCRIPT_ENDED]


def test_who_cancelled_is_accounting_s_to_say() -> None:
    """It has a number of a user."""
    [by_somebody, ended] = read_accounting("7|CANCELLED by 1000|0:15\n8|TIMEOUT|0:0\n")
    assert (by_somebody.state, by_somebody.cancelled_by) == ("CANCELLED", "1000")
    assert (ended.state, ended.cancelled_by) == ("TIMEOUT", "")
