"""What Slurm says of a job, read; and what a SIGTERM means.

The texts are what scontrol of Slurm 22.05.8 printed in tasks of jobs that were ended in all ways, at their SIGTERM.
"""

from __future__ import annotations

import math
import re
import time

import pytest
from hypothesis import given, strategies as st

from hpc_launch.slurm.job import Ending, JobRecord, ending_of, read_accounting, read_job, read_jobs, read_queue
from tests.unit.slurm_answers import RUNNING


def local(clock: str) -> float:
    """Return a moment of the day of the records."""
    return time.mktime(time.strptime(f"2026-11-22 {clock}", "%Y-%m-%d %H:%M:%S"))


def printed(**changes: str | None) -> str:
    """Return the record of the job with other values, or without a field."""
    text = RUNNING
    for name, value in changes.items():
        text, found = re.subn(rf" {name}=\S*", "" if value is None else f" {name}={value}", text, count=1)
        assert found, name
    return text


def over(**changes: str | None) -> str:
    """Return the record of a job that is being ended."""
    return printed(**{"JobState": "COMPLETING", "EndTime": "2026-11-22T20:29:05"} | changes)


NOW = "2026-11-22T20:29:05"
# No preemption is mentioned for a job that waits for its next start, which is why its end is open again.
AGAIN: dict[str, str | None] = {
    "Restarts": "1",
    "StartTime": NOW,
    "EndTime": "Unknown",
    "RunTime": "00:00:00",
    "PreemptEligibleTime": None,
    "PreemptTime": None,
}

# What stands there at the first SIGTERM, by what was done to the job.
AT_TERM = {
    "the time limit": (over(Reason="TimeLimit"), Ending.TIME_LIMIT),
    "scancel": (over(), Ending.CANCELLED_OR_OVER),
    "a script that ended": (over(), Ending.CANCELLED_OR_OVER),
    "a script that failed": (over(Reason="NonZeroExitCode", ExitCode="3:0"), Ending.SCRIPT_ENDED),
    "scancel --signal=TERM": (printed(), Ending.RUNNING),
    "scancel --signal=TERM of the step": (printed(EndTime="Unknown", TimeLimit="UNLIMITED"), Ending.RUNNING),
    "preemption, REQUEUE": (over(**AGAIN), Ending.REQUEUED),
    "preemption, REQUEUE, of a job with --no-requeue": (over(PreemptTime=NOW, Requeue="0"), Ending.PREEMPTED),
    "preemption, CANCEL": (over(PreemptTime=NOW), Ending.PREEMPTED),
    "preemption with a grace time": (printed(PreemptTime=NOW, EndTime="2026-11-22T20:29:13"), Ending.PREEMPTED),
    "preemption with a grace time, no limit": (printed(PreemptTime=NOW, EndTime="Unknown"), Ending.PREEMPTED),
    "scontrol requeue": (over(**AGAIN), Ending.REQUEUED),
    "a lost node": (over(**AGAIN), Ending.REQUEUED),
    "the time limit, then a requeue": (
        over(**AGAIN | {"Reason": "TimeLimit", "EndTime": "2026-11-22T20:30:05"}),
        Ending.REQUEUED,
    ),
    "a requeue, complete": (printed(**AGAIN | {"JobState": "PENDING", "Reason": "BeginTime"}), Ending.REQUEUED),
}


@pytest.mark.parametrize("what", AT_TERM)
def test_what_a_sigterm_means(what: str) -> None:
    """The record of the job tells the ways of ending apart."""
    text, expected = AT_TERM[what]

    assert expected is ending_of(read_job(text), 0)


def test_a_second_run_is_not_its_own_requeue() -> None:
    """Restarts of the past are none of the present."""
    second = read_job(over(Restarts="1", Reason="TimeLimit"))

    assert Ending.TIME_LIMIT is ending_of(second, 1)
    assert Ending.REQUEUED is ending_of(second, 0)


def test_nothing_known_means_nothing() -> None:
    """A controller that cannot be asked has not said that all is well."""
    assert Ending.UNKNOWN is ending_of(None, 0)


def test_a_job() -> None:
    """Every field of a record is read."""
    expected = JobRecord(
        job_id="9",
        state="RUNNING",
        reason="",
        start=local("20:27:38"),
        end=local("20:28:38"),
        time_limit=60.0,
        preempt_time=None,
        requeue=True,
        restarts=0,
        batch=True,
        partition="main",
        output="/home/ada/train.out",
        nodes="gpu001",
        label="9",
        directory="/home/ada",
    )

    assert expected == read_job(RUNNING)


def test_a_job_that_is_being_signalled_runs() -> None:
    """Seen with 22.05 and 24.11, right after the SIGTERM of a preemption with a GraceTime has come."""
    record = read_job("JobId=1 JobName=x UserId=me(1) JobState=SIGNALING PreemptTime=2026-11-26T09:00:37 Partition=p")

    assert record is not None
    assert (record.state, record.preempt_time is None) == ("RUNNING", False)


@pytest.mark.parametrize(("text", "seconds"), [
    ("00:01:00", 60.0),
    ("1-02:03:04", 93784.0),
    ("365-00:00:00", 31536000.0),
    ("UNLIMITED", math.inf),
    ("INFINITE", math.inf),
    ("Partition_Limit", None),
    ("N/A", None),
])  # fmt: skip
def test_durations(text: str, seconds: float | None) -> None:
    """Time limits are seconds; what has none is infinite, and what is not said is None."""
    record = read_job(printed(TimeLimit=text))

    assert record is not None
    assert seconds == record.time_limit


@pytest.mark.parametrize("text", ["Unknown", "None", "N/A", "(null)", "Tomorr 10:00", ""])
def test_what_is_no_moment(text: str) -> None:
    """A time that Slurm does not know is None."""
    record = read_job(printed(EndTime=text))

    assert record is not None
    assert record.end is None


def test_names_and_paths_are_not_fields() -> None:
    """Neither a job's name nor its command can pretend to be what Slurm says."""
    text = printed(JobName="lr=1 JobState=FAILED Requeue=0", Command="/run.sh Restarts=7 BatchFlag=0")

    assert read_job(RUNNING) == read_job(text)


def test_the_first_of_several_jobs_counts() -> None:
    """A heterogeneous job is listed with all its components, the leader first."""
    assert read_job(RUNNING) == read_job(RUNNING + printed(JobState="FAILED"))


@pytest.mark.parametrize("text", ["", "slurm_load_jobs error: Invalid job id specified"])
def test_no_answer_is_no_record(text: str) -> None:
    """What is not a record is None."""
    assert read_job(text) is None


@given(st.text())
def test_anything_can_be_read(text: str) -> None:
    """No output of Slurm's commands is an exception."""
    read_job(text)
    read_job(f"JobId=1 JobState=RUNNING Restarts={text} TimeLimit={text} EndTime={text} BatchFlag={text}")
    read_queue(f"1|RUNNING|{text}|{text}|{text}|{text}")
    read_accounting(f"1|FAILED|{text}")


def test_what_squeue_prints_is_read() -> None:
    """A line each; the reason may hold anything."""
    text = (
        "12|RUNNING|2026-11-22T20:27:38|2026-11-22T21:27:38|gpu[001-002]|None\n"
        "13_4|PENDING|N/A|N/A||Nodes required for job are DOWN|or reserved\n"
        "\nnoise\n"
    )
    first, second = read_queue(text)

    assert (first.label, first.job_id, first.state, first.nodes, first.reason) == (
        "12",
        "12",
        "RUNNING",
        "gpu[001-002]",
        "",
    )
    assert first.start is not None
    assert first.end == first.start + 3600
    assert (second.label, second.task, second.start) == ("13_4", "4", None)
    assert second.reason == "Nodes required for job are DOWN|or reserved"


ARRAY = """\
JobId=14 ArrayJobId=12 ArrayTaskId=2-3%1 JobName=a UserId=b JobState=PENDING Reason=None\t UserId=ada(1) \
JobState=PENDING Reason=JobArrayTaskLimit ExitCode=0:0 StdErr=/h/x y.out StdIn=/dev/null StdOut=/h/x y.out Power= \n
JobId=13 ArrayJobId=12 ArrayTaskId=1 JobName=new
line JobId=5 JobState=COMPLETED UserId=ada(1) JobState=FAILED Reason=NonZeroExitCode ExitCode=3:9 StdOut=/h/z.out \n
"""


def test_all_tasks_of_an_array_are_read() -> None:
    """Whatever a job's name looks like, and with spaces in file names."""
    found = read_jobs(ARRAY)

    assert [(r.job_id, r.state, r.task, r.exit_code, r.signal, r.output) for r in found] == [
        ("14", "PENDING", "2-3%1", 0, 0, "/h/x y.out"),
        ("13", "FAILED", "1", 3, 9, "/h/z.out"),
    ]


def test_accounting_is_read() -> None:
    text = "12_0|COMPLETED|0:0\n12_1|CANCELLED by 1000|0:15\n12_[2-3]|PENDING|0:0\n13|FAILED|3:0\n\n"
    found = read_accounting(text)

    assert [(r.state, r.task, r.exit_code, r.signal) for r in found] == [
        ("COMPLETED", "0", 0, 0),
        ("CANCELLED", "1", 0, 15),
        ("PENDING", "2-3", 0, 0),
        ("FAILED", "", 3, 0),
    ]
