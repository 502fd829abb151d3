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


class Losses:
    """Writes a job that loses nodes, with two workers on each: the first node among them, and a rack of two.

    gpu003 has a device that is broken, and the spare gpu006 takes its place. gpu001 leads, and is cut off; it says that
    all others are lost, and comes back in the end. gpu004 and gpu005 are lost at once, of which only one is noticed.

    Attributes:
        begin: when the job began; each of its attempts but the last one has a minute.
        ending: of the last attempt: `done`, or empty while it runs.
    """

    BROKEN = "CUDA error: uncorrectable ECC error encountered"
    ATTEMPTS: Sequence[tuple[Sequence[int], Sequence[int]]] = (
        ((1, 2, 3, 4, 5), (6,)),
        ((1, 2, 4, 5, 6), (3,)),
        ((2, 3, 4, 5, 6), ()),
        ((2, 3, 6), ()),
    )

    def __init__(self, path: Path, ending: str = "done", begin: float = 1_718_000_000.0) -> None:
        self.job = JobDirectory(path.parent, path.name)
        self.begin, self.ending = begin, ending
        self._events: dict[int, list[dict[str, Any]]] = {node: [] for node in range(1, 7)}

    def write(self) -> Path:
        """Write it; returns the path of the job directory."""
        for node in range(1, 7):
            host = f"gpu{node:03}"
            about = {"host": host, "node_rank": node - 1, "agents": 5, "pid": node, "run_id": "1.0.0"}
            self._say(node, -1, events.RUN, **about, first_attempt=0, restart_count=0, versions={"torch": "2.13.0"})
        for number, (active, spares) in enumerate(self.ATTEMPTS):
            self._attempt(number, active, spares)
        self._nodes()
        for node, found in self._events.items():
            file = self.job.events(f"gpu{node:03}")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("".join(f"{json.dumps(event)}\n" for event in sorted(found, key=lambda one: one["time"])))
        plan = {"script": ["train.py"], "hosts": "gpu[001-005]", "derived": {}, "settings": {}, "warnings": []}
        self.job.attempt(0).mkdir(parents=True, exist_ok=True)
        self.job.plan(0).write_text(json.dumps(plan))
        self.job.progress(0).parent.mkdir(parents=True, exist_ok=True)
        for rank in (0, 9):  # the last one is no more since the world has shrunk
            mark: dict[str, Any] = {
                "time": self.begin + 200,
                "attempt": 3 if rank == 0 else 2,
                "step": 400 - rank,
                "values": {},
            }
            self.job.progress(rank).write_text(json.dumps(mark))
        return self.job.path

    def _say(self, node: int, moment: float, event: str, **facts: Any) -> None:
        self._events[node].append({"time": self.begin + moment, "event": event, "agent": node - 1, **facts})

    def _attempt(self, number: int, active: Sequence[int], spares: Sequence[int]) -> None:
        start, about = 60.0 * number, {"attempt": number}
        members, before = {*active, *spares}, {node for part in self.ATTEMPTS[max(0, number - 1)] for node in part}
        named = {name: ",".join(f"gpu{node:03}" for node in sorted(nodes)) for name, nodes in (
            ("hosts", active), ("spares", spares), ("lost", before - members))}  # fmt: skip
        leader = 1 if number < 2 else 2
        self._say(leader, start, events.NODES, **about, **named, leader=f"gpu{leader:03}")
        following = {*self.ATTEMPTS[number + 1][0]} if number < 3 else {*active}
        for place, node in enumerate(active):
            self._say(node, start, events.ATTEMPT, **about, host=f"gpu{node:03}", world_size=2 * len(active), agents=0)
            for local in range(2):
                rank = {"rank": 2 * place + local, "local_rank": local}
                self._say(node, start + 0.1, events.WORKER_STARTED, **about, **rank, pid=100 * node, device="")
                gone = number in (1, 2) and node not in {*following, 3} and node != 1
                if not gone and not (number == 3 and not self.ending):
                    self._worker_ended(number, node, rank)
            if number < 3:
                self._say(node, start + 50, events.ROUND_ENDED, **about, **self._end(number))
            elif self.ending:
                end = {"ending": "done", "by": "gpu002", "status": 0, "cause": "", "signal": ""}
                self._say(node, start + 600, events.ROUND_ENDED, **about, **end)
                self._say(node, start + 601, events.RUN_ENDED, **about, status=0, cause="")

    def _worker_ended(self, number: int, node: int, rank: dict[str, Any]) -> None:
        facts: dict[str, Any] = {"exitcode": -9, "told": "SIGKILL"}
        if number == 3:
            facts = {"exitcode": 0, "told": ""}
        elif number == 0 and node == 3 and rank["local_rank"] == 0:
            raised = {"type": "RuntimeError", "message": self.BROKEN, "where": "train.py:9", "source": "hook"}
            facts = {"exitcode": 1, "told": "", "failure": {"exception": raised, "lines": [self.BROKEN]}}
        self._say(
            node, 60 * number + (600 if number == 3 else 50), events.WORKER_ENDED, attempt=number, **rank, **facts
        )

    def _end(self, number: int) -> dict[str, Any]:
        lost = {1: "gpu001", 2: "gpu004"}.get(number)
        cause = f"lost the agent on {lost}" if lost else f"rank 4 on gpu003 failed: {self.BROKEN}"
        by = "gpu003" if number == 0 else "gpu002"
        return {"ending": "restart", "by": by, "status": 69 if lost else 1, "cause": cause, "signal": ""}

    def _nodes(self) -> None:
        """What was said about nodes: right, and wrong by the first one, which was cut off."""
        why = "is broken (uncorrectable ECC error encountered)"
        self._say(1, 50, events.NODE_DRAINED, attempt=0, hosts="gpu003", why=why, stays=False)
        for node in (2, 4, 5, 6):
            self._say(node, 110 + node / 2, events.NODE_LOST, attempt=1, hosts="gpu001")
            self._say(1, 109 + node / 2, events.NODE_LOST, attempt=1, hosts=f"gpu{node:03}")
        self._say(2, 170, events.NODE_LOST, attempt=2, hosts="gpu004")
        self._say(2, 240, events.NODE_BACK, attempt=3, hosts="gpu001")
        common = {"reason": "", "since": None, "booted": None, "waited": 1.0, "last": True}
        down = {**common, "state": "DOWN+NOT_RESPONDING", "gone": True, "reason": "Not responding"}
        up = {**common, "state": "MIXED", "gone": False}
        self._say(2, 171, events.NODE_STATE, **{**up, "last": False}, host="gpu004")
        self._say(2, 200, events.NODE_STATE, **{**down, "waited": 30.0, "since": self.begin + 190}, host="gpu004")
        self._say(1, 151, events.NODE_STATE, **up, host="gpu002")
        self._say(2, 221, events.NODE_STATE, **{**up, "waited": 41.0}, host="gpu005")
