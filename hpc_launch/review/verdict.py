"""How a job went, in a word. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import tzinfo

from hpc_launch.records import members
from hpc_launch.records.model import Attempt, History, Run
from hpc_launch.review import phrases
from hpc_launch.review.standing import FRESH


@dataclass(frozen=True)
class Verdict:
    """How it went: a word, its `tone` (`good`, `bad`, `warn`, `plain`), and a sentence."""

    word: str
    tone: str
    sentence: str


def judge(history: History, now: float, zone: tzinfo | None) -> Verdict:
    """Say how a job went.

    Args:
        history: what happened.
        now: seconds since the epoch.
        zone: what local time is.
    """
    last = history.last_attempt
    run = history.last_run
    if last is None and run is None:
        return Verdict("Nothing recorded", "plain", "The job directory has no events that can be read.")
    status = _status(run, last)
    if status is None:
        return _open(history, last, now, zone)
    if run is not None and run.status is not None and _requeued(history, run, last):
        return Verdict("Requeued", "warn", "The run has ended, and Slurm was asked to run the job again.")
    return _ended(status, last, members.fleet(history).lost)


def _status(run: Run | None, last: Attempt | None) -> int | None:
    """The exit status; None as long as nothing says that the end has come."""
    if run is not None and run.status is not None:
        return run.status
    return last.status if last is not None and last.ending in ("done", "failed") else None


def _open(history: History, last: Attempt | None, now: float, zone: tzinfo | None) -> Verdict:
    seen = max((node.last for node in history.nodes if node.last is not None), default=None)
    if seen is None:
        return Verdict("No end recorded", "warn", "There is no sign of life.")
    said = f"The last sign of life is of {phrases.full(seen, zone)}"
    if now - seen > FRESH:
        # Its records may be late, so nothing is claimed.
        return Verdict("No end recorded", "warn", f"{said}; hpc-launch status asks Slurm whether it still runs.")
    place = f"attempt {last.number}" if last is not None else "its nodes are coming together"
    return Verdict("Running", "plain", f"{said}: {place}.")


def _ended(status: int, last: Attempt | None, lost: Sequence[str]) -> Verdict:
    if status == 0:
        size = last.world_size if last is not None else 1
        said = "The only rank" if size == 1 else f"All {size:,} ranks"
        where = f" in attempt {last.number}" if last is not None and last.number else ""
        on_the_way = f"; {phrases.count(len(lost), 'node')} lost on the way" if lost else ""
        return Verdict("Finished", "good", f"{said} ended well{where}{on_the_way}.")
    if last is not None and last.signal:
        return Verdict("Stopped", "warn", f"It was stopped by {last.signal}, and ended with status {status}.")
    return Verdict("Failed", "bad", f"It ended with status {status}.")


def _requeued(history: History, run: Run, last: Attempt | None) -> bool:
    return any(
        entry.restart_count >= run.restart_count and (last is None or entry.attempt >= last.number)
        for entry in history.requeues
    )
