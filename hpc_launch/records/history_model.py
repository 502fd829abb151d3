"""What happened in a job, as values; `history` reads them.

All times are seconds since the epoch by the leader's clock: each node's own are corrected by the offsets that its
agents have measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from hpc_launch import codec
from hpc_launch.codec import APART
from hpc_launch.records.directory import RankFiles
from hpc_launch.records.plan_record import PlanRecord


@dataclass(frozen=True)
class Run:
    """One start of the launcher: the first one, or Slurm's after a requeue.

    Attributes:
        first_attempt: its first attempt.
        plan: the plan as run; empty where that cannot be read.
        versions: versions of software, by name.
        run_id: its name.
        restart_count: how often Slurm had started the job again.
        begin: when its first agent began; None if no event says so.
        end: when its last agent left; None while one is there, or if one was killed.
        status: its exit status; None as long as no agent has said one.
        agents: host and process id of each of its agents, as far as they are known.
    """

    first_attempt: int
    plan: PlanRecord
    versions: Mapping[str, str]
    run_id: str
    restart_count: int
    begin: float | None
    end: float | None
    status: int | None
    agents: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True)
class Usage:
    """What a worker has used: seconds of CPU time in user and system mode, and its peak memory in bytes."""

    user: float
    system: float
    max_rss: int


# An exception without a type is none.
_NAMED = codec.text(1 << 16, bool, "a type")


@dataclass(frozen=True)
class RaisedException:
    """An exception that ended a worker.

    Attributes:
        type: as Python shows it: `ValueError`, `torch.OutOfMemoryError`.
        message: what it said.
        where: `FILE:LINE` of the innermost frame outside of installed packages; empty if unknown.
        source: `hook` if the worker has left it, `stderr` if it was read off its output.
        time: when it was raised; None if unknown.
    """

    type: str = field(metadata={"check": _NAMED})
    message: str
    where: str
    source: str
    time: float | None = None


@dataclass(frozen=True)
class Failure:
    """What is known of why a worker failed.

    Attributes:
        exception: the exception, if there was one.
        lines: the last lines of its output.
        oom: the memory limit that the kernel enforced on it, in words; empty if it did not.
        gpu: lines about its device.
        hung: the kernel function in which it hangs and cannot be killed; empty if it was gone.
        log: the file that ends with `lines`: its name among the worker's own, or a path; empty if there is none.
        where: `FILE:LINE` where a fatal signal met it, as faulthandler has written; empty if unknown.
        over: the signal came when no frame of Python was left: the script had ended.
    """

    exception: RaisedException | None = None
    lines: tuple[str, ...] = ()
    oom: str = ""
    gpu: tuple[str, ...] = ()
    hung: str = ""
    log: str = ""
    where: str = ""
    over: bool = False


@dataclass(frozen=True)
class Worker:
    """One worker of one attempt.

    Attributes:
        rank: its rank.
        host: its node.
        agent: the number of its agent.
        local_rank: its local rank.
        device: `GPU 3` for instance; empty without one.
        pid: its process id; 0 if unknown.
        started: when it was started; None if that was not recorded.
        ended: when it ended; None while it runs, or if nobody was there to see it.
        exitcode: its exit code, -N for signal N; None as long as it is not known.
        told: the signal that its agent had sent it before; empty if it ended by itself.
        usage: what it has used.
        failure: why it failed, if it did.
        files: its files; they need not exist.
    """

    rank: int
    host: str
    agent: int
    local_rank: int
    device: str
    pid: int
    started: float | None
    ended: float | None
    exitcode: int | None
    told: str
    usage: Usage | None
    failure: Failure | None
    files: RankFiles

    @property
    def failed(self) -> bool:
        """Whether it is known to have failed."""
        return self.exitcode is not None and self.exitcode != 0


@dataclass(frozen=True)
class Attempt:
    """One start of all workers.

    Attributes:
        number: of the attempt, as its directory has it.
        run: the first attempt of the run that it belongs to.
        world_size: how many workers it has.
        hosts: the nodes that are known to have taken part.
        begin: when its first agent began; None if no event says so.
        end: when its last worker had ended; None while it goes on, or if nobody was there to see it.
        ending: `done`, `restart` or `failed`; empty as long as no end is recorded.
        status: the exit status of that end.
        cause: why it ended, in a line, as the first agent that saw it has said; empty after success.
        signal: the signal that stopped it; empty if none did.
        by: the host whose agent has said so.
        workers: by rank.
        decided: when it was said; None as long as no end is recorded.
        hang: whether it ended because the job hung.
        job_ending: what Slurm said of the job when a signal had stopped it, as `slurm.job.Ending` has it; empty where
            it said nothing.
        user: who cancelled the job, where that is known.
    """

    number: int
    run: int
    world_size: int
    hosts: tuple[str, ...]
    begin: float | None
    end: float | None
    ending: str
    status: int
    cause: str
    signal: str
    by: str
    workers: tuple[Worker, ...]
    decided: float | None = None
    hang: bool = False
    job_ending: str = ""
    user: str = ""


@dataclass(frozen=True)
class NodeEvent:
    """Something about a node.

    Attributes:
        time: when.
        attempt: in which attempt; None before the first.
        kind: `missing` (awaited), `lost`, `back` (after it was lost), `drained` (it is bad) or `leads` (in another's
            place).
        hosts: the nodes, as a host list.
        by: the host whose agent has said so.
        text: why a node was drained; in whose place one leads.
        run: the first attempt of the run.
    """

    time: float
    attempt: int | None
    kind: str
    hosts: str
    by: str
    text: str = ""
    run: int = 0


@dataclass(frozen=True)
class NodeState:
    """What Slurm has said of a node that was lost.

    Attributes:
        time: when.
        host: the node.
        state: in Slurm's words.
        gone: whether Slurm, or an administrator, knew that it is not as it should be.
        reason: why, in the words of Slurm or of an administrator; empty where nobody has said.
        since: since when there was that reason; None without one.
        booted: when the node booted; None where that is not known.
        waited: seconds since it was lost.
        last: it was not asked again: by then Slurm must have noticed.
    """

    time: float = field(metadata=APART)
    host: str
    state: str
    gone: bool
    reason: str
    since: float | None
    booted: float | None
    waited: float
    last: bool


@dataclass(frozen=True)
class Roster:
    """Who takes part in an attempt of a run that may lose nodes, as its leader has said.

    Attributes:
        time: when it said so.
        attempt: the attempt.
        run: the first attempt of the run.
        hosts: the nodes that have workers.
        spares: those that have none.
        leader: the one that leads.
    """

    time: float
    attempt: int
    run: int
    hosts: tuple[str, ...]
    spares: tuple[str, ...]
    leader: str

    @property
    def members(self) -> frozenset[str]:
        """All of them."""
        return frozenset({*self.hosts, *self.spares})


@dataclass(frozen=True)
class RecordedNotice:
    """A notice signal that came to an attempt for the `number`-th time.

    Attributes:
        time: when it came to the first node.
        hosts: the nodes where workers got it.
        unheard: those where no worker has a handler for it.
    """

    time: float
    attempt: int | None
    signal: str
    number: int
    hosts: tuple[str, ...] = ()
    unheard: tuple[str, ...] = ()


@dataclass(frozen=True)
class ClockOffset:
    """How far a node's clock was ahead of the leader's in an attempt: `offset` seconds, give or take `error`."""

    host: str = field(metadata=APART)
    attempt: int | None = field(metadata=APART)
    offset: float
    error: float


@dataclass(frozen=True)
class Node:
    """One node.

    Attributes:
        host: its name.
        last: when its agents last wrote anything.
        offset: seconds that its clock was ahead of the leader's, when that was last measured.
        waiting: ranks that hung in the kernel at the last heartbeat.
    """

    host: str
    last: float | None
    offset: float
    waiting: tuple[int, ...] = ()


@dataclass(frozen=True)
class Requeue:
    """The job was requeued: when, why (`reason` as the policy has it, `cause` for people), and after which attempt.

    Attributes:
        by_slurm: Slurm did it by itself.
        unknown: Slurm was asked, and has not answered.
    """

    time: float
    reason: str
    cause: str
    restart_count: int
    attempt: int
    step: float | None
    counted: bool = True
    by_slurm: bool = False
    unknown: bool = False


@dataclass(frozen=True)
class JobEnd:
    """When the job ends, as Slurm said last.

    Attributes:
        end: the time, in seconds since the epoch; None where it has no end.
        asked: when Slurm was asked.
    """

    end: float | None
    asked: float = 0.0


@dataclass(frozen=True)
class ProgressMark:
    """How far training is, as a rank has marked it last."""

    rank: int = field(metadata=APART)
    time: float
    attempt: int
    step: float | None
    total: float | None
    values: Mapping[str, float | bool | str]


@dataclass(frozen=True)
class History:
    """What happened in a job.

    Attributes:
        path: its directory.
        runs: by first attempt.
        attempts: by number.
        nodes: by name.
        node_events: by time.
        rolls: who took part in each attempt, by attempt; none of runs that end with the first node that is lost.
        node_states: what Slurm has said of lost nodes, by time.
        notices: by time.
        clocks: as measured.
        requeues: in order.
        progress: by rank.
        end_time: when the job ends, as Slurm said last; None if it has said nothing.
        unreadable: what could not be read, a line each.
    """

    path: Path
    runs: tuple[Run, ...] = ()
    attempts: tuple[Attempt, ...] = ()
    nodes: tuple[Node, ...] = ()
    node_events: tuple[NodeEvent, ...] = ()
    rolls: tuple[Roster, ...] = ()
    node_states: tuple[NodeState, ...] = ()
    notices: tuple[RecordedNotice, ...] = ()
    clocks: tuple[ClockOffset, ...] = ()
    requeues: tuple[Requeue, ...] = ()
    progress: tuple[ProgressMark, ...] = ()
    end_time: float | None = None
    unreadable: tuple[str, ...] = ()

    @property
    def last_run(self) -> Run | None:
        """The last run; None as long as there is none."""
        return self.runs[-1] if self.runs else None

    @property
    def last_attempt(self) -> Attempt | None:
        """The last attempt of all runs; None as long as there is none."""
        return self.attempts[-1] if self.attempts else None

    @property
    def marks(self) -> tuple[ProgressMark, ...]:
        """The progress of the ranks that there are in the last attempt: a world that has shrunk has fewer."""
        size = self.last_attempt.world_size if self.last_attempt is not None else 0
        return tuple(mark for mark in self.progress if not size or mark.rank < size)

    def rolled(self, run: Run) -> bool:
        """Whether it is known who takes part in the attempts of a run, because it may lose nodes."""
        return any(roll.run == run.first_attempt for roll in self.rolls)
