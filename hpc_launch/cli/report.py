"""`hpc-launch report`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from hpc_launch.cli.click_options import CONTEXT, GroupedCommand
from hpc_launch.cli.job_options import job_directory, job_options, output
from hpc_launch.errors import LogDirError, UsageError, reason


@click.command(cls=GroupedCommand, context_settings={**CONTEXT, "allow_interspersed_args": True})
@job_options
@click.option(
    "-o", "--output", "file", metavar="FILE", help="Where to write it. Default: report.html in the job's directory."
)
@click.option("--markdown", is_flag=True, help="Print it as Markdown; with --output, write that.")
@click.pass_context
def report(context: click.Context, /, *, job: str, file: str | None, markdown: bool, **given: Any) -> None:
    """Write a page about a job: what happened, as one HTML file for a browser, or to send to somebody.

    It has a timeline of all ranks, the root cause of failures, how each rank ended, and links to the log files. It
    needs no network, and shows a running job as it is now. JOB is a job's id, 1234, 1234.0 or 12_3 for a task of an
    array, or its directory; without it, the latest job in logs/.
    """
    from hpc_launch.inspection import job_report  # noqa: PLC0415 - jinja2 is for those who want a page

    if file == "":
        raise UsageError("--output: an empty name; expected the name of a file", option="--output")
    directory = job_directory(context, job, given)
    made = job_report.report_on_job(directory.path)
    with output():
        if markdown and file is None:
            sys.stdout.buffer.write(made.markdown().encode(errors="replace"))
            return
        path = Path(file) if file is not None else directory.path / "report.html"
        try:
            made.write_markdown(path) if markdown else made.write(path)
        except OSError as error:
            raise LogDirError(f"cannot write {path}: {reason(error)}; name another file with --output") from error
        sys.stdout.write(f"{path}\n")
