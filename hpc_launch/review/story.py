"""The story of a job: what happened, one thing after another, in sentences. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from hpc_launch.records import words
from hpc_launch.records.model import Attempt, History, Run
from hpc_launch.review import phrases
from hpc_launch.review.timeline import Span, Timeline

# Of a longer story the middle is left out.
_LONGEST = 120


@dataclass(frozen=True)
class Entry:
    """One thing that happened.

    Attributes:
        time: seconds since the epoch; None where something is left out.
        tone: `plain`, `good`, `bad` or `warn`.
        text: what.
    """

    time: float | None
    tone: str
    text: str


def make(history: History, timeline: Timeline, causes: Mapping[int, str]) -> tuple[Entry, ...]:
    """Tell it.

    Args:
        history: what happened.
        timeline: when.
        causes: by attempt, the root cause of its end in a line.
    """
    found = [*_runs(history), *_missing(history), *_moments(history)]
    spans = {span.number: span for span in timeline.spans}
    first = {run.first_attempt for run in history.runs}
    for attempt in history.attempts:
        span, before = spans.get(attempt.number), spans.get(attempt.number - 1)
        again = attempt.number not in first and before is not None
        if span is not None:
            pause = span.begin - before.end if again and before is not None else None
            found += _attempt(attempt, span, causes.get(attempt.number, ""), pause)
    ordered = sorted(found, key=lambda entry: entry.time or 0.0)
    if len(ordered) <= _LONGEST:
        return tuple(ordered)
    half = _LONGEST // 2
    gap = Entry(None, "plain", f"… {len(ordered) - 2 * half:,} more, which are left out here …")
    return (*ordered[:half], gap, *ordered[-half:])


def ending(attempt: Attempt, cause: str) -> str:
    """How an attempt ended, in words."""
    if attempt.ending == "done":
        return "all ended well"
    if attempt.signal:
        return f"stopped by {attempt.signal}" + (f" on {attempt.by}" if attempt.by else "")
    return cause or phrases.line(attempt.cause) or ("" if attempt.end is None else "ended")


def _attempt(attempt: Attempt, span: Span, cause: str, pause: float | None) -> Iterator[Entry]:
    """How an attempt began and ended; `pause` is how long after the one before it was, in the same run."""
    size = phrases.count(attempt.world_size, "rank")
    hosts = f" on {words.fold_hosts(attempt.hosts)}" if attempt.hosts else ""
    again = "" if pause is None else " again at once" if pause < 1 else f" again, {phrases.span(pause)} later"
    yield Entry(span.begin, "plain", f"attempt {attempt.number}: {size}{hosts} started{again}")
    if span.open:
        return
    said = ending(attempt, cause)
    if not said or not attempt.ending:
        yield Entry(span.end, "bad", f"attempt {attempt.number}: {said or 'nobody recorded how it ended'}")
        return
    tone = "good" if attempt.ending == "done" else "warn" if attempt.signal else "bad"
    others = sum(worker.failed for worker in attempt.workers) - 1
    more = f"; {phrases.count(others, 'other rank')} ended with it" if tone == "bad" and others > 0 else ""
    yield Entry(span.end, tone, f"attempt {attempt.number}: {said}{more}")


def _runs(history: History) -> Iterator[Entry]:
    for at, run in enumerate(history.runs):
        if run.begin is not None:
            yield Entry(run.begin, "plain", "hpc-launch began" if at == 0 else "Slurm started the job again")
        if run.end is not None and run.status is not None:
            yield Entry(run.end, "bad" if run.status else "good", _left(run))


def _left(run: Run) -> str:
    return f"hpc-launch ended with status {run.status}"


def _missing(history: History) -> Iterator[Entry]:
    """The last word for each set of nodes that were waited for."""
    last: dict[tuple[int | None, str], float] = {}
    for event in history.node_events:
        if event.kind == "missing":
            last[event.attempt, event.hosts] = event.time
    for (_, hosts), time in last.items():
        yield Entry(time, "warn", f"waiting for {phrases.line(hosts)}")


def _moments(history: History) -> Iterator[Entry]:
    told: dict[tuple[int | None, str, int], list[tuple[float, str]]] = {}
    for notice in history.notices:
        told.setdefault((notice.attempt, notice.signal, notice.number), []).append((notice.time, notice.host))
    for (_, signal, _), where in told.items():
        hosts = words.fold_hosts(host for _, host in where)
        yield Entry(min(time for time, _ in where), "warn", f"{signal} was passed on to the workers of {hosts}")
    for event in history.node_events:
        if event.kind == "lost":
            yield Entry(
                event.time, "bad", f"lost {phrases.line(event.hosts)}" + (f", says {event.by}" if event.by else "")
            )
    for requeue in history.requeues:
        step = f", training was at step {phrases.number(requeue.step)}" if requeue.step is not None else ""
        cause = phrases.line(requeue.cause) or requeue.reason
        yield Entry(requeue.time, "warn", f"Slurm was asked to run the job again: {cause}{step}")
