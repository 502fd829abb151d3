"""The root causes of a job's failures as a report shows them. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from hpc_launch.records import failure_messages, formatting, root_cause
from hpc_launch.records.history_model import Failure, History, Worker
from hpc_launch.records.root_cause import RootCause
from hpc_launch.text import count, one_line

# More other failures than this are only counted.
_OTHERS = 5


@dataclass(frozen=True)
class RootCauseView:
    """The root cause of the end of an attempt.

    Attributes:
        ranks: those who failed first, all in the same way.
        what: what happened, without who it was, to compare attempts.
        headline: it in a line.
        first: the worker that was the very first; None where it was no worker's fault.
        facts: names and values.
        lines: the last lines of its output.
        also: what else failed by itself.
        followed: how many others failed because of it, and how; empty if there were none.
    """

    ranks: frozenset[int]
    what: str
    headline: str
    first: Worker | None
    facts: tuple[tuple[str, str], ...]
    lines: tuple[str, ...]
    also: tuple[str, ...]
    followed: str


def find_root_causes(history: History) -> dict[int, RootCauseView]:
    """The root causes of all attempts that failed, by number."""
    found = ((attempt.number, root_cause.root_cause_of(history, attempt)) for attempt in history.attempts)
    return {number: _blame(cause) for number, cause in found if cause is not None}


def _blame(cause: RootCause) -> RootCauseView:
    first, failure = cause.first, Failure()
    if first is not None and first.failure is not None:
        failure = first.failure
    headline = failure_messages.failure_headline(cause)
    return RootCauseView(
        ranks=frozenset(worker.rank for worker in cause.groups[0].workers) if cause.groups else frozenset(),
        what=cause.groups[0].what or root_cause.worker_ending(cause.groups[0].first) if cause.groups else headline,
        headline=one_line(headline, 600),
        first=first,
        facts=(*(_facts(cause, first, failure) if first is not None else ()), *_about_nodes(cause)),
        lines=failure.lines,
        also=tuple(_also(cause)),
        followed=_followed(cause),
    )


def _facts(cause: RootCause, first: Worker, failure: Failure) -> tuple[tuple[str, str], ...]:
    raised = failure.exception
    several = len(cause.groups[0].workers)
    facts = (
        ("First of the ranks" if several > 1 else "Rank", str(first.rank)),
        ("Host", first.host),
        ("Local rank", str(first.local_rank)),
        ("Device", first.device),
        ("Ended with", root_cause.worker_ending(first)),
        ("Raised at", raised.where if raised is not None else ""),
        ("Hit at", failure.where),
        ("Memory", failure.oom if failure.oom != cause.groups[0].what else ""),
        ("Hangs in", failure.hung),
        *(("Device said", text) for text in failure.gpu if text not in failure.lines),
    )
    return tuple((name, one_line(value)) for name, value in facts if value)


def _about_nodes(cause: RootCause) -> Iterator[tuple[str, str]]:
    """Nodes that were lost as well, and what Slurm has said of lost ones."""
    if cause.groups and cause.lost:
        yield "Nodes lost", one_line(cause.lost)
    for state in cause.states:
        line = failure_messages.slurms_word(state)
        if line not in failure_messages.failure_headline(cause):
            yield state.host, one_line(line)


def _also(cause: RootCause) -> list[str]:
    groups = cause.groups[1:]
    found = []
    for group in groups[:_OTHERS]:
        who = formatting.fold_ranks(worker.rank for worker in group.workers)
        what = f": {group.what}" if group.what else ""
        found.append(one_line(f"{who}, {root_cause.worker_ending(group.first)}{what}"))
    rest = sum(len(group.workers) for group in groups[_OTHERS:])
    return [*found, f"{count(rest, 'more rank')} in other ways"] if rest else found


def _followed(cause: RootCause) -> str:
    total = sum(cause.followers.values())
    if len(cause.followers) == 1:
        return f"{count(total, failure_messages.follower(cause))} followed ({next(iter(cause.followers))})."
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in sorted(cause.followers.items()))
    return f"{count(total, failure_messages.follower(cause))} followed: {reasons}." if total else ""
