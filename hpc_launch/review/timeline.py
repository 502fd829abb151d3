"""What a picture of a job shows: its attempts, what every rank did in them, and what happened meanwhile. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Set as AbstractSet
from dataclasses import dataclass

from hpc_launch.records import causes, members
from hpc_launch.records.model import Attempt, History, Worker
from hpc_launch.review.lanes import Bar, End, Track, unique
from hpc_launch.review.scale import Phase
from hpc_launch.text import one_line, sane

# What happened to nodes, after their names.
_MARKS = {"lost": "lost", "back": "back", "drained": "drained", "leads": "leads"}


@dataclass(frozen=True)
class Span:
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
class Moment:
    """Something that happened at one time: `kind` is `notice`, `requeue`, or what happened to nodes."""

    time: float
    kind: str
    label: str


@dataclass(frozen=True)
class Timeline:
    """A job in time."""

    spans: tuple[Span, ...]
    tracks: tuple[Track, ...]
    moments: tuple[Moment, ...]

    @property
    def phases(self) -> tuple[Phase, ...]:
        """Attempts and the pauses between them, one after another."""
        found: list[Phase] = []
        for span in self.spans:
            begin = span.begin
            if found:
                begin = max(begin, found[-1].end)
                if begin > found[-1].end:
                    found.append(Phase(found[-1].end, begin, pause=True))
            found.append(Phase(begin, max(begin, span.end)))
        return tuple(found)


def make(history: History, guilty: Mapping[int, AbstractSet[int]]) -> Timeline:
    """Find the times of everything.

    Args:
        history: what happened.
        guilty: by attempt, the ranks that were the root cause of its end.
    """
    spans = _spans(history)
    bars: dict[int, list[tuple[str, Bar]]] = {}
    for attempt in history.attempts:
        span = next((span for span in spans if span.number == attempt.number), None)
        if span is None:
            continue
        lost = members.lost_in(history, attempt.number)
        for worker in attempt.workers:
            kind = end_of(worker, attempt, span, guilty.get(attempt.number, frozenset()), lost)
            begin = _or(worker.started, span.begin)
            end = _or(worker.ended, span.end)
            bar = Bar(attempt.number, begin, max(begin, end), kind, how(worker, kind))
            bars.setdefault(worker.rank, []).append((worker.host, bar))
    tracks = tuple(
        Track(rank, unique(host for host, _ in found), tuple(bar for _, bar in found))
        for rank, found in sorted(bars.items())
    )
    return Timeline(spans, tracks, _moments(history))


def end_of(worker: Worker, attempt: Attempt, span: Span, guilty: AbstractSet[int], lost: AbstractSet[str]) -> End:
    """How a worker ended."""
    if worker.ended is None and worker.exitcode is None:
        return End.RUNNING if span.open else End.LOST if worker.host in lost else End.UNKNOWN
    if worker.rank in guilty:
        return End.CAUSE
    if worker.exitcode is None:
        return End.UNKNOWN
    if not worker.failed:
        return End.STOPPED if worker.told else End.FINISHED
    reason = causes.follows(worker, attempt.decided)
    return End.STOPPED if reason == causes.ENDED else End.FOLLOWED if reason else End.FAILED


def how(worker: Worker, kind: End) -> str:
    """How a worker ended, in words: the exception or exit status, and what is known of it."""
    if worker.exitcode is None:
        return {End.RUNNING: "no end recorded", End.LOST: "its node was lost"}.get(kind, "nobody saw it end")
    if not worker.failed:
        return f"ended well after {worker.told}" if worker.told else "ended well"
    ending, what = causes.ending(worker), causes.what(worker)
    raised = worker.failure.exception if worker.failure is not None else None
    if kind is End.STOPPED:
        return f"{ending} after {worker.told}"
    said = what if raised is not None and what.startswith(raised.type) else f"{ending}: {what}" if what else ending
    return one_line(said, 160)


def _spans(history: History) -> tuple[Span, ...]:
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
        found.append(Span(attempt.number, begin, max(begin, end), is_open, attempt.run))
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


def _moments(history: History) -> tuple[Moment, ...]:
    first: dict[tuple[int | None, str, int], float] = {}
    for notice in history.notices:
        first.setdefault((notice.attempt, notice.signal, notice.number), notice.time)
    found = [Moment(time, "notice", signal) for (_, signal, _), time in first.items()]
    found += [
        Moment(event.time, event.kind, f"{event.hosts} {_MARKS[event.kind]}")
        for event in history.node_events
        if event.kind in _MARKS
    ]
    found += [Moment(requeue.time, "requeue", "requeued") for requeue in history.requeues]
    return tuple(sorted(found, key=lambda moment: moment.time))
