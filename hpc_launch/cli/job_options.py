"""What the commands share that read job directories: which job is meant, and what becomes of their output."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import click

from hpc_launch.cli.click_options import launch_options, settings_of
from hpc_launch.inspection import job_search
from hpc_launch.records.directory import JobDirectory
from hpc_launch.text import visible

_Function = TypeVar("_Function", bound=Callable[..., Any])

# Options of a run that say where job directories are.
_WHERE = ("log_dir", "profile", "verbose")


def job_options(function: _Function) -> _Function:
    """Give a command the argument JOB, and the options by which its directory is found."""
    return click.argument("job", default="", metavar="[JOB]")(launch_options(*_WHERE)(function))


def search_for_job(job: str, log_dir: str | None) -> job_search.JobSearch:
    """Look for the job that is meant; says so where it has other directories as well."""
    found = job_search.search_job(job, directory=Path.cwd(), environ=os.environ, log_dir=log_dir)
    if found.others and found.directory is not None:
        note(f"this is {found.directory.job}; the job has other runs: {', '.join(found.others)}")
    return found


def job_directory(context: click.Context, job: str, given: dict[str, Any]) -> JobDirectory:
    """The directory of the job that is meant.

    Raises:
        JobNotFoundError: where there is none.
    """
    return search_for_job(job, settings_of(context, given).log_dir).needed


def note(line: str) -> None:
    """Say something beside the output."""
    with contextlib.suppress(OSError):  # a console that is full or gone
        click.echo(f"hpc-launch: note: {visible(line)}", err=True)


@contextlib.contextmanager
def output() -> Iterator[None]:
    """Write to whoever reads; that they read no more (`| head`) is no error."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        # What Python still has to write when it ends would be the same error again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
