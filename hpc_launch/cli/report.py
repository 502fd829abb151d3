"""`hpc-launch report`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import click

from hpc_launch.cli.options import CONTEXT, launch_option, settings_of
from hpc_launch.errors import LogDirError, UsageError, reason
from hpc_launch.review import find


@click.command(context_settings={**CONTEXT, "allow_interspersed_args": True})
@launch_option("log_dir")
@launch_option("verbose")
@click.option("-o", "--output", metavar="FILE", help="Where to write it; default report.html in the job's directory.")
@click.option("--markdown", is_flag=True, help="Print it as Markdown instead; with --output it is written there.")
@click.argument("job", default="")
@click.pass_context
def report(context: click.Context, /, job: str, output: str | None, *, markdown: bool, **given: Any) -> None:
    """Write a page about JOB that says what happened: one HTML file, for a browser or to send to somebody.

    It has a timeline of all ranks, the root cause of failures, how each rank ended, and links to the log files. It
    needs no network, and shows a running job as it is now. JOB is a job's id, or the path of its directory; without
    it, the latest.
    """
    from hpc_launch.review import reports  # noqa: PLC0415 - jinja2 is for those who want a page

    settings = settings_of(context, given)
    directory = find.job_directory(job, directory=Path.cwd(), environ=os.environ, log_dir=settings.log_dir)
    made = reports.of(directory.path)
    if markdown and output is None:
        sys.stdout.flush()
        sys.stdout.buffer.write(made.markdown().encode(errors="replace"))
        return
    if output == "":
        raise UsageError("--output: an empty name; expected the name of a file", option="--output")
    path = Path(output) if output is not None else None
    try:
        click.echo(made.write_markdown(path) if markdown and path is not None else made.write(path))
    except OSError as error:
        where = path if path is not None else directory.path
        raise LogDirError(f"cannot write {where}: {reason(error)}; name another file with --output") from error
