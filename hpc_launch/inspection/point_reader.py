"""The points of a sweep are looked at here: the directories of a job array, or of one job's runs, and Slurm's word."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from hpc_launch.inspection import job_search, job_status, slurm_query
from hpc_launch.inspection.job_search import slurm_step
from hpc_launch.inspection.job_state import SlurmAnswer
from hpc_launch.inspection.job_status import Observations
from hpc_launch.inspection.point_status import ArrayStatus, PointStatus, point_arguments, split_commands
from hpc_launch.inspection.slurm_query import ArrayAnswer, SlurmQuery
from hpc_launch.inspection.status_view import JobStatus
from hpc_launch.records import history
from hpc_launch.records.directory import JobDirectory
from hpc_launch.records.history_model import History
from hpc_launch.redaction import redacted_arguments
from hpc_launch.slurm import array_points, controller
from hpc_launch.slurm.job import WAITING

# So many seconds after the end of a task what its nodes have written last may still come.
_SETTLE_S = 60.0


class ArrayReader:
    """Looks at a job array, again and again; points that are over are not read again.

    Args:
        array: the number of the array.
        roots: the log directories that its tasks may have.
        secret_names: more names of arguments whose values are secrets.
        ask: asks Slurm about the tasks.
        ask_script: asks Slurm for a job script.
    """

    def __init__(
        self,
        array: str,
        roots: Sequence[Path],
        secret_names: Sequence[str] = (),
        ask: Callable[..., ArrayAnswer] = slurm_query.ask_array,
        ask_script: Callable[[str], str | None] = controller.ask_script,
    ) -> None:
        self._array = array
        self._roots = tuple(roots)
        self._secret_names = secret_names
        self._ask = ask
        self._ask_script = ask_script
        self._script: str | None = None
        self._points: dict[int, tuple[str, ...]] = {}
        self._answer = ArrayAnswer()
        self._next = 0.0
        self._ended: dict[int, tuple[str | None, PointStatus]] = {}

    def look(self, now: float | None = None) -> ArrayStatus:
        """Where it stands now.

        Args:
            now: the time, in seconds since the epoch; without it, the present.
        """
        now = time.time() if now is None else now
        directories = job_search.find_task_directories(self._roots, self._array)
        if time.monotonic() >= self._next:
            self._ask_slurm(directories)
            self._next = time.monotonic() + slurm_query.PAUSE
            directories = directories or job_search.find_task_directories(self._roots, self._array)
        numbers = sorted({*self._answer.records, *directories})
        found = {number: self._point(number, directories.get(number), now) for number in numbers}
        commands = {number: point.status.script for number, point in found.items()}
        command, arguments = point_arguments(commands, self._points)
        outputs = self._outputs(found)
        points = (
            replace(point, arguments=arguments.get(number, ()), output=outputs.get(number, ""))
            for number, point in found.items()
        )
        return ArrayStatus(self._array, command, tuple(points), self._answer.blind, now)

    def _label(self, number: int) -> str:
        return f"{self._array}_{number}"

    def _ask_slurm(self, directories: dict[int, JobDirectory]) -> None:
        before = self._answer.records
        answer = self._ask(self._array, {*directories, *before, *self._points})
        record = next(iter(answer.records.values()), None)
        if record is not None and self._script is None:
            self._script = self._ask_script(record.job_id)
            said = array_points.read_points(self._script or "")
            self._points = {at: tuple(redacted_arguments(words, self._secret_names)) for at, words in said.items()}
            more = job_search.log_directories(record, self._script or "")
            self._roots = tuple(dict.fromkeys((*self._roots, *more)))
            if not self._points.keys() <= answer.records.keys():
                # The controller may have forgotten these, and nothing else has told of them before.
                more_known = self._ask(self._array, {*directories, *answer.records, *self._points})
                answer = answer if more_known.blind else more_known
        self._answer = replace(answer, records=before) if answer.blind else answer

    def _point(self, number: int, directory: JobDirectory | None, now: float) -> PointStatus:
        record = self._answer.records.get(number)
        key = None if record is None else f"{record.state} {record.restarts}"
        known = self._ended.get(number)
        # What Slurm has forgotten does not change any more.
        if known is not None and key in (None, known[0]):
            return known[1]
        found = history.read_history(directory.path) if directory is not None else History(Path())
        looked = Observations(slurm=SlurmAnswer(record, self._answer.blind), now=now)
        named = directory or JobDirectory(Path(), self._label(number))
        point = PointStatus(self._label(number), job_status.make_status(found, named, looked), number=number)
        settled = record is None or record.end is None or record.end + _SETTLE_S < now
        if point.over and settled and not self._answer.blind:
            self._ended[number] = key, point
        return point

    def _outputs(self, found: dict[int, PointStatus]) -> dict[int, str]:
        """The files that Slurm writes to: as it says, or as those are called of which it does not say it any more."""
        said = {number: record for number, record in self._answer.records.items() if record.output}
        outputs = {number: record.output for number, record in said.items() if record.state not in WAITING}
        like = next((number for number, one in said.items() if self._label(number) in one.output), None)
        if like is not None:
            for number in found.keys() - outputs.keys():
                path = said[like].output.replace(self._label(like), self._label(number))
                if Path(path).exists():
                    outputs[number] = path
        return outputs


class RunsReader:
    """Looks at the runs that one job has had before its last one, again and again.

    Args:
        directories: theirs.
    """

    def __init__(self, directories: Sequence[JobDirectory]) -> None:
        self._directories = directories
        self._eyes = {directory.job: SlurmQuery(slurm_step(directory)) for directory in directories}
        self._ended: dict[str, JobStatus] = {}

    def look(self, last: JobStatus) -> tuple[PointStatus, ...]:
        """Where all runs stand now; the last one as was seen."""
        found = [*(self._status(directory, last.now) for directory in self._directories), last]
        _, arguments = split_commands({status.name: status.script for status in found})
        return tuple(PointStatus(status.name, status, arguments.get(status.name, ())) for status in found)

    def _status(self, directory: JobDirectory, now: float) -> JobStatus:
        if directory.job not in self._ended:
            eyes = self._eyes[directory.job]
            told = history.read_history(directory.path)
            status = job_status.make_status(told, directory, Observations(now=now))
            if not status.standing.over:
                status = job_status.read_status(directory, eyes=eyes, now=now)
            if not status.standing.over:
                return status
            self._ended[directory.job] = status
        return self._ended[directory.job]
