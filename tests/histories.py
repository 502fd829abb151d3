"""Job directories that look as if jobs had run, of any size, made in no time."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hpc_launch.records import events
from hpc_launch.records.directory import JobDirectory

GIB = 1 << 30

# What the ranks that follow have in their logs, and what their agents say of them.
COLLATERAL = (
    "RuntimeError: [../third_party/gloo/gloo/transport/tcp/pair.cc:538] Connection closed by peer [10.0.0.1]:1234"
)


@dataclass(frozen=True)
class Made:
    """What a history is to be like.

    Attributes:
        nodes: how many nodes, named gpu001 and so on.
        per_node: workers of each node.
        attempts: how many attempts.
        requeues: after which of them the job was requeued.
        ending: of the last attempt: `done`, `failed`, `stopped`, or empty while it runs.
        begin: when the job began.
        length: seconds of one attempt.
        fails: the rank that fails first, by attempt; rank 7 modulo the world size without one.
        exception: what it raises: type and message; None for death by SIGKILL from the OOM killer.
        offsets: seconds that the clocks of nodes are ahead, by node, from 0.
        output: lines that each rank has in its files, in each attempt.
    """

    nodes: int = 2
    per_node: int = 4
    attempts: int = 2
    requeues: Sequence[int] = ()
    ending: str = "done"
    begin: float = 1_718_000_000.0
    length: float = 60.0
    fails: dict[int, int] = field(default_factory=dict)
    exception: tuple[str, str] | None = ("ValueError", "loss is nan")
    offsets: dict[int, float] = field(default_factory=dict)
    output: int = 0

    @property
    def world_size(self) -> int:
        """How many ranks there are."""
        return self.nodes * self.per_node


def write(path: Path, made: Made | None = None, **facts: Any) -> Path:
    """Write a job directory; returns its path, for `history.read`.

    Args:
        path: where: `<log_dir>/<job>`.
        made: what it is to be like.
        facts: the same, one by one.
    """
    made = made or Made(**facts)
    job = JobDirectory(path.parent, path.name)
    for attempt in range(made.attempts):
        job.attempt(attempt).mkdir(parents=True, exist_ok=True)
        if attempt == 0 or attempt - 1 in made.requeues:
            _write_plan(job, made, attempt)
    for node in range(made.nodes):
        host = host_of(node)
        job.events(host).parent.mkdir(parents=True, exist_ok=True)
        lines = (json.dumps(event) for event in _events(made, node))
        job.events(host).write_text("".join(f"{line}\n" for line in lines))
        for attempt in range(made.attempts if made.output else 0):
            _write_output(job, made, attempt, node)
    _write_ledger(job, made)
    _write_progress(job, made)
    job.last_plan.unlink(missing_ok=True)
    first = max([0, *(number + 1 for number in made.requeues if number + 1 < made.attempts)])
    job.last_plan.symlink_to(f"attempt_{first}/job.json")
    return path


def host_of(node: int) -> str:
    """The name of a node."""
    return f"gpu{node + 1:03d}"


def begin_of(made: Made, attempt: int) -> float:
    """When an attempt began."""
    pauses = sum(number < attempt for number in made.requeues)
    return made.begin + attempt * (made.length + 2) + 30 * pauses


def first_failure(made: Made, attempt: int) -> int:
    """The rank that fails first in an attempt that fails."""
    return made.fails.get(attempt, 7 % made.world_size)


def ending_of(made: Made, attempt: int) -> str:
    """How an attempt ends."""
    if attempt == made.attempts - 1:
        return made.ending
    return "failed" if attempt in made.requeues else "restart"


def _events(made: Made, node: int) -> list[dict[str, Any]]:
    """The events of one node, by its own clock."""
    host, offset = host_of(node), made.offsets.get(node, 0.0)
    found: list[dict[str, Any]] = []

    def say(time: float, event: str, **more: Any) -> None:
        found.append({"time": round(time + offset, 3), "event": event, "agent": node, **more})

    for attempt in range(made.attempts):
        begin = begin_of(made, attempt)
        restarts = sum(number < attempt for number in made.requeues)
        if attempt == 0 or attempt - 1 in made.requeues:
            versions = {"hpc-launch": "0.1", "python": "3.11.2", "torch": "2.13.0"}
            about = {"node_rank": node, "agents": made.nodes, "pid": 1000 + node, "run_id": f"4711.0.{restarts}"}
            say(
                begin - 1,
                events.RUN,
                host=host,
                **about,
                first_attempt=attempt,
                restart_count=restarts,
                versions=versions,
            )
        common = {"attempt": attempt}
        say(begin, events.ATTEMPT, **common, host=host, world_size=made.world_size, agents=made.nodes)
        say(begin + 0.01, events.CLOCK, **common, offset=offset, error=0.001)
        for local in range(made.per_node):
            about = {"rank": node * made.per_node + local, "local_rank": local}
            say(
                begin + 0.1,
                events.WORKER_STARTED,
                **common,
                **about,
                pid=2000 + 100 * node + local,
                device=f"GPU {local}",
            )
        ending = ending_of(made, attempt)
        end = begin + made.length
        if not ending:
            say(begin + made.length / 2, events.HEARTBEAT, **common, running=made.per_node, waiting=[])
            continue
        if ending == "stopped":
            say(end - 1, events.NOTICE, **common, signal="SIGUSR1", number=1)
        ended = [_ended(made, attempt, node, local, ending) for local in range(made.per_node)]
        for moment, facts in sorted(ended, key=lambda pair: pair[0]):
            say(end + moment, events.WORKER_ENDED, **common, **facts)
        say(end + 0.05, events.ROUND_ENDED, **common, **_round_end(made, attempt, ending))
        if attempt == made.attempts - 1 or attempt in made.requeues:
            status = _round_end(made, attempt, ending)["status"]
            say(end + 0.6, events.RUN_ENDED, **common, status=status, cause="")
    return found


def _ended(made: Made, attempt: int, node: int, local: int, ending: str) -> tuple[float, dict[str, Any]]:
    """How one worker ended: seconds after the first failure, and the facts."""
    rank = node * made.per_node + local
    usage = {"user": 40.0 + rank % 7, "system": 1.5, "max_rss": 3 * GIB + rank}
    facts: dict[str, Any] = {"rank": rank, "local_rank": local, "exitcode": 0, "told": "", "usage": usage}
    if ending == "done":
        return 0.01 * (rank % 5), facts
    if ending == "stopped":
        return 0.3, {**facts, "exitcode": -15, "told": "SIGTERM", "failure": {"lines": ["stopping"]}}
    if rank == first_failure(made, attempt):
        return 0.0, {**facts, **_first(made)}
    if rank % 3 == 0:
        return 0.2, {**facts, "exitcode": -15, "told": "SIGTERM", "failure": {}}
    kind, _, message = COLLATERAL.partition(": ")
    exception = {"type": kind, "message": message, "where": "train.py:30", "source": "hook"}
    return 0.02 + 0.001 * (rank % 9), {
        **facts,
        "exitcode": 1,
        "failure": {"exception": exception, "lines": [COLLATERAL]},
    }


def _first(made: Made) -> dict[str, Any]:
    if made.exception is None:
        limit = "the kernel killed it: the job's memory limit of 8.0 GiB was reached"
        return {"exitcode": -9, "failure": {"oom": limit, "lines": ["epoch 3"]}}
    kind, message = made.exception
    exception = {"type": kind, "message": message, "where": "train.py:12", "source": "hook"}
    lines = ["Traceback (most recent call last):", '  File "train.py", line 12, in main', f"{kind}: {message}"]
    return {"exitcode": 1, "failure": {"exception": exception, "lines": lines}}


def _round_end(made: Made, attempt: int, ending: str) -> dict[str, Any]:
    if ending == "done":
        return {"ending": "done", "by": host_of(0), "status": 0, "cause": "", "signal": ""}
    if ending == "stopped":
        return {
            "ending": "failed",
            "by": host_of(0),
            "status": 143,
            "cause": f"stopped by SIGTERM on {host_of(0)}",
            "signal": "SIGTERM",
        }
    rank = first_failure(made, attempt)
    node, local = divmod(rank, made.per_node)
    killed = made.exception is None
    how = "SIGKILL" if killed else "exit status 1"
    return {
        "ending": ending,
        "by": host_of(node),
        "status": 137 if killed else 1,
        "cause": f"rank {rank} on {host_of(node)} (local rank {local}) failed with {how}",
        "signal": "",
    }


def _write_plan(job: JobDirectory, made: Made, attempt: int) -> None:
    plan = {
        "run_id": f"4711.0.{sum(number < attempt for number in made.requeues)}",
        "script": ["train.py", "--lr", "1e-3"],
        "hosts": f"gpu[001-{made.nodes:03d}]",
        "derived": {"nnodes": {"value": str(made.nodes), "origin": "SLURM_STEP_NODELIST"}},
        "settings": {"max_restarts": {"value": str(made.attempts), "origin": "flag"}},
        "warnings": [],
    }
    job.plan(attempt).write_text(json.dumps(plan, indent=2))


def _write_output(job: JobDirectory, made: Made, attempt: int, node: int) -> None:
    for local in range(made.per_node):
        rank = node * made.per_node + local
        files = job.rank(attempt, host_of(node), rank)
        files.out.parent.mkdir(parents=True, exist_ok=True)
        files.out.write_text("".join(f"rank {rank} step {number} loss 0.1\n" for number in range(made.output)))
        _, facts = _ended(made, attempt, node, local, ending_of(made, attempt) or "done")
        files.err.write_text("".join(f"{line}\n" for line in facts.get("failure", {}).get("lines", [])))


def _write_ledger(job: JobDirectory, made: Made) -> None:
    lines = [
        json.dumps(
            {
                "time": begin_of(made, attempt) + made.length + 1,
                "reason": "timeout",
                "cause": "time limit",
                "restart_count": number,
                "attempt": attempt,
                "step": 100.0 * (attempt + 1),
                "progressed": True,
                "counted": True,
            }
        )
        for number, attempt in enumerate(sorted(made.requeues))
    ]
    if lines:
        job.ledger.write_text("".join(f"{line}\n" for line in lines))


def _write_progress(job: JobDirectory, made: Made) -> None:
    last = made.attempts - 1
    mark = {
        "time": begin_of(made, last) + made.length / 2,
        "attempt": last,
        "step": 100 * made.attempts,
        "total": 1000,
        "values": {"loss": 0.125},
    }
    job.progress(0).parent.mkdir(parents=True, exist_ok=True)
    job.progress(0).write_text(json.dumps(mark))
