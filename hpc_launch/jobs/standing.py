"""How a job stands, by what its record, its handle and Slurm say. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from hpc_launch.jobs.files import Outcome
from hpc_launch.jobs.place import ALLOCATION, DEBUG, LOCAL, SLURM
from hpc_launch.records import words
from hpc_launch.slurm.job import OVER, WAITING, JobRecord

Phase = Literal["waiting", "running", "ending", "done", "failed", "stopped", "unknown"]

_WHERE = {SLURM: "Slurm", ALLOCATION: "allocation", LOCAL: "this machine", DEBUG: "this process"}

_PHASES: dict[str, Phase] = {
    **dict.fromkeys(WAITING, "waiting"),
    "SUSPENDED": "waiting",
    "STOPPED": "waiting",
    "CONFIGURING": "running",
    "RESIZING": "running",
    "RUNNING": "running",
    "COMPLETING": "ending",
    "SIGNALING": "ending",
    "STAGE_OUT": "ending",
    **dict.fromkeys(OVER, "failed"),
    "COMPLETED": "done",
    "CANCELLED": "stopped",
    "PREEMPTED": "stopped",
    "REVOKED": "stopped",
}

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
}
_LIMITS = ("QOS", "Assoc", "MaxJobs", "MaxCpu", "MaxGRES", "MaxNode", "MaxMem", "JobArrayTaskLimit")


@dataclass(frozen=True)
class Subject:
    """What a view is of.

    Attributes:
        name: what runs: a function, a script.
        job_id: the job's id.
        where: what runs it, in words: `Slurm`, `this machine`.
    """

    name: str
    job_id: str
    where: str


@dataclass(frozen=True)
class Standing:
    """How a job stands, as whoever runs it says: Slurm, or the processes on this machine.

    Attributes:
        state: in Slurm's words: PENDING, RUNNING, COMPLETED, FAILED and so on; empty where nobody knows.
        reason: why it waits, in Slurm's words.
        nodes: its nodes; empty while it has none.
        nodes_asked: how many it asks for; 0 where that is not known.
        start: when it began, or is expected to, in seconds since the epoch; None where that is open.
        end: when it will end at the latest, or did; None where that is open.
        note: what a person should know about this: that Slurm does not answer, for instance.
        ended: it has ended for certain, whatever its state is called.
    """

    state: str = ""
    reason: str = ""
    nodes: tuple[str, ...] = ()
    nodes_asked: int = 0
    start: float | None = None
    end: float | None = None
    note: str = ""
    ended: bool = False

    @property
    def phase(self) -> Phase:
        """What its state comes to."""
        return _PHASES.get(self.state, "unknown")

    @property
    def over(self) -> bool:
        """Whether it will not change any more, by itself."""
        return self.ended or self.phase in ("done", "failed", "stopped")


def explain(reason: str) -> str:
    """Say what Slurm's reason for waiting means; itself where that is plain. Pure."""
    if reason in ("", "None"):
        return ""
    means = _REASONS.get(reason.partition(",")[0].strip())
    if means is None and reason.startswith(_LIMITS):
        means = "a limit of yours, or of your group, is reached"
    return f"{reason}: {means}" if means else reason


def subject(job_id: str, submitted: Mapping[str, Any]) -> Subject:
    """What a job is, and what runs it.

    Args:
        job_id: its id.
        submitted: the record of its submission; empty where that cannot be read.
    """
    cluster = str(submitted.get("cluster", SLURM))
    return Subject(str(submitted.get("name") or "job"), job_id, _WHERE.get(cluster, cluster))


def standing(
    state: str, submitted: Mapping[str, Any], record: JobRecord | None, outcome: Outcome | None, *, done: bool
) -> Standing:
    """How a job stands.

    Args:
        state: in Slurm's words.
        submitted: the record of its submission; empty where that cannot be read.
        record: what Slurm knows of it.
        outcome: what its first task has left, when it ended.
        done: it has ended for certain.
    """
    end = record.end if record is not None else None
    if outcome is not None and outcome.time:
        end = outcome.time
    return Standing(
        state=state,
        reason=record.reason if record is not None else "",
        nodes=words.unfold_hosts(record.nodes) if record is not None else (),
        nodes_asked=_number(submitted.get("resources", {}), "nodes"),
        start=record.start if record is not None else _moment(submitted.get("submitted")),
        end=end,
        ended=done,
    )


def _number(values: Any, name: str) -> int:
    found = values.get(name) if isinstance(values, dict) else None
    return found if isinstance(found, int) else 0


def _moment(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) else None
