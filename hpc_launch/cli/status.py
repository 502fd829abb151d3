"""`hpc-launch status`."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import click

from hpc_launch.cli.click_options import CONTEXT, GroupedCommand, settings_of
from hpc_launch.cli.job_options import job_options, note, output, search_for_job
from hpc_launch.inspection import status_view, terminal_colours
from hpc_launch.inspection.job_search import slurm_step
from hpc_launch.inspection.job_status import read_status, without_directory
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
    logs/. The job directory is read first, and Slurm asked second: what cannot be seen is said to be unknown.
    """
    settings = settings_of(context, given)
    looking = StatusLoop(job, settings.log_dir)
    with output():
        while True:
            begin = time.monotonic()
            seen = looking.look()
            _show(seen, as_json=as_json, screen=watch and sys.stdout.isatty() and not as_json)
            if not watch or seen.standing.over:
                return
            time.sleep(max(interval, _PAUSE_PER_LOOK * (time.monotonic() - begin)))


class StatusLoop:
    """Looks at a job, from before it has a directory."""

    def __init__(self, job: str, log_dir: str | None) -> None:
        self._job = job
        self._log_dir = log_dir
        self._directory: JobDirectory | None = None
        self._eyes = SlurmQuery(None)

    def look(self) -> JobStatus:
        """Where it stands now."""
        if self._directory is None:
            found = search_for_job(self._job, self._log_dir)
            if found.directory is None and found.record is not None:
                self._job = found.record.label  # the same one from now on
                if found.record.state in OVER:
                    for line in found.why.splitlines():
                        note(line)
                return without_directory(found.record)
            self._directory = found.needed
            self._eyes = SlurmQuery(slurm_step(self._directory))
        return read_status(self._directory, eyes=self._eyes)


def _show(seen: JobStatus, *, as_json: bool, screen: bool) -> None:
    if as_json:
        text = json.dumps(status_view.status_as_dict(seen), indent=2)
    else:
        text = status_view.text(seen, terminal_colours.for_stream(sys.stdout))
    sys.stdout.write(f"{_HOME}{text}\n{_REST}" if screen else f"{text}\n")
    sys.stdout.flush()
