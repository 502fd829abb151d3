"""`hpc-launch stacks`."""

from __future__ import annotations

import json
from typing import Any

import click

from hpc_launch.cli.click_options import CONTEXT, GroupedCommand
from hpc_launch.cli.job_options import job_directory, job_options, output
from hpc_launch.inspection import stack_collection as review
from hpc_launch.inspection.stacks_view import text


@click.command(cls=GroupedCommand, context_settings={**CONTEXT, "allow_interspersed_args": True})
@job_options
@click.option(
    "--by",
    type=click.Choice(list(review.BY)),
    default="auto",
    help="How stacks are taken. py-spy: by that program, where it is installed and may; signal: by asking the workers; "
    "auto: the first that can. Default: auto.",
)
@click.option(
    "--whole", is_flag=True, help="Show every call of every stack, and those of further threads and children."
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=1),
    default=30.0,
    metavar="SECONDS",
    help="How long each node may take. Default: 30.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def stacks(
    context: click.Context, /, *, job: str, by: str, whole: bool, timeout: float, as_json: bool, **given: Any
) -> int:
    """Show where every rank of a running job is: its Python stacks, alike with alike.

    JOB is a job's id, 1234, 1234.0 or 12_3 for a task of an array, or its directory; without it, the latest job in
    logs/. The job goes on. What is seen is also written into the job's directory. The exit status is 0 where the stacks
    of all ranks were seen, and 1 where not.
    """
    found = review.collect_stacks(job_directory(context, job, given), ways=review.BY[by], patience=timeout)
    with output():
        click.echo(json.dumps(found.as_dict(), indent=2) if as_json else text(found, whole=whole))
    return int(not found.complete)
