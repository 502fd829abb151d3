"""`hpc-launch explain`."""

from __future__ import annotations

import os
import shlex
from typing import Any

import click

from hpc_launch import hostlist
from hpc_launch.cli.options import CONTEXT, Call, GroupedCommand, launch_options, settings_of
from hpc_launch.plan import binding, derive, foretell
from hpc_launch.plan.here import Here, check_script, gather
from hpc_launch.plan.requeue import policy
from hpc_launch.settings import Settings
from hpc_launch.slurm import controller

# Seconds for each question to Slurm: somebody is waiting for the answer.
_PATIENCE = 2.0


@click.command(cls=GroupedCommand, context_settings=CONTEXT)
@launch_options
@click.argument("script", default="")
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def explain(context: click.Context, /, script: str, args: tuple[str, ...], **given: Any) -> None:
    """Say what `run` would do with these options here, where each value comes from, and what looks wrong.

    Nothing is started.
    """
    settings = settings_of(context, given)
    here = gather(os.environ, context.ensure_object(Call).command, alone=settings.standalone)
    if script:
        check_script(settings, script, here.directory)
    plan = derive.make(settings, here, (script, *args) if script else ())
    ranks = plan.world.agents * plan.local_world_size
    click.echo(
        f"{ranks} ranks on {len(plan.world.hosts)} node(s), if all are like this one: {hostlist.fold(plan.world.hosts)}"
    )
    width = max(len(item.name) for item in plan.derived)
    for item in plan.derived:
        click.echo(f"  {item.name:<{width}}  {item.value}  ({item.origin})")
    if script:
        click.echo(f"  {'command':<{width}}  {shlex.join(plan.script)}")
    for line in binding.table(plan.binding, plan.omp_num_threads):
        click.echo(f"  {line}")
    for warning in plan.warnings:
        click.echo(f"note: {warning}")
    for line in _foretold(settings, here):
        click.echo(f"Slurm: {line}")


def _foretold(settings: Settings, here: Here) -> tuple[str, ...]:
    """What Slurm is going to do with this job. A controller that is silent once is not asked again."""
    job_id = controller.requeue_id(here.environ) if here.slurm is not None else ""
    rules = controller.ask_rules(_PATIENCE) if job_id else None
    if rules is None:
        return ()
    job = controller.ask_job(job_id, _PATIENCE)
    partition = controller.ask_partition(job.partition, _PATIENCE) if job is not None else None
    script = controller.ask_script(job.job_id, _PATIENCE) if job is not None and job.batch else None
    asked = policy(settings.requeue, settings.max_requeues, settings.requeue_patience)
    grace = settings.shutdown_timeout
    return foretell.lines(rules, job, partition, asked, here.environ, script=script, grace=grace)
