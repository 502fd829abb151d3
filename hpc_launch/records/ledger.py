"""The requeue ledger of a run: why and when its job was requeued. Nothing else reads or writes it.

    <log_dir>/<job>/requeues.jsonl    a line of JSON for every requeue that was asked for

The ledger is the run's (`records.claims`): the run that goes on after a requeue finds it in its directory, whatever its
arguments are now. A job may wait in the queue while hpc-launch is upgraded, and go on with another version. So every
line has the version of the schema: lines without one are the first version's, fields that are not known pass, and a
ledger with a later version's lines is neither understood nor changed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from dataclasses import dataclass, field
from typing import Literal, get_args

from hpc_launch import owners
from hpc_launch.errors import LogDirError
from hpc_launch.records import directory
from hpc_launch.records.directory import JobDirectory
from hpc_launch.records.model import Requeue
from hpc_launch.records.parsing import Fields, parse

# Why a run ended: a notice signal, the time limit, a preemption, or a failure of the training itself.
Reason = Literal["notice", "timeout", "preempt", "failure"]
REASONS: tuple[Reason, ...] = get_args(Reason)

# The cause of a requeue that Slurm did by itself, for people.
BY_SLURM = "requeued by Slurm"

# The version of the lines. Fields that are added keep it; a change of what a field means makes another.
SCHEMA = 1


@dataclass(frozen=True)
class Entry:
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
    """

    time: float
    reason: Reason
    cause: str
    restart_count: int
    attempt: int
    step: float | None
    progressed: bool
    counted: bool
    by_slurm: bool = False

    def line(self) -> str:
        """The entry as a line of the ledger, its end included."""
        return json.dumps({"schema": SCHEMA, **dataclasses.asdict(self)}) + "\n"


@dataclass(frozen=True)
class Ledger:
    """A ledger as it was read.

    Attributes:
        entries: the requeues so far, in order.
        later: the version of lines that this program does not know; None where there are none.
        text: what was read.
    """

    entries: tuple[Entry, ...] = ()
    later: int | None = None
    text: str = field(default="", repr=False, compare=False)

    def amended(self, last: Entry) -> str:
        """The text with another last entry; whatever else stands there, read or not, stays as it is."""
        lines = self.text.splitlines(keepends=True)
        for number in reversed(range(len(lines))):
            if _entry(lines[number]) is not None:
                lines[number] = last.line()
                break
        return "".join(lines)


def read(text: str) -> Ledger:
    """Read a ledger. Lines that are no entries (half written on a full disk) are left out. Pure."""
    fields = [parse(line.encode()) for line in text.splitlines()]
    versions = [version for one in fields if one is not None and (version := one.whole("schema", SCHEMA)) > SCHEMA]
    entries = tuple(entry for line in text.splitlines() if (entry := _entry(line)) is not None)
    return Ledger(entries, max(versions, default=None), text)


def load(job: JobDirectory) -> Ledger:
    """Read a run's ledger; one that is not there has no entries."""
    try:
        return read(owners.read_own(job.ledger).decode(errors="replace"))
    except OSError:
        return Ledger()


def append(job: JobDirectory, ledger: Ledger, entry: Entry) -> None:
    """Add an entry to a ledger that was just read; on a full disk the job runs again all the same."""
    cut = "" if not ledger.text or ledger.text.endswith("\n") else "\n"
    with contextlib.suppress(OSError):
        directory.append(job.ledger, cut + entry.line())


def amend(job: JobDirectory, ledger: Ledger, last: Entry) -> None:
    """Replace the last entry of a ledger that was just read."""
    with contextlib.suppress(OSError, LogDirError):
        directory.write_text(job.ledger, ledger.amended(last))


def shown(fields: Fields) -> Requeue:
    """A line for people: of any version, with what of it is understood."""
    return Requeue(
        time=fields.number("time") or 0.0,
        reason=fields.text("reason"),
        cause=fields.text("cause"),
        restart_count=fields.whole("restart_count"),
        attempt=fields.whole("attempt"),
        step=fields.number("step"),
        counted=fields.values.get("counted") is not False,
    )


def _entry(line: str) -> Entry | None:
    fields = parse(line.encode())
    if fields is None or fields.whole("schema", SCHEMA) > SCHEMA:
        return None
    reason, moment = fields.text("reason"), fields.number("time")
    if reason not in REASONS or moment is None:
        return None
    return Entry(
        time=moment,
        reason=reason,
        cause=fields.text("cause"),
        restart_count=fields.whole("restart_count"),
        attempt=fields.whole("attempt"),
        step=fields.number("step"),
        progressed=fields.values.get("progressed") is True,
        counted=fields.values.get("counted") is not False,
        # Versions before this field have these words only.
        by_slurm=fields.values.get("by_slurm") is True or fields.text("cause") == BY_SLURM,
    )
