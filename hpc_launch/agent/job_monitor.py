"""The monitor of the job: one agent of all asks Slurm about its end, in a thread, as the controller can be slow."""

from __future__ import annotations

import contextlib
import math
import queue
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from hpc_launch.errors import LogDirError
from hpc_launch.records import directory
from hpc_launch.records.history_model import JobEnd
from hpc_launch.slow_storage import Background
from hpc_launch.slurm import controller
from hpc_launch.slurm.cluster_rules import Partition
from hpc_launch.slurm.job import JobRecord
from hpc_launch.workers.grace_period import SlurmFacts

# The end of a job can be moved while it runs (scontrol update, preemption with a GraceTime). It is asked for again when
# half of what was left has passed, but not more and not less often than this.
_SOONEST_SECONDS = 30.0
_LATEST_SECONDS = 3600.0

# A question can get lost or refused where the controller is busy, and there may be only seconds to act on the answer.
# After so long it is asked again beside the first one, and then each time after twice as long.
_SECOND_QUESTION_SECONDS = 0.5

# How often it is looked whether the run has a directory to write in, from an answer that came before it.
_LOOK_SECONDS = 0.2


# The end of the job, and the file for it.
_End = tuple[Path, JobEnd]


def _save(ends: Sequence[_End]) -> None:
    """Write down the last of them; those before are out of date."""
    file, end = ends[-1]
    with contextlib.suppress(LogDirError):
        directory.write_json(file, end)


class JobMonitor:
    """Asks from time to time, and writes the end of the job down for `runtime.time_left`.

    Attributes:
        facts: what the other agents need of it.
        record: what was said of the job last; None as long as nothing was.
        asked_at: when that was asked (time.monotonic).
    """

    def __init__(self, job: str, file: Callable[[], Path | None], end: float | None) -> None:
        """Nothing is asked before `begin`.

        Args:
            job: the job, as scontrol names it.
            file: gives where its end is written down; None as long as the run has no directory.
            end: when it ends, in seconds since the epoch, as its environment says.
        """
        self.facts = SlurmFacts()
        self.record: JobRecord | None = None
        self.asked_at = -math.inf
        self._job = job
        self._file = file
        self._end = end
        self._unwritten: JobRecord | None = None
        self._changed = threading.Condition()
        self._wanted = True
        self._asking = False
        self._closed = False
        self._answers = False  # whether there is anybody who does
        self._partition: Partition | None = None
        self._heard: Callable[[JobRecord], object] = lambda _: None
        self._thread = threading.Thread(target=self._ask, name="outlook", daemon=True)
        # A log directory that hangs must not keep Slurm from being asked.
        self._writer: Background[_End] = Background("end time", _save)

    def begin(self, heard: Callable[[JobRecord], object] | None = None) -> None:
        """Begin to ask; `heard` is called with each answer, in the thread, before anybody else has it."""
        self._heard = heard or self._heard
        self._thread.start()

    @property
    def left(self) -> float | None:
        """Seconds until the job ends; None where that is not known, or it has no limit."""
        end = self.record.end if self.record is not None else self._end
        return None if end is None else max(0.0, end - time.time())

    def ask_again(self) -> None:
        """Ask soon, because something has happened."""
        with self._changed:
            self._wanted = True
            self._changed.notify_all()

    def asked_now(self) -> JobRecord | None:
        """Ask, and wait for the answer; without one in time, what was said last."""
        self.ask_again()
        self.answer(controller.PATIENCE)
        return self.record

    def answer(self, seconds: float) -> None:
        """Wait for the answer to what was asked, if it comes within so many seconds."""
        with self._changed:
            self._changed.wait_for(lambda: not self._wanted and not self._asking, seconds)

    def close(self) -> None:
        """Ask no more."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _ask(self) -> None:
        rules = controller.ask_rules()
        if rules is not None:
            self._answers = True
            self.facts = SlurmFacts(kill_wait=rules.kill_wait)
        while self._await_question():
            asked_at = time.monotonic()
            record = self._asked()
            if record is not None:
                self._answers = True
                self.asked_at = asked_at
                self._note(record)
                self._heard(record)
            with self._changed:
                self._asking = False
                self._changed.notify_all()

    def _asked(self) -> JobRecord | None:
        """What Slurm says about the job; None without an answer in time."""
        if not self._answers:
            return controller.ask_job(self._job)
        answers: queue.SimpleQueue[JobRecord | None] = queue.SimpleQueue()
        deadline, wait = time.monotonic() + controller.PATIENCE, _SECOND_QUESTION_SECONDS
        while time.monotonic() + wait < deadline and not self._closed:
            threading.Thread(target=lambda: answers.put(controller.ask_job(self._job)), daemon=True).start()
            with contextlib.suppress(queue.Empty):
                record = answers.get(timeout=wait)
                if record is not None:
                    return record
                time.sleep(wait)  # it was refused
            wait *= 2
        return None

    def _await_question(self) -> bool:
        """Wait until it is time to ask; False when no answer is wanted any more."""
        left = self.left
        pause = _LATEST_SECONDS if left is None else min(max(left / 2, _SOONEST_SECONDS), _LATEST_SECONDS)
        deadline = time.monotonic() + pause
        while True:
            with self._changed:
                rest = deadline - time.monotonic()
                step = min(rest, _LOOK_SECONDS) if self._unwritten is not None else rest
                if self._changed.wait_for(lambda: self._wanted or self._closed, max(0.0, step)) or step == rest:
                    self._wanted, self._asking = False, True
                    return not self._closed
            self._write()

    def _note(self, record: JobRecord) -> None:
        self.record = self._unwritten = record
        self.facts = SlurmFacts(self.facts.kill_wait, self._grace_end(record))
        self._write()

    def _write(self) -> None:
        """Write down what was said last, if there is a place for it."""
        record, file = self._unwritten, self._file()
        if record is None or file is None:
            return
        self._unwritten = None
        self._writer.put((file, JobEnd(record.end, time.time())))

    def _grace_end(self, record: JobRecord) -> float:
        """When the GraceTime of a preemption is over; 0 where there is none."""
        if self._partition is None or self._partition.name != record.partition:
            # Also where nothing is preempted yet: then there is time to ask.
            self._partition = controller.ask_partition(record.partition)
        if record.state != "RUNNING" or record.preempt_time is None:
            return 0.0
        if record.end is not None:
            return record.end
        # A job without a time limit has no end, even now.
        return record.preempt_time + self._partition.grace_time if self._partition is not None else 0.0
