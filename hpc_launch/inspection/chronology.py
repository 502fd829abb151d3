"""The story of a job: what happened, one thing after another, in sentences. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from hpc_launch.inspection.root_cause_view import RootCauseView
from hpc_launch.inspection.timeline import AttemptSpan, Timeline
from hpc_launch.records import failure_messages, formatting
from hpc_launch.records.history_model import Attempt, History, RecordedNotice, Run
from hpc_launch.text import count, duration, number, one_line

# Of a longer story the middle is left out.
_LONGEST = 120


@dataclass(frozen=True)
class ChronologyEntry:
    """One thing that happened.

    Attributes:
        time: seconds since the epoch; None where something is left out.
        tone: `plain`, `good`, `bad` or `warn`.
        text: what.
    """

    time: float | None
    tone: str
    text: str


def make_chronology(
    history: History, timeline: Timeline, blames: Mapping[int, RootCauseView]
) -> tuple[ChronologyEntry, ...]:
    """Tell it.

    Args:
        history: what happened.
        timeline: when.
        blames: the root causes, by attempt.
    """
    causes = {number: blame.headline for number, blame in blames.items()}
    found = [*_runs(history), *_missing(history), *_moments(history), *_nodes(history, causes)]
    spans = {span.number: span for span in timeline.spans}
    first = {run.first_attempt for run in history.runs}
    for attempt in history.attempts:
        span, before = spans.get(attempt.number), spans.get(attempt.number - 1)
        again = attempt.number not in first and before is not None
        if span is not None:
            pause = span.begin - before.end if again and before is not None else None
            found += _attempt(attempt, span, blames.get(attempt.number), pause)
    ordered = sorted(found, key=lambda entry: entry.time or 0.0)
    if len(ordered) <= _LONGEST:
        return tuple(ordered)
    half = _LONGEST // 2
    gap = ChronologyEntry(None, "plain", f"… {len(ordered) - 2 * half:,} more, which are left out here …")
    return (*ordered[:half], gap, *ordered[-half:])


def attempt_ending(attempt: Attempt, cause: str) -> str:
    """How an attempt ended, in words."""
    if attempt.ending == "done":
        return "all ended well"
    if attempt.signal:
        words = failure_messages.stop_words(attempt.signal, attempt.job_ending, attempt.user)
        by = f" on {attempt.by}" if attempt.by else ""
        return f"{words}{by}" if attempt.signal in words else f"{words}: {attempt.signal}{by}"
    return cause or one_line(attempt.cause) or ("" if attempt.end is None else "ended")


def _attempt(
    attempt: Attempt, span: AttemptSpan, blame: RootCauseView | None, pause: float | None
) -> Iterator[ChronologyEntry]:
    """How an attempt began and ended.

    Args:
        attempt: it.
        span: when it was.
        blame: why it failed; None where that is not known, or it did not.
        pause: how long after the one before it was, in the same run.
    """
    size = count(attempt.world_size, "rank")
    hosts = f" on {formatting.fold_hosts(attempt.hosts)}" if attempt.hosts else ""
    again = "" if pause is None else " again at once" if pause < 1 else f" again, {duration(pause)} later"
    yield ChronologyEntry(span.begin, "plain", f"attempt {attempt.number}: {size}{hosts} started{again}")
    if span.open:
        return
    said = attempt_ending(attempt, blame.headline if blame is not None else "")
    if not said or not attempt.ending:
        yield ChronologyEntry(span.end, "bad", f"attempt {attempt.number}: {said or 'nobody recorded how it ended'}")
        return
    tone = "good" if attempt.ending == "done" else "warn" if attempt.signal else "bad"
    more = f"; {blame.followed.removesuffix('.')}" if tone == "bad" and blame is not None and blame.followed else ""
    yield ChronologyEntry(span.end, tone, f"attempt {attempt.number}: {said}{more}")


def _runs(history: History) -> Iterator[ChronologyEntry]:
    for at, run in enumerate(history.runs):
        if run.begin is not None:
            yield ChronologyEntry(run.begin, "plain", _began(run, history.runs[at - 1] if at else None))
        if run.end is not None and run.status is not None:
            yield ChronologyEntry(run.end, "bad" if run.status else "good", _left(run))


def _began(run: Run, before: Run | None) -> str:
    if before is None:
        return "hpc-launch began"
    again = run.restart_count > before.restart_count
    return "Slurm started the job again" if again else "hpc-launch was started again"


def _left(run: Run) -> str:
    return f"hpc-launch ended with status {run.status}"


def _missing(history: History) -> Iterator[ChronologyEntry]:
    """The last word for each set of nodes that were waited for."""
    last: dict[tuple[int | None, str], float] = {}
    for event in history.node_events:
        if event.kind == "missing":
            last[event.attempt, event.hosts] = event.time
    for (_, hosts), time in last.items():
        yield ChronologyEntry(time, "warn", f"waiting for {one_line(hosts)}")


def _moments(history: History) -> Iterator[ChronologyEntry]:
    for notice in history.notices:
        yield ChronologyEntry(notice.time, "warn", _notice(notice))
    for requeue in history.requeues:
        step = f", training was at step {number(requeue.step)}" if requeue.step is not None else ""
        asked = f"Slurm was asked to run the job again: {one_line(requeue.cause) or requeue.reason}"
        done = "Slurm requeued the job by itself" if requeue.by_slurm else asked
        yield ChronologyEntry(requeue.time, "warn", f"{done}{step}")


def _notice(notice: RecordedNotice) -> str:
    parts = []
    if notice.hosts:
        parts.append(f"{notice.signal} was passed on to the workers of {formatting.fold_hosts(notice.hosts)}")
    if notice.unheard:
        subject = "" if parts else f"{notice.signal} came, and "
        parts.append(f"{subject}no worker of {formatting.fold_hosts(notice.unheard)} has a handler for it")
    return "; ".join(parts)


def _nodes(history: History, causes: Mapping[int, str]) -> Iterator[ChronologyEntry]:
    """What became of nodes, and what Slurm has said of those that were lost, as far as it knew."""
    tones = {"lost": "bad", "drained": "bad", "back": "good", "leads": "plain"}
    for event in history.node_events:
        text = failure_messages.node_event(event)
        # That an attempt has ended for it says the same.
        if event.kind in tones and not causes.get(-1 if event.attempt is None else event.attempt, "").startswith(text):
            by = f", says {event.by}" if event.kind == "lost" and event.by else ""
            yield ChronologyEntry(event.time, tones[event.kind], f"{one_line(text)}{by}")
    for state in history.node_states:
        if state.gone or state.last:
            yield ChronologyEntry(state.time, "plain", one_line(failure_messages.state_line(state)))
