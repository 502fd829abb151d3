"""How a submitted job stands, of what its record, its handle and Slurm say. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hpc_launch import hostlist
from hpc_launch.errors import HostlistError
from hpc_launch.jobs.files import Outcome
from hpc_launch.jobs.place import ALLOCATION, DEBUG, LOCAL, SLURM
from hpc_launch.jobs.view import Standing, Subject
from hpc_launch.slurm.controller import JobRecord

_WHERE = {SLURM: "Slurm", ALLOCATION: "allocation", LOCAL: "this machine", DEBUG: "this process"}


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
        nodes=_expanded(record.nodes) if record is not None else (),
        nodes_asked=_number(submitted.get("resources", {}), "nodes"),
        start=record.start if record is not None else _moment(submitted.get("submitted")),
        end=end,
        ended=done,
    )


def _expanded(nodes: str) -> tuple[str, ...]:
    try:
        return hostlist.expand(nodes) if nodes else ()
    except HostlistError:
        return (nodes,)


def _number(values: Any, name: str) -> int:
    found = values.get(name) if isinstance(values, dict) else None
    return found if isinstance(found, int) else 0


def _moment(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) else None
