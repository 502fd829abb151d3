"""What there is to see of a job at one moment, as a value: its state, its nodes, how far each rank is. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from hpc_launch.api.backend_choice import ALLOCATION, DEBUG, LOCAL, SLURM
from hpc_launch.api.submission_files import Outcome, SubmissionRecord
from hpc_launch.inspection.job_state import JobState, SlurmAnswer, State, judge_job_state, last_sign
from hpc_launch.records import failure_messages, formatting, node_states, root_cause
from hpc_launch.records.history_model import History, ProgressMark
from hpc_launch.records.progress_curve import curve_points, progress_share
from hpc_launch.records.root_cause import RootCause
from hpc_launch.slurm.job import WAITING, JobRecord

# More ranks are not shown one by one: who looks at a curve sees no more, and reading them costs.
MOST_RANKS = 8

_WHERE = {SLURM: "Slurm", ALLOCATION: "allocation", LOCAL: "this machine", DEBUG: "this process"}


@dataclass(frozen=True)
class ViewSubject:
    """The job that a view is of, as it was submitted.

    Attributes:
        name: what runs: a function, a script.
        job_id: the job's id.
        where: what runs it, in words: `Slurm`, `this machine`.
        nodes: how many it asks for; 0 where that is not known.
        submitted: when, in seconds since the epoch; None where that is not known.
    """

    name: str
    job_id: str
    where: str
    nodes: int = 0
    submitted: float | None = None

    @classmethod
    def of(cls, job_id: str, record: SubmissionRecord | None) -> ViewSubject:
        """Take it from the record of a submission; None where that cannot be read."""
        if record is None:
            return cls("job", job_id, _WHERE[SLURM])
        where, nodes = _WHERE.get(record.cluster, record.cluster), record.resources.get("nodes")
        return cls(record.name or "job", job_id, where, nodes if isinstance(nodes, int) else 0, record.submitted)


@dataclass(frozen=True)
class ViewEvidence:
    """What is known of a job beside its directory.

    Attributes:
        slurm: what Slurm says; None where it is no job of Slurm's.
        outcome: how it has ended, as that was written down for the whole job; None until then.
        alive: whether the process that sees to it is there; None where that cannot be seen from here.
        done: nothing more is awaited of it.
    """

    slurm: SlurmAnswer | None = None
    outcome: Outcome | None = None
    alive: bool | None = None
    done: bool = False

    @property
    def record(self) -> JobRecord | None:
        """The job as Slurm has it; None where Slurm is not asked, does not answer or does not know it any more."""
        return self.slurm.record if self.slurm is not None and not self.slurm.blind else None


@dataclass(frozen=True)
class RankView:
    """One rank.

    Attributes:
        rank: its number.
        host: its node; empty where that is not known.
        mark: what it marked last.
        curve: a value over the steps, `JobView.value`; empty where there is none.
        left: seconds until it reaches its total at its present pace; None where that cannot be told.
        failed: whether it is known to have failed.
    """

    rank: int
    host: str
    mark: ProgressMark
    curve: tuple[tuple[float, float], ...] = ()
    left: float | None = None
    failed: bool = False

    @property
    def share(self) -> float | None:
        """How much is done, from 0.0 to 1.0; None where that cannot be known."""
        return progress_share(self.mark)


@dataclass(frozen=True)
class JobView:
    """What there is to see of a job.

    Attributes:
        subject: what it is of.
        now: the moment of this view, in seconds since the epoch.
        standing: how the job stands.
        start: when it began; None before, and where that is not known.
        estimate: when it is expected to start; None where nobody says so.
        end: when it will end at the latest, or did; None where that is open.
        world_size: how many workers it has; 0 before they start.
        attempt: the number of its last attempt; None before the first.
        hosts: its nodes.
        lost: those that it goes on without.
        ranks: those that are shown one by one, of those that have marked progress.
        others: the last marks of those that are not.
        value: the name of the value that is drawn; empty where there is none.
        lines: its last lines of output, and `source` whose they are.
        cause: why it failed, in a line.
        directory: the job directory; None where there is none yet.
        note: why it cannot be seen now; empty where it can.
    """

    subject: ViewSubject
    now: float
    standing: JobState
    start: float | None = None
    estimate: float | None = None
    end: float | None = None
    world_size: int = 0
    attempt: int | None = None
    hosts: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()
    ranks: tuple[RankView, ...] = ()
    others: tuple[ProgressMark, ...] = ()
    value: str = ""
    lines: tuple[str, ...] = ()
    source: str = ""
    cause: str = ""
    directory: Path | None = None
    note: str = ""

    @property
    def state(self) -> State:
        """How the job stands, in a word."""
        return self.standing.state

    @property
    def elapsed(self) -> float | None:
        """Seconds since it began, to its end; None before."""
        if self.start is None:
            return None
        if not self.standing.over or self.end is None:
            return max(0.0, self.now - self.start)
        return self.end - self.start if self.end > self.start else None  # it was cancelled before it began

    @property
    def time_left(self) -> float | None:
        """Seconds until Slurm ends it; None where it has no such end, and when it does not run."""
        if self.end is None or self.state is not State.RUNNING or math.isinf(self.end):
            return None
        return max(0.0, self.end - self.now)

    @property
    def share(self) -> float | None:
        """How much of the training is done: as much as the rank has that is furthest behind."""
        shares = [found for mark in self._marks() if (found := progress_share(mark)) is not None]
        return min(shares, default=None)

    @property
    def training_left(self) -> float | None:
        """Seconds that the training will still take at its present pace; None where that cannot be told."""
        found = [view.left for view in self.ranks if view.left is not None]
        return max(found) if found and self.state is State.RUNNING else None

    @property
    def silence(self) -> float | None:
        """Seconds since a rank has last marked progress, while the job runs; None where none ever has."""
        last = max((mark.time for mark in self._marks()), default=None)
        return None if last is None or self.state is not State.RUNNING else max(0.0, self.now - last)

    def _marks(self) -> Iterable[ProgressMark]:
        yield from (view.mark for view in self.ranks)
        yield from self.others


def chosen(marks: Sequence[ProgressMark], failed: Iterable[int] = ()) -> tuple[int, ...]:
    """The ranks that are shown one by one: all of a few; of many rank 0, those that failed, and those furthest behind.

    Args:
        marks: the last word of each rank.
        failed: the ranks that have failed.
    """
    if len(marks) <= MOST_RANKS:
        return tuple(mark.rank for mark in marks)
    bad = set(failed)
    behind = sorted(marks, key=lambda mark: (mark.rank != 0, mark.rank not in bad, mark.step or 0.0, mark.rank))
    return tuple(sorted(mark.rank for mark in behind[:MOST_RANKS]))


def main_value(marks: Iterable[ProgressMark]) -> str:
    """The name of the value that is worth a curve: the loss, else the first number. Pure."""
    names = dict.fromkeys(name for mark in marks for name, value in mark.values.items() if not isinstance(value, str))
    return next((name for name in names if "loss" in name.lower()), next(iter(names), ""))


@dataclass(frozen=True)
class ViewData:
    """What was seen in a job directory.

    Attributes:
        history: what happened.
        curves: what the ranks that are shown one by one have marked on the way (`chosen`).
        source: the rank whose output matters; None where there is none yet.
        lines: the last lines of it.
    """

    history: History
    curves: Mapping[int, Sequence[ProgressMark]] = field(default_factory=dict)
    source: int | None = None
    lines: tuple[str, ...] = ()


def compose(subject: ViewSubject, evidence: ViewEvidence, seen: ViewData, now: float) -> JobView:
    """Put together what is known.

    Args:
        subject: the job.
        evidence: what is known of it beside its directory.
        seen: what its directory says.
        now: seconds since the epoch.
    """
    history = seen.history
    attempt = history.last_attempt
    marks = history.marks
    fleet = node_states.node_states(history)
    value = main_value(marks)
    hosts = {worker.rank: worker.host for worker in attempt.workers} if attempt is not None else {}
    cause = last_root_cause(history)
    failed = failures(cause)
    outcome, record = evidence.outcome, evidence.record
    waits = record is not None and record.state in WAITING
    there = formatting.unfold_hosts(record.nodes) if record is not None else ()
    standing = judge_job_state(
        history,
        evidence.slurm,
        now=now,
        alive=evidence.alive,
        sign=last_sign(history),
        outcome=outcome.status if outcome is not None else None,
    )
    if outcome is not None and outcome.cancelled and standing.state is State.FAILED:
        standing = replace(standing, state=State.STOPPED, words=f"cancelled, exit status {outcome.status}")
    if standing.state is State.UNKNOWN and standing.over and not evidence.done:
        # Slurm's word has come before the job's own, which is awaited for some seconds.
        standing = JobState(State.RUNNING, "ending")
    return JobView(
        subject=subject,
        now=now,
        standing=replace(standing, over=evidence.done),
        start=None if waits else record.start if record is not None else _begin(subject, evidence, history),
        estimate=record.start if record is not None and waits and (record.start or 0.0) > now else None,
        end=_end(evidence, history),
        world_size=attempt.world_size if attempt is not None else 0,
        attempt=attempt.number if attempt is not None else None,
        hosts=fleet.working if fleet.lost else there or (attempt.hosts if attempt is not None else ()),
        lost=fleet.lost,
        ranks=tuple(
            RankView(
                mark.rank,
                hosts.get(mark.rank, ""),
                mark,
                curve_points(seen.curves[mark.rank], value),
                remaining(seen.curves[mark.rank], now),
                mark.rank in failed,
            )
            for mark in marks
            if mark.rank in seen.curves
        ),
        others=tuple(mark for mark in marks if mark.rank not in seen.curves),
        value=value,
        lines=seen.lines,
        source="" if seen.source is None else f"rank {seen.source}",
        cause=failure_messages.failure_headline(cause) if cause is not None and evidence.done else "",
        directory=history.path if history.path.parts else None,
    )


def _begin(subject: ViewSubject, evidence: ViewEvidence, history: History) -> float | None:
    """When a job began of which Slurm says nothing; one that does not wait begins when it is submitted."""
    run = history.last_run
    if evidence.slurm is None:
        return subject.submitted
    return run.begin if run is not None else None


def _end(evidence: ViewEvidence, history: History) -> float | None:
    """When a job ended, or will end at the latest: its own word first."""
    if evidence.outcome is not None and evidence.outcome.time:
        return evidence.outcome.time
    if evidence.record is not None and evidence.record.end is not None:
        return evidence.record.end
    if evidence.done:
        return history.last_run.end if history.last_run is not None else None
    return history.end_time


def last_root_cause(history: History) -> RootCause | None:
    """Why the last attempt failed; None if it did not, or not yet. Pure."""
    return root_cause.root_cause_of(history, history.last_attempt) if history.last_attempt is not None else None


def failures(cause: RootCause | None) -> tuple[int, ...]:
    """The ranks that failed by themselves, the first one first. Pure."""
    return tuple(worker.rank for group in cause.groups for worker in group.workers) if cause is not None else ()


def remaining(curve: Sequence[ProgressMark], now: float) -> float | None:
    """Seconds until a rank reaches its total, at the pace of the second half of its attempt; None if unknown. Pure."""
    last = curve[-1] if curve else None
    if last is None or last.step is None or last.total is None:
        return None
    mine = [mark for mark in curve if mark.attempt == last.attempt and mark.step is not None]
    earlier = [mark for mark in mine if mark.time <= (mine[0].time + last.time) / 2]
    if not earlier:  # a clock that was put back
        return None
    steps, seconds = last.step - (earlier[-1].step or 0.0), last.time - earlier[-1].time
    if steps <= 0 or seconds <= 0:
        return None
    left = (last.total - last.step) * seconds / steps - max(0.0, now - last.time)
    return left if left > 0 else None
