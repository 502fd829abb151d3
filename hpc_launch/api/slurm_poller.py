"""How the jobs of this process stand: one question to Slurm for all of them, and no more often than it is worth."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from hpc_launch.slurm import controller
from hpc_launch.slurm.job import JobRecord
from hpc_launch.submission.job_watcher import has_ended

# Seconds between two questions. They grow while nothing changes.
_SHORTEST_PAUSE, _LONGEST_PAUSE, _GROWTH = 1.0, 15.0, 1.4

# So often a job may be unknown to all before nobody is asked any more: accounting hears of it a little later.
_UNKNOWN = 8


@dataclass
class SlurmPoller:
    """What is known of several jobs. It may be used by several threads.

    Attributes:
        queue: asks the controller about several jobs.
        accounting: asks accounting about several jobs, joined by commas.
        clock: the time, in seconds.
        questions: how often the controller was asked, and accounting.
    """

    queue: Callable[[Sequence[str]], tuple[JobRecord, ...] | None] = controller.ask_queue
    accounting: Callable[[str], tuple[JobRecord, ...]] = controller.ask_accounting
    clock: Callable[[], float] = time.monotonic
    questions: int = 0
    _records: dict[str, JobRecord] = field(default_factory=dict)
    _watched: dict[str, int] = field(default_factory=dict)
    _doubted: set[str] = field(default_factory=set)
    _next: float = 0.0
    _pause: float = _SHORTEST_PAUSE
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def record(self, job: str) -> JobRecord | None:
        """How a job stands, as of the last question; None where nobody knows yet, or not any more.

        The first word about a job makes it one that is watched. One that has ended is not asked about again.
        """
        with self._lock:
            if job not in self._watched:
                self._watched[job] = 0
                self._soon()
            if not self._settled(job) and self.clock() >= self._next:
                self._ask()
            return self._records.get(job)

    def lost(self, job: str) -> bool:
        """Whether a job is known to nobody, and that for some time."""
        with self._lock:
            return job not in self._records and self._watched.get(job, 0) >= _UNKNOWN

    def doubt(self, job: str) -> None:
        """Go on asking about a job that has ended by Slurm's word: it may be requeued a moment after a preemption."""
        with self._lock:
            self._doubted.add(job)

    def soon(self, job: str) -> None:
        """Ask before long: something has just been done to a job, so that it may be other than it was."""
        with self._lock:
            if job in self._records and has_ended((self._records[job],)):
                return
            self._soon()

    def _soon(self) -> None:
        self._pause = _SHORTEST_PAUSE
        self._next = min(self._next, self.clock() + self._pause)

    def _settled(self, job: str) -> bool:
        if job in self._doubted:
            return False
        record = self._records.get(job)
        return has_ended((record,)) if record else self._watched[job] >= _UNKNOWN

    def _ask(self) -> None:
        jobs = [job for job in self._watched if not self._settled(job)]
        self._doubted.clear()
        arrays = list(dict.fromkeys(job.partition("_")[0] for job in jobs))
        found = self.queue(arrays)
        self.questions += 1
        changed = False
        if found is not None:
            records = {record.label: record for record in found}
            missing = [job for job in jobs if job not in records]
            if missing:
                self.questions += 1
                told = self.accounting(",".join(dict.fromkeys(job.partition("_")[0] for job in missing)))
                records |= {record.label: record for record in told if has_ended((record,)) and record.label in missing}
            for job in jobs:
                record = records.get(job)
                self._watched[job] = self._watched[job] + 1 if record is None else 0
                if record is not None:
                    before = self._records.get(job)
                    changed = changed or before is None or before.state != record.state
                    self._records[job] = record
                elif job in self._records and self._watched[job] >= _UNKNOWN:
                    del self._records[job]  # it has ended, and nobody knows how
        self._pause = _SHORTEST_PAUSE if changed else min(self._pause * _GROWTH, _LONGEST_PAUSE)
        self._next = self.clock() + self._pause


everybody = SlurmPoller()
