"""The hang detector ends an attempt in which no rank makes progress for `--hang-timeout` seconds.

Every agent looks at the files of its own workers, and adds to counters in the store when something has changed there.
A counter that does not move any more, as the leader sees it, is a job in which nobody does anything. No clocks are
compared, and what an agent asks of the store does not grow with the number of agents. A rank that waits for another is
no hang as long as that one, or any other, goes on.

Where a rank marks progress (`runtime.mark_progress`), progress counts: a thread that writes about the GPU every minute
does so while all ranks wait. In an attempt without a mark it is output that counts. `--hang-activity` says otherwise.

When the job hangs the leader says so in the store; all agents take the stacks of their workers, write them into the job
directory and leave the gist for the leader, which folds it and ends the attempt.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from hpc_launch.agent.run_context import RunContext
from hpc_launch.errors import LogDirError
from hpc_launch.node import processes, stack_dumps
from hpc_launch.records import stack_files
from hpc_launch.records.directory import JobDirectory
from hpc_launch.records.stack_traces import HANG, FoldedStacks, ProcessStacks, fold_stacks
from hpc_launch.rendezvous.handler import SlurmRendezvous
from hpc_launch.rendezvous.messages import Message
from hpc_launch.slow_storage import Act

# The exit status of a job that hung: that of timeout(1).
STATUS = 124

# Seconds between two looks: a twentieth of the timeout, but not often and not seldom; and so many agents look in a
# second at most, for there is one store.
_OFTEN, _SELDOM = 0.25, 5.0
_PART = 20
_AGENTS_PER_SECOND = 5000

# A look at the files that takes longer hangs.
_LOOK = 1.0

# An agent that has not looked for so many times longer was stopped itself, maybe with the job (scontrol suspend).
_STOPPED = 4

# Seconds that the agents have to take stacks, and for which the leader waits for them.
_TAKE = 20.0
_WAIT = 30.0

# What an agent leaves for the leader of each worker: characters of its stacks.
_LONGEST = 1 << 14
# And of all workers of a node together: what agents share is bounded.
_MOST_TEXT = 1 << 19


@dataclass(frozen=True)
class SilenceTimer:
    """What an agent knows of the silence of all. Pure.

    Attributes:
        since: when something was last heard.
        looked: when this was last looked at.
        count: what counted then, and its counter.
    """

    since: float
    looked: float
    count: tuple[str, int] = ("", 0)

    def after(self, now: float, *, count: tuple[str, int], pause: float) -> SilenceTimer:
        """What is known after another look.

        Time for which this agent was stopped does not count: the others may have been, too.

        Args:
            now: when it was made.
            count: what counts, and its counter.
            pause: seconds that lie between two looks, if all goes well.
        """
        if count != self.count:
            return SilenceTimer(now, now, count)
        gap = now - self.looked
        lost = gap - pause if gap > _STOPPED * pause + 1 else 0.0
        return SilenceTimer(self.since + lost, now, count)

    def lasts(self, timeout: float) -> bool:
        """Whether it has lasted for so long that the job hangs."""
        return self.looked - self.since >= timeout


def pause_for(timeout: float, agents: int) -> float:
    """Seconds between two looks. Pure."""
    return min(max(timeout / _PART, _OFTEN), _SELDOM) + agents / _AGENTS_PER_SECOND


@dataclass(frozen=True)
class Signs:
    """What has changed of some files.

    Attributes:
        output: a worker has written something.
        marks: a worker has marked progress.
        unseen: the file server does not answer. The ranks may be active, so this does not count as silence.
    """

    output: bool = False
    marks: bool = False
    unseen: bool = False


class Activity:
    """Sees when files change: what workers write, and the progress that they mark."""

    def __init__(self, output: Sequence[Path], marks: Sequence[Path] = ()) -> None:
        self._files = (*output, *marks)
        self._outputs = len(output)
        self._last: list[tuple[int, int]] = []
        self._looking: Act[list[tuple[int, int]]] | None = None
        self.look()

    def look(self) -> Signs:
        """What has changed since this was last asked."""
        looking = self._looking or Act(self._stat)
        if not looking.over(_LOOK):
            self._looking = looking
            return Signs(unseen=True)
        last, self._last, self._looking = self._last, looking.result(), None
        before, now = ((found[: self._outputs], found[self._outputs :]) for found in (last or self._last, self._last))
        return Signs(before[0] != now[0], before[1] != now[1])

    def _stat(self) -> list[tuple[int, int]]:
        found = []
        for path in self._files:
            try:
                status = path.stat()
            except OSError:
                found.append((0, 0))
            else:
                found.append((status.st_size, status.st_mtime_ns))
        return found


@dataclass(frozen=True)
class Hang(Message):
    """What the leader says when the job hangs.

    Attributes:
        name: the directory for the stacks, in the job directory's.
    """

    name: str


@dataclass(frozen=True)
class HangSummary(Message):
    """What an agent leaves for the leader: its workers."""

    seen: Sequence[ProcessStacks]


@dataclass(frozen=True)
class HangVerdict:
    """The end of an attempt that hangs.

    Attributes:
        cause: what happened, in a line.
        path: where the stacks are; None where they could not be written.
    """

    cause: str
    path: Path | None


@dataclass
class HangWatch:
    """One agent's part, in one attempt.

    Attributes:
        timeout: seconds of silence that are a hang.
        job: the job directory.
        attempt: the attempt, as it is called there.
        host: this node's name.
        agents: how many agents there are.
        agent: this one's number.
        leader: this agent decides.
        workers: gives the process ids of the workers that run, by rank.
        activity: sees what they do.
        counts: what counts, as `--hang-activity` says.
        clock: gives the time.
    """

    timeout: float
    job: JobDirectory
    attempt: int
    host: str
    agents: int
    agent: int
    leader: bool
    workers: Callable[[], Mapping[int, int]]
    activity: Activity
    counts: str = "auto"
    clock: Callable[[], float] = time.monotonic
    _quiet: SilenceTimer = field(init=False)
    _said: Hang | None = None
    _marked: bool = False
    _said_marked: bool = False
    _deadline: float = 0.0

    def __post_init__(self) -> None:
        """Begin to watch."""
        now = self.clock()
        self._quiet = SilenceTimer(now, now)

    @property
    def pause(self) -> float:
        """Seconds between two turns."""
        return pause_for(self.timeout, self.agents)

    def turn(self, store: SlurmRendezvous) -> HangVerdict | None:
        """Look, if it is time to, and do what follows; returns the leader's verdict, once it has one.

        Raises:
            RendezvousError: when the store is lost.
        """
        now = self.clock()
        if self._said is not None:
            return self._verdict(store, now) if self.leader else None
        if now < self._quiet.looked + self.pause:
            return None
        self._quiet = self._quiet.after(now, count=self._count(store, self.activity.look()), pause=self.pause)
        if self.leader and self._quiet.lasts(self.timeout):
            store.share(self._key("hang"), Hang(self._reserve()))
        self._said = store.shared(self._key("hang"), Hang)
        if self._said is not None:
            self._take(store, self._said)
            self._deadline = self.clock() + _WAIT
        return None

    def _count(self, store: SlurmRendezvous, signs: Signs) -> tuple[str, int]:
        """Add what was seen here to what others have seen; returns what counts, and its counter."""
        output = store.count("activity", int(signs.output or signs.marks or signs.unseen))
        if self.counts == "output":
            return "output", output
        marks = store.count("progress", int(signs.marks or signs.unseen))
        self._marked = self._marked or signs.marks or self.counts == "progress"
        # What could not be seen is no mark: the job may be one without any.
        if store.count("marked", int(self._marked and not self._said_marked)) > 0:
            self._said_marked = self._said_marked or self._marked
            return "progress", marks
        return "output", output

    def _key(self, name: str) -> str:
        return f"{name}/{self.attempt}"

    def _reserve(self) -> str:
        moment = time.time()
        try:
            return stack_files.reserve_directory(self.job, moment)
        except LogDirError:
            return stack_files.stacks_directory_name(moment)  # it is said when nothing can be written there

    def _take(self, store: SlurmRendezvous, hang: Hang) -> None:
        """Take the stacks of the workers here, write them down, and leave the gist for the leader."""
        seen = stack_dumps.dump_stacks(self.workers(), self.host, patience=_TAKE)
        with contextlib.suppress(LogDirError):
            stack_files.write_ranks(self.job, hang.name, seen)
        own = [one for one in seen if not one.parent]
        longest = min(_LONGEST, _MOST_TEXT // max(1, len(own)))
        gist = HangSummary([replace(one, text=one.text[:longest]) for one in own])
        store.share(self._key(f"stacks/{self.agent}"), gist)
        store.count("stacks", 1)

    def _verdict(self, store: SlurmRendezvous, now: float) -> HangVerdict | None:
        """What all agents have seen, or those that were quick enough."""
        if store.count("stacks", 0) < self.agents and now < self._deadline:
            return None
        gists = [store.shared(self._key(f"stacks/{agent}"), HangSummary) for agent in range(self.agents)]
        seen = [one for gist in gists if gist is not None for one in gist.seen]
        missing = gists.count(None)
        return self._judge(fold_stacks(seen), seen, missing)

    def _judge(self, folded: FoldedStacks, seen: Sequence[ProcessStacks], missing: int) -> HangVerdict:
        assert self._said is not None  # noqa: S101 - nothing is judged before it was said
        path: Path | None = self.job.stacks(self._said.name)
        try:
            stack_files.write_all(self.job, self._said.name, self.attempt, time.time(), seen)
        except LogDirError:
            path = None
        late = f"; {missing} of {self.agents} agents did not answer" if missing else ""
        what = "no progress (runtime.mark_progress)" if self._quiet.count[0] == "progress" else "no output"
        silence = f"{what} for {self.timeout:g} s (--hang-timeout)"
        return HangVerdict(f"{HANG}{silence}: {folded.summary}{late}", path)


def watch(context: RunContext, pids: Mapping[int, int]) -> HangWatch | None:
    """What watches whether an attempt hangs; None where nobody asked for it.

    Args:
        context: the run.
        pids: process ids of the workers here, by rank.
    """
    world, timeout = context.world, context.plan.settings.hang_timeout
    if not timeout:
        return None
    files = [context.job.rank(context.label, world.host, rank) for rank in pids]
    output = [path for one in files for path in (one.out, one.err)]
    return HangWatch(
        timeout=timeout,
        job=context.job,
        attempt=context.label,
        host=world.host,
        agents=world.agents,
        agent=world.agent_rank,
        leader=world.leader,
        workers=lambda: {rank: pid for rank, pid in pids.items() if processes.alive(pid)},
        activity=Activity(output, [context.job.progress(rank) for rank in pids]),
        counts=context.plan.settings.hang_activity,
    )
