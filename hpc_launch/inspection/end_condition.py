"""Whether anything more comes of a job that is followed."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from hpc_launch.inspection import job_status
from hpc_launch.inspection.job_search import JobSearch, slurm_step
from hpc_launch.inspection.job_state import JobState, State
from hpc_launch.inspection.output_files import Note, OutputSelection
from hpc_launch.inspection.slurm_query import SlurmQuery
from hpc_launch.inspection.status_view import JobStatus
from hpc_launch.records import failure_messages, history
from hpc_launch.records.directory import JobDirectory
from hpc_launch.records.history_model import History, NodeEvent
from hpc_launch.slurm.job import OVER

# Seconds between two looks at the records; more for large jobs, where looking takes longer.
_PAUSE, _PAUSE_PER_LOOK = 2.0, 10.0


# Seconds between two looks for a job directory: they grow while there is none, since Slurm is asked each time.
_SHORTEST_WAIT, _LONGEST_WAIT, _GROWTH = 1.0, 15.0, 1.3


def wait_for_directory(job: str, search: Callable[[str], JobSearch], note: Note) -> JobDirectory:
    """Wait until a job that Slurm knows has a directory.

    Args:
        job: which; empty for the latest.
        search: looks for one.
        note: told why the job waits, whenever that changes.

    Raises:
        JobNotFoundError: where there is none, and none is to be expected.
    """
    said, pause = "", _SHORTEST_WAIT
    while True:
        found = search(job)
        if found.directory is not None or found.record is None or found.record.state in OVER:
            return found.needed
        job = found.record.label  # the same one from now on
        standing = job_status.without_directory(found.record).standing
        if standing.words != said:
            said, pause = standing.words, _SHORTEST_WAIT
            note(f"job {found.record.label}: {said}")
        time.sleep(pause)
        pause = min(pause * _GROWTH, _LONGEST_WAIT)


class EndCondition:
    """Says whether a job, or the attempts of it that are wanted, has ended.

    Args:
        directory: its directory.
        selection: what is followed.
        note: told what is worth knowing: that a job waits to run again, that nobody can see it, that a node was lost.
        eyes: asks Slurm.
    """

    def __init__(
        self, directory: JobDirectory, selection: OutputSelection, note: Note, eyes: SlurmQuery | None = None
    ) -> None:
        self._directory = directory
        self._wanted = selection.attempts
        self._note = note
        self._eyes = eyes if eyes is not None else SlurmQuery(slurm_step(directory))
        self._next = 0.0
        self._said: State | None = None
        self._nodes: int | None = None
        self._over = False

    def __call__(self) -> bool:
        """Whether it has; what was found a moment ago counts."""
        begin = time.monotonic()
        if begin < self._next:
            return False
        found = job_status.read_status(self._directory, eyes=self._eyes)
        now = time.monotonic()
        self._next = now + max(_PAUSE, _PAUSE_PER_LOOK * (now - begin))
        self._tell(found.standing)
        self._tell_of_nodes([event for event in found.told if event.kind != "missing"])
        return self._over_for_good(found) or self._attempts_over()

    def _over_for_good(self, found: JobStatus) -> bool:
        """Whether nothing more comes of it: an end that Slurm does not confirm counts when it is seen twice.

        A run has ended by its own records a moment before its agent asks Slurm to requeue the job.
        """
        before, self._over = self._over, found.standing.over
        record = found.slurm.record if found.slurm is not None else None
        return self._over and (before or record is None or record.state in OVER)

    def _attempts_over(self) -> bool:
        """Whether the attempts that were named have all ended; the last one may be followed by others."""
        if self._wanted is None or min(self._wanted, default=-1) < 0:
            return False
        return attempts_ended(history.read_history(self._directory.path), self._wanted)

    def _tell_of_nodes(self, events: Sequence[NodeEvent]) -> None:
        """What has become of nodes since the last look."""
        for event in events[len(events) if self._nodes is None else self._nodes :]:
            self._note(f"job {self._directory.job}: {failure_messages.node_event(event)}")
        self._nodes = len(events)

    def _tell(self, standing: JobState) -> None:
        if standing.state in (State.REQUEUED, State.WAITING, State.UNKNOWN) and standing.state is not self._said:
            self._note(f"job {self._directory.job}: {standing.words}")
        self._said = standing.state


def attempts_ended(found: History, attempts: frozenset[int]) -> bool:
    """Whether these attempts have ended. Pure."""
    return attempts <= {attempt.number for attempt in found.attempts if attempt.end is not None}
