"""`hpc-launch status`."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import click

from hpc_launch.cli.click_options import CONTEXT, GroupedCommand, settings_of
from hpc_launch.cli.job_options import job_options, note, output, search_for_job
from hpc_launch.inspection import job_search, point_table, status_view, terminal_colours
from hpc_launch.inspection.job_search import JobSearch, slurm_step
from hpc_launch.inspection.job_status import read_status, without_directory
from hpc_launch.inspection.point_reader import ArrayReader, RunsReader
from hpc_launch.inspection.point_status import ArrayStatus, PointStatus
from hpc_launch.inspection.slurm_query import SlurmQuery
from hpc_launch.inspection.status_view import JobStatus
from hpc_launch.records.directory import JobDirectory
from hpc_launch.slurm.job import OVER

# The screen from its upper left corner on, and nothing below what is written.
_HOME, _REST = "\x1b[H\x1b[2J", "\x1b[J"

# Seconds of pause for each second that a look has taken.
_PAUSE_PER_LOOK = 5.0


@click.command(cls=GroupedCommand, context_settings={**CONTEXT, "allow_interspersed_args": True})
@job_options
@click.option("--watch", is_flag=True, help="Look again and again, until the job has ended.")
@click.option(
    "--interval",
    type=click.FloatRange(min=0.1),
    default=2.0,
    metavar="SECONDS",
    help="How long to wait between two looks. Default: 2; longer where a look takes long.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def status(context: click.Context, /, *, job: str, watch: bool, interval: float, as_json: bool, **given: Any) -> None:
    """Say where a job stands: its nodes and workers, its attempt, the time left, and who has written nothing for long.

    JOB is a job's id, 1234, 1234.0 or 12_3 for a task of an array, or its directory; without it, the latest job in
    logs/. The status of a job array, 12, has a line for each task: arguments, state, result, progress and files. The
    status of a job with several runs has a line for each run. The command reads the job directory first, and then asks
    Slurm. It calls unknown what neither shows.
    """
    settings = settings_of(context, given)
    looking = StatusLoop(job, settings.log_dir, settings.secret_names)
    with output():
        while True:
            begin = time.monotonic()
            seen = looking.look()
            _show(seen, as_json=as_json, screen=watch and sys.stdout.isatty() and not as_json)
            if not watch or seen.over:
                return
            time.sleep(max(interval, _PAUSE_PER_LOOK * (time.monotonic() - begin)))


@dataclass(frozen=True)
class StatusLook:
    """What one look has seen.

    Attributes:
        status: where the job stands, or the job array.
        runs: all runs of the job, where it has had several.
        over: nothing more comes of it.
    """

    status: JobStatus | ArrayStatus
    runs: tuple[PointStatus, ...] = ()
    over: bool = False


class StatusLoop:
    """Looks at a job, from before it has a directory.

    Args:
        job: what a person says of it.
        log_dir: `--log-dir`, where it was said.
        secret_names: more names of arguments whose values are secrets.
    """

    def __init__(self, job: str, log_dir: str | None, secret_names: Sequence[str] = ()) -> None:
        self._job = job
        self._log_dir = log_dir
        self._secret_names = secret_names
        self._named = job_search.names_whole_job(job)
        self._whole = not job or self._named
        self._array: ArrayReader | None = None
        self._directory: JobDirectory | None = None
        self._eyes = SlurmQuery(None)
        self._others: tuple[str, ...] = ()
        self._runs = RunsReader(())

    def look(self) -> StatusLook:
        """Where it stands now."""
        if self._array is not None:
            array = self._array.look()
            return StatusLook(array, over=array.over)
        directory = self._directory
        if directory is None:
            found = search_for_job(self._job, self._log_dir)
            seen = self._look_at_array(found)
            if seen is not None:
                return seen
            if found.directory is None and found.record is not None:
                self._job = found.record.label  # the same one from now on
                if found.record.state in OVER:
                    for line in found.why.splitlines():
                        note(line)
                status = without_directory(found.record)
                return StatusLook(status, over=status.standing.over)
            directory = found.needed
            self._follow(directory)
        return self._look_at_job(self._newest_run(directory))

    def _look_at_array(self, found: JobSearch) -> StatusLook | None:
        """The look at an array that is meant as a whole; of a single task there is more to say than a line."""
        if not found.array:
            return None
        reader = ArrayReader(found.array, found.looked, self._secret_names)
        array = reader.look()
        if len(array.points) <= 1:
            return None
        self._array = reader
        return StatusLook(array, over=array.over)

    def _newest_run(self, directory: JobDirectory) -> JobDirectory:
        """The directory of the job's last run, and from now on that one; another may have begun."""
        step = slurm_step(directory)
        found = job_search.search_log_directory(directory.root, step.job) if self._whole and step is not None else None
        if found is None or found.directory is None:
            return directory
        if (found.directory, found.others) != (directory, self._others):
            self._follow(found.directory, found.others)
        return found.directory

    def _look_at_job(self, directory: JobDirectory) -> StatusLook:
        status = read_status(directory, eyes=self._eyes)
        record = status.slurm.record if status.slurm is not None else None
        batch = record is not None and record.batch
        goes_on = self._whole and record is not None and record.may_run_more
        runs = self._runs.look(status) if self._others and (self._named or batch) else ()
        return StatusLook(status, runs, status.standing.over and not goes_on)

    def _follow(self, directory: JobDirectory, others: Sequence[str] = ()) -> None:
        if directory != self._directory:
            self._directory = directory
            self._eyes = SlurmQuery(slurm_step(directory))
        self._others = tuple(others)
        self._runs = RunsReader([JobDirectory(directory.root, name) for name in others])


def _show(seen: StatusLook, *, as_json: bool, screen: bool) -> None:
    text = json.dumps(_as_dict(seen), indent=2) if as_json else _text(seen, terminal_colours.for_stream(sys.stdout))
    sys.stdout.write(f"{_HOME}{text}\n{_REST}" if screen else f"{text}\n")
    sys.stdout.flush()


def _as_dict(seen: StatusLook) -> dict[str, Any]:
    if isinstance(seen.status, ArrayStatus):
        return point_table.array_as_dict(seen.status)
    return {**status_view.status_as_dict(seen.status), "runs": point_table.points_as_list(seen.runs)}


def _text(seen: StatusLook, paint: terminal_colours.TerminalColours) -> str:
    if isinstance(seen.status, ArrayStatus):
        return point_table.array_text(seen.status, paint)
    runs = [point_table.runs_text(seen.runs, paint)] if seen.runs else []
    return "\n\n".join([status_view.text(seen.status, paint), *runs])
