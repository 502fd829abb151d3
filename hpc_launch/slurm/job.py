"""What Slurm says of a job, and what that means for a run. Pure.

Times are seconds since the epoch, durations are seconds, and `math.inf` is what Slurm calls UNLIMITED. The forms are
those of scontrol(1) from Slurm 20.11 on, and of squeue(1) and sacct(1) as `commands` asks them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum

from hpc_launch.slurm.output_fields import fields, leading_number, word
from hpc_launch.slurm.slurm_times import read_moment, read_time_limit

# A job's name can have spaces, line breaks and what looks like fields.
_NAME = re.compile(r" JobName=.*? UserId=", re.DOTALL)
_JOB_LINE = re.compile(r"^JobId=.*$", re.MULTILINE)
_OUTPUT = re.compile(r" StdOut=(.*?)(?= [A-Z]\w*=|\s*$)")
_WORK_DIRECTORY = re.compile(r" WorkDir=(.*?)(?= [A-Z]\w*=|\s*$)")

# What a script gets that Slurm ends: 128 + SIGTERM. Slurm's own number for it is 0 where there was no script yet.
_ENDED_BY_SLURM = 143
_INTERRUPTED = frozenset({"CANCELLED", "DEADLINE", "PREEMPTED", "TIMEOUT"})

_RUNNING = frozenset({"RUNNING", "SUSPENDED", "CONFIGURING", "RESIZING", "SIGNALING", "STAGE_OUT", "STOPPED"})

# Slurm's reasons in other words (squeue(1), JOB REASON CODES); those that are not here speak for themselves.
_REASONS = {
    "Resources": "first in the queue, until enough nodes are free",
    "Priority": "others are first",
    "Dependency": "another job must end first",
    "DependencyNeverSatisfied": "the job that it waits for has failed: it will never start",
    "BeginTime": "its start time is yet to come",
    "JobHeldUser": "held; `scontrol release` lets it go",
    "JobHeldAdmin": "held by an administrator",
    "Licenses": "a licence is not free",
    "Reservation": "its reservation has not begun",
    "ReqNodeNotAvail": "a node that it needs is down, drained or reserved",
    "PartitionDown": "the partition is down",
    "PartitionInactive": "the partition starts no jobs now",
    "PartitionNodeLimit": "more nodes than the partition allows: it will not start",
    "PartitionTimeLimit": "a longer time limit than the partition allows: it will not start",
    "PartitionConfig": "the partition does not have what it asks for",
    "BadConstraints": "no node has what it asks for: it will not start",
    "NodeDown": "a node that it needs is down",
    "Cleaning": "its last run is being cleaned up",
    "JobArrayTaskLimit": "as many tasks of the array run as it may have at a time (`--array=...%N`)",
}
# More tasks no array has (MaxArraySize, slurm.conf(5)).
_MOST_TASKS = 4_000_001

_LIMITS = ("QOS", "Assoc", "MaxJobs", "MaxCpu", "MaxGRES", "MaxNode", "MaxMem")


WAITING = frozenset({"PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "RESV_DEL_HOLD"})
"""States of a job that has not begun, or not begun again."""

OVER = frozenset(
    {"BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "TIMEOUT"}
    | {"REVOKED"}
)
"""States of a job that does not change any more, by itself."""


@dataclass(frozen=True)
class JobRecord:
    """What the controller knows of a job.

    Attributes:
        state: RUNNING and so on. A job that is being ended is COMPLETING, whatever it is going to be.
        reason: why it is in that state; `None` in Slurm's words where there is nothing to say.
        start: when it began; the present where it has been requeued and not begun again.
        end: when it will end, or did; None while that is open. It moves when the time limit is changed, and to the end
            of the grace time in a preemption.
        time_limit: seconds; None where unknown.
        preempt_time: when it was preempted; None where it was not.
        requeue: whether it may be requeued.
        restarts: how often it was; one more than SLURM_RESTART_COUNT as soon as Slurm has accepted a requeue.
        batch: whether it has a batch script.
        exit_code: the status that it ended with, and `signal` the signal that ended it; 0 until then.
        output: the file that it writes to; empty where it has none.
        task: its numbers in the array that it is of, such as `3` or `4-7%2`; empty where it is of none.
        nodes: its nodes, as a host list; empty where it has none.
        label: its id as users see it, `12_3` for a task of an array.
        heterogeneous: whether it is a component of a heterogeneous job.
        directory: its working directory; where it was submitted, unless --chdir says otherwise.
        submitted: when it was submitted, where that was asked.
        cancelled_by: the number of the user who cancelled it, where accounting has said so.
    """

    job_id: str
    state: str
    reason: str = ""
    start: float | None = None
    end: float | None = None
    time_limit: float | None = None
    preempt_time: float | None = None
    requeue: bool = False
    restarts: int = 0
    batch: bool = False
    partition: str = ""
    exit_code: int = 0
    signal: int = 0
    output: str = ""
    task: str = ""
    nodes: str = ""
    label: str = ""
    heterogeneous: bool = False
    directory: str = ""
    submitted: float | None = None
    cancelled_by: str = ""

    @property
    def state_in_words(self) -> str:
        """Its state as it can stand in a sentence: `out of memory`."""
        return self.state.lower().replace("_", " ")

    @property
    def may_run_more(self) -> bool:
        """Whether its batch script is at work, which may start another run when one has ended."""
        return self.batch and self.state not in OVER | WAITING

    @property
    def exit_status(self) -> int:
        """The status of a job that has ended: that of its script, 128+N for signal N.

        Success is only what Slurm calls so. A job that it ended before a script could is 143, as one that it
        interrupted.
        """
        status = 128 + self.signal if self.signal else self.exit_code
        if self.state == "COMPLETED":
            return status
        return status or (_ENDED_BY_SLURM if self.state in _INTERRUPTED else 1)


class Ending(Enum):
    """What a SIGTERM means, by the controller's word."""

    TIME_LIMIT = "time limit"
    PREEMPTED = "preemption"
    CANCELLED = "cancelled"
    """By scancel."""
    SCRIPT_ENDED = "script ended"
    """Its batch script has ended, or what salloc runs."""
    CANCELLED_OR_OVER = "cancelled or over"
    """By scancel, or its script has ended without an error: Slurm says the same of both while it ends the job."""
    NODE_FAILED = "node failure"
    OUT_OF_MEMORY = "out of memory"
    REQUEUED = "requeued by Slurm"
    """Somebody has had it requeued: a preemption with PreemptMode=REQUEUE, `scontrol requeue`, a lost node."""
    RUNNING = "signalled"
    """The job goes on: only a signal was sent, or only the step was cancelled."""
    UNKNOWN = "unknown"

    @property
    def is_for_good(self) -> bool:
        """Whether the job is over: it was cancelled, or its script has ended. hpc-launch does not requeue it then."""
        return self in (Ending.CANCELLED, Ending.SCRIPT_ENDED, Ending.CANCELLED_OR_OVER)


_ENDINGS = {
    "TimeLimit": Ending.TIME_LIMIT,
    "TIMEOUT": Ending.TIME_LIMIT,
    "DeadLine": Ending.TIME_LIMIT,
    "DEADLINE": Ending.TIME_LIMIT,
    "NodeDown": Ending.NODE_FAILED,
    "NODE_FAIL": Ending.NODE_FAILED,
    "OutOfMemory": Ending.OUT_OF_MEMORY,
    "OUT_OF_MEMORY": Ending.OUT_OF_MEMORY,
    "CANCELLED": Ending.CANCELLED,
    "NonZeroExitCode": Ending.SCRIPT_ENDED,
    # By a signal; and so, in Slurm 22.05, where steps were at work, so that its script was launched.
    "RaisedSignal": Ending.SCRIPT_ENDED,
    "JobLaunchFailure": Ending.SCRIPT_ENDED,
    "COMPLETED": Ending.SCRIPT_ENDED,
    "FAILED": Ending.SCRIPT_ENDED,
}


def ending_of(record: JobRecord | None, restart_count: int) -> Ending:
    """Say what the controller means by a SIGTERM that has just come.

    All that Slurm changes stands in the record before the first SIGTERM is sent, so that asking once is enough (tried
    with 22.05 and 24.11). A preempted job with a grace time is still RUNNING.

    Args:
        record: the job, asked after the signal.
        restart_count: the SLURM_RESTART_COUNT of this run.
    """
    if record is None:
        return Ending.UNKNOWN
    going_on = record.state in _RUNNING
    if record.state in WAITING or (record.restarts > restart_count and not going_on):
        return Ending.REQUEUED
    if record.preempt_time is not None or record.state == "PREEMPTED":
        return Ending.PREEMPTED
    if going_on:
        return Ending.RUNNING
    # A job that is being ended is COMPLETING, and only the reason tells what it is going to be (slurm_protocol_defs.c).
    said = (record.state, record.reason.partition(":")[0])
    found = (ending for word, ending in _ENDINGS.items() if word in said)
    return next(found, Ending.CANCELLED_OR_OVER)


def explain(reason: str) -> str:
    """Say what Slurm's reason for waiting means; itself where that is plain."""
    if reason in ("", "None"):
        return ""
    means = _REASONS.get(reason.partition(",")[0].strip())
    if means is None and reason.startswith(_LIMITS):
        means = "a limit of yours, or of your group, is reached"
    return f"{reason}: {means}" if means else reason


def task_numbers(task: str) -> tuple[int, ...]:
    """The numbers that an array's record stands for: `3`, or those of `4-7,9%2`, `[1-3]` and `0-10:5`.

    What is no number, as the end of a list that Slurm has cut off, is passed over.
    """
    found: dict[int, None] = {}
    for part in task.partition("%")[0].strip("[]").split(","):
        span, _, step = part.partition(":")
        low, dash, high = span.partition("-")
        if low.isdecimal() and (high.isdecimal() or not dash):
            numbers = range(int(low), int(high or low) + 1, max(int(step), 1) if step.isdecimal() else 1)
            found.update(dict.fromkeys(numbers[: _MOST_TASKS - len(found)]))
    return tuple(found)


def read_job(text: str) -> JobRecord | None:
    """Read the first job of `scontrol --oneliner show job`; None where there is none.

    That of a heterogeneous job begins with its leader.
    """
    return next(iter(read_jobs(text)), None)


def read_jobs(text: str) -> tuple[JobRecord, ...]:
    """Read all jobs of `scontrol --oneliner show job`: several for an array, or a heterogeneous job."""
    records = (_job(line) for line in _JOB_LINE.findall(_NAME.sub(" UserId=", text)))
    return tuple(record for record in records if record is not None)


def _state(text: str) -> str:
    """A state. While a signal is on its way Slurm says SIGNALING: of a preempted job, too, that asks what it means."""
    return "RUNNING" if text == "SIGNALING" else text


def _job(line: str) -> JobRecord | None:
    found = fields(line)
    if "JobState" not in found:
        return None
    code, _, signal = found.get("ExitCode", "").partition(":")
    output, directory = _OUTPUT.search(line), _WORK_DIRECTORY.search(line)
    array, task = found.get("ArrayJobId", ""), found.get("ArrayTaskId", "")
    return JobRecord(
        job_id=found.get("JobId", ""),
        state=_state(found["JobState"]),
        reason=word(found.get("Reason", "")),
        start=read_moment(found.get("StartTime", "")),
        end=read_moment(found.get("EndTime", "")),
        time_limit=read_time_limit(found.get("TimeLimit", "")),
        preempt_time=read_moment(found.get("PreemptTime", "")),
        requeue=found.get("Requeue") == "1",
        restarts=int(leading_number(found.get("Restarts", ""), 0)),
        batch=found.get("BatchFlag", "0") != "0",
        partition=word(found.get("Partition", "")),
        exit_code=int(leading_number(code, 0)),
        signal=int(leading_number(signal, 0)),
        output=word(output[1]) if output else "",
        task=found.get("ArrayTaskId", ""),
        nodes=word(found.get("NodeList", "")),
        label=f"{array}_{task}" if array and task.isdigit() else found.get("JobId", ""),
        heterogeneous="HetJobId" in found,
        directory=word(directory[1]) if directory else "",
    )


def read_queue(text: str) -> tuple[JobRecord, ...]:
    """Read what `squeue` prints of several jobs; `label` is the id of each, `12_3` for a task of an array."""
    found = []
    for line in text.splitlines():
        job, state, start, end, nodes, reason = (*line.strip().split("|", 5), "", "", "", "", "")[:6]
        if state:
            found.append(
                JobRecord(
                    job.partition("_")[0],
                    state,
                    reason=word(reason),
                    start=read_moment(start),
                    end=read_moment(end),
                    nodes=word(nodes),
                    task=job.partition("_")[2],
                    label=job,
                )
            )
    return tuple(found)


def read_own_jobs(text: str) -> tuple[JobRecord, ...]:
    """Read what `squeue` prints of a user's jobs (`commands.show_own_jobs`)."""
    rows = (line.strip().split("|") for line in text.splitlines())
    return tuple(
        JobRecord(row[0], row[1], label=row[0], submitted=read_moment(row[2]))
        for row in rows
        if len(row) == 3 and row[0].isdigit()  # noqa: PLR2004 - the fields of its line
    )


def read_accounting(text: str) -> tuple[JobRecord, ...]:
    """Read what `sacct` prints of a job: its state, without the reason.

    A job that was cancelled is `CANCELLED by 1000` there, and accounting takes 128 off a status from 128 on.
    """
    found = []
    for line in text.splitlines():
        job, state, code = (*line.strip().split("|"), "", "")[:3]
        if state:
            status, _, signal = code.partition(":")
            task = job.partition("_")[2].strip("[]")
            numbers = int(leading_number(status, 0)), int(leading_number(signal, 0))
            word, _, by = state.partition(" by ")
            found.append(
                JobRecord(
                    job,
                    word.split()[0],
                    exit_code=numbers[0],
                    signal=numbers[1],
                    task=task,
                    label=job,
                    cancelled_by=by.strip(),
                )
            )
    return tuple(found)
