"""`hpc-launch explain`."""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass
from typing import Any

import click

from hpc_launch import hostlist, redaction
from hpc_launch.cli.click_options import LINE_CONTEXT, GroupedCommand, ProgramCall, launch_options, settings_of
from hpc_launch.launch.plain import program_of
from hpc_launch.launch.srun_step import prepare, why_not_here
from hpc_launch.plan import advice, cpu_binding, derivation, termination_forecast
from hpc_launch.plan.launch_context import LaunchContext, addresses, check_script, gather_context
from hpc_launch.plan.requeue import policy
from hpc_launch.plan.step_plan import derive_step, wanted_allocation
from hpc_launch.settings import Origin, Settings, toml_writer
from hpc_launch.slurm import controller
from hpc_launch.slurm.cluster_rules import ClusterRules
from hpc_launch.slurm.environment import Allocation, Place, requeue_id
from hpc_launch.slurm.job import JobRecord
from hpc_launch.world import World, of_nodes

# Seconds for each question to Slurm: somebody is waiting for the answer.
_PATIENCE = 2.0


@click.command(cls=GroupedCommand, context_settings=LINE_CONTEXT)
@launch_options()
@click.argument("script", default="")
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def explain(context: click.Context, /, script: str, args: tuple[str, ...], **given: Any) -> None:
    """Say what `run` would do with these options here, where each value comes from, and what looks wrong.

    Nothing is started.
    """
    settings = settings_of(context, given)
    here = gather_context(os.environ, settings, context.ensure_object(ProgramCall).command)
    job = wanted_allocation(settings, here)
    if job is not None:
        _explain_step(settings, here, job)
        return
    if script:
        check_script(settings, script, here.directory)
    plan = derivation.make_plan(settings, here, (script, *args) if script else ())
    ranks = plan.world.agents * plan.local_world_size
    nodes = len(plan.world.hosts)
    where = f"{nodes} nodes, if all are like this one" if nodes > 1 else "1 node"
    click.echo(f"{ranks} rank{'s' if ranks > 1 else ''} on {where}: {hostlist.fold(plan.world.hosts)}")
    width = max(len(item.name) for item in plan.derived)
    for item in plan.derived:
        click.echo(f"  {item.name:<{width}}  {item.value}  ({item.origin})")
    if script:
        click.echo(f"  {'command':<{width}}  {shlex.join(plan.script)}")
    if script and settings.plain:
        words = redaction.redacted_arguments(program_of(plan, here).words, settings.secret_names)
        click.echo(f"  {'plain':<{width}}  {shlex.join(words)}")
    for line in cpu_binding.binding_table(plan.binding, plan.omp_num_threads):
        click.echo(f"  {line}")
    for warning in (*plan.warnings, *filter(None, [why_not_here(settings, here)])):
        click.echo(f"note: {warning}")
    _tell_policy(settings)
    _advise(settings, here, plan.world)


def _explain_step(settings: Settings, here: LaunchContext, job: Allocation) -> None:
    """Say which step `run` would start; what runs in it is explained there. The second word is `explain`."""
    prepared = prepare(settings, here, job, [word for at, word in enumerate(here.command) if at != 1])
    items = derive_step(job, prepared.request, prepared.line)
    click.echo(
        f"a step is started on {hostlist.fold(prepared.request.hosts)} of job {job.job_label}, an agent per node"
    )
    width = max(len(item.name) for item in items)
    for item in items:
        click.echo(f"  {item.name:<{width}}  {item.value}  ({item.origin})")
    for note in prepared.notes:
        click.echo(f"note: {note}")
    _tell_policy(settings)
    if job.place is not Place.ELSEWHERE:
        _advise(settings, here, of_nodes(prepared.request.hosts, 0, Origin.JOB))


def _tell_policy(settings: Settings) -> None:
    """Say what the site allows, where it sets limits."""
    for name, value in settings.policy.rules.items():
        click.echo(f"policy: {toml_writer.settings_line(name, value)}  ({settings.policy.place(name)})")


def _advise(settings: Settings, here: LaunchContext, world: World) -> None:
    """Say what is worth knowing beside the plan."""
    told = _ask(here)
    for line in advice.advice_lines(
        advice.AdviceContext(settings, here, world, told.rules, told.job, addresses(world))
    ):
        click.echo(f"note: {line}")
    for line in _foretold(settings, here, told):
        click.echo(f"Slurm: {line}")


@dataclass(frozen=True)
class _Told:
    """What the controller says of the cluster and of this job; None where it says nothing."""

    rules: ClusterRules | None = None
    job: JobRecord | None = None


def _ask(here: LaunchContext) -> _Told:
    """Ask the controller. One that is silent once is not asked again."""
    job_id = requeue_id(here.environ) if here.slurm is not None else ""
    rules = controller.ask_rules(_PATIENCE) if job_id else None
    return _Told(rules, controller.ask_job(job_id, _PATIENCE) if rules is not None else None)


def _foretold(settings: Settings, here: LaunchContext, told: _Told) -> tuple[str, ...]:
    """What Slurm is going to do with this job."""
    rules, job = told.rules, told.job
    if rules is None:
        return ()
    partition = controller.ask_partition(job.partition, _PATIENCE) if job is not None else None
    script = controller.ask_script(job.job_id, _PATIENCE) if job is not None and job.batch else None
    asked = policy(settings.requeue, settings.max_requeues, settings.requeue_patience)
    grace = settings.shutdown_timeout
    return termination_forecast.forecast_lines(rules, job, partition, asked, here.environ, script=script, grace=grace)
