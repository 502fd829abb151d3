"""What a picture of a job shows: its attempts, what every rank did in them, and what happened meanwhile. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Set as AbstractSet
from dataclasses import dataclass

from hpc_launch.inspection.time_axis import AxisPhase
from hpc_launch.inspection.timeline_lanes import LaneBar, LaneEnd, RankTrack, without_repeats
from hpc_launch.records import node_states, root_cause
from hpc_launch.records.history_model import Attempt, History, Worker
from hpc_launch.text import one_line, sane

# What happened to nodes, after their names.
_MARKS = {"lost": "lost", "back": "back", "drained": "drained", "leads": "leads"}


@dataclass(frozen=True)
class AttemptSpan:
    """An attempt in time.

    Attributes:
        number: of the attempt.
        begin: seconds since the epoch.
        end: seconds since the epoch.
        open: nothing says that it has ended.
        run: the first attempt of its run.
    """

    number: int
    begin: float
    end: float
    open: bool
    run: int


@dataclass(frozen=True)
class TimelineEvent:
    """Something that happened at one time: `kind` is `notice`, `requeue`, or what happened to nodes."""

    time: float
    kind: str
    label: str


@dataclass(frozen=True)
class Timeline:
    """A job in time."""

    spans: tuple[AttemptSpan, ...]
    tracks: tuple[RankTrack, ...]
    moments: tuple[TimelineEvent, ...]

    @property
    def phases(self) -> tuple[AxisPhase, ...]:
        """Attempts and the pauses between them, one after another."""
        found: list[AxisPhase] = []
        for span in self.spans:
            begin = span.begin
            if found:
                begin = max(begin, found[-1].end)
                if begin > found[-1].end:
                    found.append(AxisPhase(found[-1].end, begin, pause=True))
            found.append(AxisPhase(begin, max(begin, span.end)))
        return tuple(found)


def make_timeline(history: History, guilty: Mapping[int, AbstractSet[int]]) -> Timeline:
    """Find the times of everything.

    Args:
        history: what happened.
        guilty: by attempt, the ranks that were the root cause of its end.
    """
    spans = _spans(history)
    bars: dict[int, list[tuple[str, LaneBar]]] = {}
    for attempt in history.attempts:
        span = next((span for span in spans if span.number == attempt.number), None)
        if span is None:
            continue
        lost = node_states.lost_in(history, attempt.number)
        for worker in attempt.workers:
            kind = worker_end(worker, attempt, span, guilty.get(attempt.number, frozenset()), lost)
            begin = _or(worker.started, span.begin)
            end = _or(worker.ended, span.end)
            bar = LaneBar(attempt.number, begin, max(begin, end), kind, worker_end_text(worker, kind))
            bars.setdefault(worker.rank, []).append((worker.host, bar))
    tracks = tuple(
        RankTrack(rank, without_repeats(host for host, _ in found), tuple(bar for _, bar in found))
        for rank, found in sorted(bars.items())
    )
    return Timeline(spans, tracks, _moments(history))


def worker_end(
    worker: Worker, attempt: Attempt, span: AttemptSpan, guilty: AbstractSet[int], lost: AbstractSet[str]
) -> LaneEnd:
    """How a worker ended."""
    if worker.ended is None and worker.exitcode is None:
        return LaneEnd.RUNNING if span.open else LaneEnd.LOST if worker.host in lost else LaneEnd.UNKNOWN
    if worker.rank in guilty:
        return LaneEnd.CAUSE
    if worker.exitcode is None:
        return LaneEnd.UNKNOWN
    if not worker.failed:
        return LaneEnd.STOPPED if worker.told else LaneEnd.FINISHED
    reason = root_cause.follows(worker, attempt.decided)
    return LaneEnd.STOPPED if reason == root_cause.ENDED else LaneEnd.FOLLOWED if reason else LaneEnd.FAILED


def worker_end_text(worker: Worker, kind: LaneEnd) -> str:
    """How a worker ended, in words: the exception or exit status, and what is known of it."""
    if worker.exitcode is None:
        return {LaneEnd.RUNNING: "no end recorded", LaneEnd.LOST: "its node was lost"}.get(kind, "nobody saw it end")
    if not worker.failed:
        return f"ended well after {worker.told}" if worker.told else "ended well"
    ending, what = root_cause.worker_ending(worker), root_cause.what_happened(worker)
    raised = worker.failure.exception if worker.failure is not None else None
    if kind is LaneEnd.STOPPED:
        return f"{ending} after {worker.told}"
    said = what if raised is not None and what.startswith(raised.type) else f"{ending}: {what}" if what else ending
    return one_line(said, 160)


def _spans(history: History) -> tuple[AttemptSpan, ...]:
    begun = sorted(
        ((attempt, begin) for attempt in history.attempts if (begin := sane(attempt.begin)) is not None),
        key=lambda pair: pair[0].number,
    )
    seen = max((_or(node.last, 0.0) for node in history.nodes), default=0.0)
    found = []
    for at, (attempt, begin) in enumerate(begun):
        following = begun[at + 1][1] if at + 1 < len(begun) else None
        is_open = attempt.end is None and following is None and not _run_ended(history, attempt)
        end = _or(attempt.end, _last_seen(attempt, following, seen))
        found.append(AttemptSpan(attempt.number, begin, max(begin, end), is_open, attempt.run))
    return tuple(found)


def _last_seen(attempt: Attempt, following: float | None, seen: float) -> float:
    """When an attempt without a recorded end was last seen."""
    times = (time for worker in attempt.workers for time in (worker.started, worker.ended))
    known = [time for time in map(sane, times) if time is not None]
    if following is None:
        return max([seen, *known])
    return (
        min(following, max(known))
        if known and any(worker.ended is not None for worker in attempt.workers)
        else following
    )


def _or(time: float | None, otherwise: float) -> float:
    known = sane(time)
    return otherwise if known is None else known


def _run_ended(history: History, attempt: Attempt) -> bool:
    return any(run.first_attempt == attempt.run and run.status is not None for run in history.runs)


def _moments(history: History) -> tuple[TimelineEvent, ...]:
    found = [TimelineEvent(notice.time, "notice", notice.signal) for notice in history.notices]
    found += [
        TimelineEvent(event.time, event.kind, f"{event.hosts} {_MARKS[event.kind]}")
        for event in history.node_events
        if event.kind in _MARKS
    ]
    found += [TimelineEvent(requeue.time, "requeue", "requeued") for requeue in history.requeues]
    return tuple(sorted(found, key=lambda moment: moment.time))
