"""What a job is held by, wherever it runs: how it stands, whether it has ended, and how to end it."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from hpc_launch import codec
from hpc_launch.api.job_view import ViewEvidence
from hpc_launch.api.slurm_poller import SlurmPoller, everybody
from hpc_launch.api.submission_files import JobFiles, Outcome, read_outcome, read_own_json
from hpc_launch.errors import SlurmError
from hpc_launch.inspection.job_state import SlurmAnswer
from hpc_launch.node import processes
from hpc_launch.records.claims import Holder
from hpc_launch.slurm import controller
from hpc_launch.slurm.job import JobRecord
from hpc_launch.submission.job_watcher import has_ended

# So long after the end of a job what was written on its nodes is awaited, and after what was written, Slurm's word.
_LAG_SECONDS = 15.0

# What a stop by a signal ends with: then Slurm says why.
_STOPPED = 128


@dataclass(frozen=True)
class JobEnding:
    """How a job ended.

    Attributes:
        status: its exit status; 0 is success.
        state: in Slurm's words: COMPLETED, FAILED, TIMEOUT, CANCELLED and so on.
        directory: its job directory; None where the launcher has not got so far.
    """

    status: int
    state: str
    directory: Path | None = None


class BackendJob(Protocol):
    """A job, wherever it runs."""

    def state(self) -> str:
        """How it stands, in Slurm's words."""
        ...

    def ending(self) -> JobEnding | None:
        """How it ended; None as long as it has not."""
        ...

    def cancel(self) -> None:
        """Have it ended."""
        ...

    def record(self) -> JobRecord | None:
        """What Slurm knows of it; None where that is nothing."""
        ...

    def evidence(self) -> ViewEvidence:
        """What is known of it beside its directory."""
        ...


@dataclass
class SlurmJob:
    """A job of Slurm's."""

    files: JobFiles
    watch: SlurmPoller = field(default_factory=lambda: everybody)
    now: Callable[[], float] = time.monotonic
    _over_since: float | None = None

    def state(self) -> str:
        """What Slurm says; before it says anything, and after it has forgotten the job, what the files say."""
        outcome = read_outcome(self.files.outcome)
        if outcome is not None and outcome.status <= _STOPPED:
            return "FAILED" if outcome.status else "COMPLETED"
        record = self.record()
        if record is not None:
            return record.state
        if outcome is not None:
            return "FAILED"
        return "UNKNOWN" if self.watch.lost(self.files.job_id) else "PENDING"

    def record(self) -> JobRecord | None:
        """What Slurm said last."""
        return self.watch.record(self.files.job_id)

    def evidence(self) -> ViewEvidence:
        """What Slurm says, or has said when it took the job, and what the first task has written."""
        record = self.record()
        if record is not None or self.watch.lost(self.files.job_id):
            slurm = SlurmAnswer(record)
        else:
            slurm = SlurmAnswer(JobRecord(self.files.job_id, "PENDING"), blind="Slurm has not answered yet")
        return ViewEvidence(slurm, read_outcome(self.files.outcome))

    def ending(self) -> JobEnding | None:
        """What the first task has written, which is looked at first and costs Slurm nothing; else what Slurm says."""
        outcome = read_outcome(self.files.outcome)
        if outcome is not None and outcome.status <= _STOPPED:
            return _ended(outcome)
        record = self.record()
        gone = self.watch.lost(self.files.job_id)
        ended = gone or (record is not None and has_ended((record,)))
        if outcome is not None and (ended or time.time() > outcome.time + _LAG_SECONDS):
            return JobEnding(
                outcome.status, record.state if record is not None and ended else "FAILED", outcome.directory
            )
        if outcome is not None or not ended:
            self._over_since = None
            return None
        self._over_since = self.now() if self._over_since is None else self._over_since
        if self.now() < self._over_since + _LAG_SECONDS and not _nothing_to_wait_for(record):
            self.watch.doubt(self.files.job_id)
            _look_again(self.files.base)
            return None
        return JobEnding(1, record.state if record is not None else "UNKNOWN")

    def cancel(self) -> None:
        """Have Slurm end it.

        Raises:
            SlurmError: Slurm does not.
        """
        refusal = controller.cancel(self.files.job_id)
        if refusal:
            raise SlurmError(f"job {self.files.job_id} cannot be cancelled: {refusal}")
        self.watch.soon(self.files.job_id)


@dataclass
class LocalJob:
    """A job that was started here, or in an allocation, and has a process that sees to it."""

    files: JobFiles

    def state(self) -> str:
        """RUNNING as long as its process is there."""
        ending = self.ending()
        return "RUNNING" if ending is None else ending.state

    def record(self) -> JobRecord | None:
        """Nothing: Slurm has not been asked for it."""
        return None

    def evidence(self) -> ViewEvidence:
        """What its process has written, and whether it is there."""
        return ViewEvidence(None, read_outcome(self.files.outcome), self._is_there())

    def ending(self) -> JobEnding | None:
        """What its process has written, or that it is gone."""
        outcome = read_outcome(self.files.outcome)
        if outcome is None and self._is_there() is not False:
            return None
        outcome = outcome or read_outcome(self.files.outcome)
        return _ended(outcome) if outcome is not None else JobEnding(1, "FAILED")

    def cancel(self) -> None:
        """Stop it, as scancel does.

        Raises:
            SlurmError: it runs on another machine.
        """
        process = self._process()
        if process.host != socket.gethostname():
            raise SlurmError(f"job {self.files.job_id} was started on {process.host}: cancel it there")
        if self.ending() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGTERM)

    def _process(self) -> Holder:
        return codec.salvage(Holder, read_own_json(self.files.process))

    def _is_there(self) -> bool | None:
        """Whether its process is there; None for one on another machine, where nobody here can tell."""
        process = self._process()
        if process.host != socket.gethostname():
            return None
        return processes.is_same(process.pid, process.started)


@dataclass
class InProcessJob:
    """A job that has run in this process: it has ended when there is a handle of it."""

    status: int

    def state(self) -> str:
        """How it ended."""
        return "FAILED" if self.status else "COMPLETED"

    def record(self) -> JobRecord | None:
        """Nothing."""
        return None

    def evidence(self) -> ViewEvidence:
        """How it ended."""
        return ViewEvidence(outcome=Outcome(self.status, Path()))

    def ending(self) -> JobEnding | None:
        """How it ended."""
        return JobEnding(self.status, self.state())

    def cancel(self) -> None:
        """Nothing is left to do."""


def _ended(outcome: Outcome) -> JobEnding:
    state = "CANCELLED" if outcome.cancelled else "FAILED" if outcome.status else "COMPLETED"
    return JobEnding(outcome.status, state, outcome.directory)


def _nothing_to_wait_for(record: JobRecord | None) -> bool:
    """Whether a job never ran, so that nobody can have written anything."""
    return record is not None and record.state == "CANCELLED" and not record.nodes


def _look_again(folder: Path) -> None:
    """Have the file system look what is there: some remember for long that a file was not."""
    with contextlib.suppress(OSError):
        os.listdir(folder)  # noqa: PTH208 - it is the reading that counts
