"""`hpc-launch stacks`."""

from __future__ import annotations

import json
import os
from pathlib import Path

import click

from hpc_launch.cli.options import CONTEXT
from hpc_launch.review import find, stacks as review
from hpc_launch.review.stacks_text import text


@click.command(context_settings={**CONTEXT, "allow_interspersed_args": True})
@click.argument("job", default="")
@click.option("--log-dir", metavar="DIR", help="Where job directories are. Default: where hpc-launch makes them.")
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
def stacks(*, job: str, log_dir: str | None, by: str, whole: bool, timeout: float, as_json: bool) -> int:
    """Show where every rank of a running job is: its Python stacks, alike with alike.

    JOB is a job's id, a job directory, or nothing for the latest. The job goes on. What is seen is also written into
    the job directory. The exit status is 0 where the stacks of all ranks were seen, and 1 where not.
    """
    directory = find.job_directory(job, directory=Path.cwd(), environ=os.environ, log_dir=log_dir)
    found = review.take(directory, ways=review.BY[by], patience=timeout)
    click.echo(json.dumps(found.as_dict(), indent=2) if as_json else text(found, whole=whole))
    return int(not found.complete)
