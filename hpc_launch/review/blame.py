"""Who is to blame for the end of an attempt. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from hpc_launch.records.model import Attempt, History, Worker
from hpc_launch.review import phrases


@dataclass(frozen=True)
class Blame:
    """The root cause of the end of an attempt.

    Attributes:
        ranks: whose fault it was.
        headline: it in a line.
        facts: names and values.
        lines: the last lines of output.
        followed: what became of the others, in a line; empty if there were none.
    """

    ranks: frozenset[int]
    headline: str
    facts: tuple[tuple[str, str], ...]
    lines: tuple[str, ...]
    followed: str


def find(history: History) -> dict[int, Blame]:
    """The root causes of all attempts that failed, by number."""
    found = {}
    for attempt in history.attempts:
        failed = [w for w in attempt.workers if w.failed and not w.told]
        if attempt.ending in ("restart", "failed") and not attempt.signal and failed:
            worker = min(failed, key=lambda w: w.ended or 0.0)
            found[attempt.number] = _blame(attempt, worker)
    return found


def _blame(attempt: Attempt, worker: Worker) -> Blame:
    failure = worker.failure
    exception = failure.exception if failure else None
    what = f"{exception.type}: {exception.message}" if exception else phrases.ended(worker.exitcode or 0)
    others = len(attempt.workers) - 1
    return Blame(
        frozenset({worker.rank}),
        phrases.line(f"rank {worker.rank} on {worker.host}: {what}"),
        (
            ("Rank", str(worker.rank)),
            ("Host", worker.host),
            ("Local rank", str(worker.local_rank)),
            ("Device", worker.device),
            ("Exit", phrases.ended(worker.exitcode or 0)),
            ("Where", exception.where if exception else ""),
            ("Memory", failure.oom if failure else ""),
        ),
        failure.lines if failure else (),
        f"{phrases.count(others, 'other rank')} followed" if others else "",
    )
