"""Watch a job until it has ended: what its states mean, how long to wait between looks, and what its output gains."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from hpc_launch.errors import SlurmError
from hpc_launch.slurm import controller
from hpc_launch.slurm.job import OVER, WAITING, JobRecord, explain, task_numbers
from hpc_launch.text import to_the_minute

# Seconds between two questions to the controller. They grow while nothing changes.
_SHORTEST_PAUSE, _LONGEST_PAUSE, _GROWTH = 0.25, 15.0, 1.4

# Seconds between two looks at a file that is followed: a look costs the controller nothing.
_FILE_PAUSE = 0.5

# So often a job may be unknown to all before nobody is asked any more: accounting hears of it a little later.
_UNKNOWN = 8

# An estimate of the start changes all the time; what is told changes with these seconds.
_ESTIMATE = 600

Records = tuple[JobRecord, ...]


def has_ended(records: Sequence[JobRecord]) -> bool:
    """Whether the job, or each task of an array, has ended. Nobody who knows nothing knows that. Pure."""
    return bool(records) and all(record.state in OVER for record in records)


def exit_status(records: Sequence[JobRecord]) -> int:
    """The status of a job that has ended; the highest of an array. Pure."""
    return max((record.exit_status for record in records), default=1)


def describe_job(records: Sequence[JobRecord], now: float) -> str:
    """Where a job stands, in a line. Pure."""
    if len(records) == 1 and not _several(records[0]):
        return _one(records[0], now)
    counts: Counter[str] = Counter()
    for record in records:
        counts[_word(record)] += count_tasks(record.task)
    waiting = next((record for record in records if record.state in WAITING and record.reason), None)
    words = [f"{count} {word}" for word, count in counts.items()]
    return ", ".join(words) + (f" ({explain(waiting.reason)})" if waiting else "")


def count_tasks(task: str) -> int:
    """How many tasks an array's record stands for: `3` one, `4-7,9%2` five. Pure."""
    return len(task_numbers(task)) or 1


def _several(record: JobRecord) -> bool:
    return count_tasks(record.task) > 1


def _one(record: JobRecord, now: float) -> str:
    word = _word(record)
    if record.state in WAITING:
        reason = f" ({why})" if (why := explain(record.reason)) else ""
        start = record.start if record.start is not None and record.start > now else None
        estimate = f", expected to start at {to_the_minute(start, now)}" if start else ""
        return f"{word}{reason}{estimate}"
    if record.state in OVER and record.state != "COMPLETED":
        return f"{word}, exit status {record.exit_status}"
    return word


def _word(record: JobRecord) -> str:
    words = {"PENDING": "waiting", "RUNNING": "running", "COMPLETING": "ending", "COMPLETED": "done"}
    return words.get(record.state, record.state_in_words)


def _told(records: Sequence[JobRecord]) -> object:
    """What has to change before a line is said again."""
    return [(record.state, record.reason, record.task, int((record.start or 0) // _ESTIMATE)) for record in records]


# --- effects


def ask_job_state(job: str) -> Records | None:
    """Ask how a job stands: the controller, and then accounting.

    Returns:
        Nothing where none of them knows it; None where it cannot be learnt now.
    """
    records = controller.ask_jobs(job)
    if records:
        return records
    told = controller.ask_accounting(job)
    return told if records is not None or has_ended(told) else None


@dataclass(frozen=True)
class JobWatcher:
    """Waits for the end of a job.

    Attributes:
        look: asks how the job stands (`ask_job_state`).
        say: tells a line.
        pause: waits for some seconds.
        now: the time, in seconds since the epoch.
        tail: what to do between the looks, with what was seen; None for nothing.
    """

    look: Callable[[], Records | None]
    say: Callable[[str], None]
    pause: Callable[[float], None] = time.sleep
    now: Callable[[], float] = time.time
    tail: Callable[[Records], None] | None = None

    def until_ended(self) -> Records:
        """Wait, and tell what changes.

        Raises:
            SlurmError: nobody knows the job any more, and so nobody can say how it ended.
        """
        said: object = None
        seconds = _SHORTEST_PAUSE
        unknown = 0
        seen: Records = ()
        while True:
            records = self.look()
            if records:
                seen = records
            told = "blind" if records is None else _told(records)
            if told != said:
                said, seconds = told, _SHORTEST_PAUSE
                if records is None:
                    self.say("Slurm does not answer; the question is put again")
                elif records:
                    self.say(describe_job(records, self.now()))
            if records and has_ended(records):
                return records
            unknown = 0 if records or records is None else unknown + 1
            if unknown == _UNKNOWN:
                raise SlurmError(
                    "how the job ended is unknown: Slurm has forgotten it, and there is no accounting that could tell "
                    "(sacct)"
                )
            self._pause(seconds, seen)
            seconds = min(seconds * _GROWTH, _LONGEST_PAUSE)

    def _pause(self, seconds: float, seen: Records) -> None:
        if self.tail is None:
            self.pause(seconds)
            return
        while seconds > 0:
            self.tail(seen)
            self.pause(min(seconds, _FILE_PAUSE))
            seconds -= _FILE_PAUSE


class FileTail:
    """Passes on what a file gains.

    Args:
        stream: where to.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._position = 0

    def __call__(self, records: Records) -> None:
        """Pass on what the output of the first record has gained. A file that was emptied begins again."""
        path = records[0].output if records else ""
        if not path:
            return
        while data := self._read(path):
            self._stream.write(data)
            self._stream.flush()

    def _read(self, path: str) -> bytes:
        try:
            with Path(path).open("rb") as file:
                if file.seek(0, 2) < self._position:
                    self._position = 0
                file.seek(self._position)
                data = file.read(1 << 20)
        except OSError:
            return b""  # not there yet, or not seen by this machine
        self._position += len(data)
        return data


def last_lines_of(path: str, lines: int) -> str:
    """The last lines of a file; empty where it cannot be read."""
    most = 200 * lines
    try:
        with Path(path).open("rb") as file:
            file.seek(max(file.seek(0, 2) - most, 0))
            return "\n".join(file.read().decode(errors="replace").splitlines()[-lines:])
    except OSError:
        return ""
