"""The requeue ledger of a run: why and when its job was requeued. Nothing else reads or writes it.

    <log_dir>/<job>/requeues.jsonl    a line of JSON for every requeue that was asked for

The ledger is the run's (`records.claims`): the run that goes on after a requeue finds it in its directory, whatever its
arguments are now. A job may wait in the queue while hpc-launch is upgraded, and go on with another version. So every
line has the version of the schema: lines without one are the first version's, fields that are not known pass, and a
ledger with a later version's lines is neither understood nor changed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

from hpc_launch import codec, file_ownership
from hpc_launch.codec import CodecError
from hpc_launch.errors import LogDirError
from hpc_launch.records import directory
from hpc_launch.records.directory import JobDirectory

# Why a run ended: a notice signal, the time limit, a preemption, or a failure of the training itself.
Reason = Literal["notice", "timeout", "preempt", "failure"]
REASONS: tuple[Reason, ...] = get_args(Reason)

# The cause of a requeue that Slurm did by itself, for people.
BY_SLURM = "requeued by Slurm"

# The version of the lines. Fields that are added keep it; a change of what a field means makes another.
SCHEMA = 1


@dataclass(frozen=True)
class LedgerEntry:
    """One requeue in the ledger.

    Attributes:
        time: when it was asked for, in seconds since the epoch.
        reason: why, as the policy has it.
        cause: why, for people.
        restart_count: the SLURM_RESTART_COUNT of the run that ended.
        attempt: its last attempt.
        step: the step that the training had reached; None where it said none.
        progressed: whether that run made progress.
        counted: whether it counts against `--max-requeues`.
        by_slurm: Slurm did it by itself, and nobody asked for it.
        unknown: Slurm has been asked, and has not answered: it may have been done. Nobody counts on it, but it counts.
    """

    time: float = field(metadata={"check": codec.number})
    reason: Reason
    cause: str
    restart_count: int
    attempt: int
    step: float | None
    progressed: bool
    counted: bool = True
    by_slurm: bool = False
    unknown: bool = False

    def line(self) -> str:
        """The entry as a line of the ledger, its end included."""
        return codec.line({"schema": SCHEMA, **codec.plain(self)})


@dataclass(frozen=True)
class Ledger:
    """A ledger as it was read.

    Attributes:
        entries: the requeues so far, in order.
        later: the version of lines that this program does not know; None where there are none.
        text: what was read.
    """

    entries: tuple[LedgerEntry, ...] = ()
    later: int | None = None
    text: str = field(default="", repr=False, compare=False)

    def amended(self, last: LedgerEntry) -> str:
        """The text with another last entry; whatever else stands there, read or not, stays as it is."""
        return self._with_last(last.line())

    def retracted(self) -> str:
        """The text without the last entry."""
        return self._with_last("")

    def _with_last(self, line: str) -> str:
        lines = self.text.splitlines(keepends=True)
        for number in reversed(range(len(lines))):
            if _entry(lines[number]) is not None:
                lines[number] = line
                break
        return "".join(lines)


def parse_ledger(text: str) -> Ledger:
    """Read a ledger. Lines that are no entries (half written on a full disk) are left out. Pure."""
    versions = [version for line in text.splitlines() if (version := _version(codec.parse(line) or {})) > SCHEMA]
    entries = tuple(entry for line in text.splitlines() if (entry := _entry(line)) is not None)
    return Ledger(entries, max(versions, default=None), text)


def load_ledger(job: JobDirectory) -> Ledger:
    """Read a run's ledger; one that is not there has no entries."""
    try:
        return parse_ledger(file_ownership.read_own(job.ledger).decode(errors="replace"))
    except OSError:
        return Ledger()


def append_entry(job: JobDirectory, ledger: Ledger, entry: LedgerEntry) -> None:
    """Add an entry to a ledger that was just read; on a full disk the job runs again all the same."""
    cut = "" if not ledger.text or ledger.text.endswith("\n") else "\n"
    with contextlib.suppress(OSError):
        directory.append(job.ledger, cut + entry.line())


def amend_entry(job: JobDirectory, ledger: Ledger, last: LedgerEntry) -> None:
    """Replace the last entry of a ledger that was just read."""
    with contextlib.suppress(OSError, LogDirError):
        directory.write_text(job.ledger, ledger.amended(last))


def retract_entry(job: JobDirectory, ledger: Ledger) -> None:
    """Take the last entry out of a ledger that was just read: what it says did not happen."""
    with contextlib.suppress(OSError, LogDirError):
        text = ledger.retracted()
        if text:
            directory.write_text(job.ledger, text)
        else:
            job.ledger.unlink(missing_ok=True)


@dataclass(frozen=True)
class _Versioned:
    """A line of any version."""

    schema: int = SCHEMA


def _version(facts: Mapping[str, Any]) -> int:
    return codec.salvage(_Versioned, facts).schema


def _entry(line: str) -> LedgerEntry | None:
    facts = codec.parse(line)
    if facts is None or _version(facts) > SCHEMA:
        return None
    try:
        entry = codec.salvage(LedgerEntry, facts)
    except CodecError:
        return None
    # Versions before `by_slurm` have these words only.
    return replace(entry, by_slurm=entry.by_slurm or entry.cause == BY_SLURM)
