"""The report of a run that failed: the first node waits for what the others write down, and finds the root cause."""

from __future__ import annotations

import time
from collections.abc import Sequence

from hpc_launch import codec, slow_storage
from hpc_launch.records import events, history, nodes_to_exclude, regular_files, root_cause
from hpc_launch.records.directory import JobDirectory
from hpc_launch.records.nodes_to_exclude import BadNode
from hpc_launch.records.root_cause import RootCause

# How often to look whether the others have written.
_LOOK_SECONDS = 0.1


def await_root_cause(
    job: JobDirectory, attempt: int, hosts: dict[str, int], seconds: float
) -> tuple[RootCause | None, Sequence[BadNode]]:
    """Find out why an attempt failed, when all agents have written down what they know.

    Args:
        job: the job directory.
        attempt: the number of the attempt.
        hosts: all nodes, each with its number of agents.
        seconds: how many to wait for them at most; one may be gone, or not share the directory.

    Returns:
        Why, None where the attempt cannot be found in the directory; and the nodes that have shown to be bad.
    """
    place = f"the log directory {job.root}"
    return slow_storage.wait_for(lambda: _root_cause(job, attempt, hosts, seconds), place, soon=2 * seconds)


def _root_cause(
    job: JobDirectory, attempt: int, hosts: dict[str, int], seconds: float
) -> tuple[RootCause | None, Sequence[BadNode]]:
    deadline = time.monotonic() + seconds
    waited_for = list(hosts)
    while waited_for and time.monotonic() < deadline:
        waited_for = [host for host in waited_for if _missing(job, attempt, host, hosts[host])]
        if waited_for:
            time.sleep(_LOOK_SECONDS)
    told = history.read_history(job.path)
    found = next((one for one in told.attempts if one.number == attempt), None)
    return root_cause.root_cause_of(told, found) if found is not None else None, nodes_to_exclude.find_bad_nodes(told)


def _missing(job: JobDirectory, attempt: int, host: str, agents: int) -> bool:
    """Whether agents of a node have more to say about an attempt."""
    data = regular_files.content(job.events(host))
    if not isinstance(data, bytes):
        return True
    mark = b'"attempt": %d,' % attempt
    kinds = [
        facts.get("event")
        for line in data.splitlines()
        if mark in line and (facts := codec.parse(line)) is not None and facts.get("attempt") == attempt
    ]
    ended = kinds.count(events.ROUND_ENDED) >= agents
    return not ended or kinds.count(events.WORKER_ENDED) < kinds.count(events.WORKER_STARTED)
