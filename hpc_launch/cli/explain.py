"""`hpc-launch explain`."""

from __future__ import annotations

import contextlib
import os
import shlex
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import click

from hpc_launch import hostlist, redaction, text
from hpc_launch.cli.click_options import LINE_CONTEXT, GroupedCommand, ProgramCall, launch_options, settings_of
from hpc_launch.errors import ContextError
from hpc_launch.launch.plain import program_of
from hpc_launch.launch.srun_step import prepare, refuse_login_node
from hpc_launch.plan import advice, cpu_binding, derivation, step_forecast, termination_forecast
from hpc_launch.plan.launch_context import LaunchContext, addresses, check_script, gather_context
from hpc_launch.plan.launch_plan import DerivedValue, Plan
from hpc_launch.plan.requeue import policy
from hpc_launch.plan.step_plan import derive_step, wanted_allocation
from hpc_launch.settings import Origin, Settings, toml_writer
from hpc_launch.slurm import controller
from hpc_launch.slurm.cluster_rules import ClusterRules
from hpc_launch.slurm.environment import Allocation, Place, Step, requeue_id
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
    here = gather_context(os.environ, settings, context.ensure_object(ProgramCall).command, thorough=True)
    words = (script, *args) if script else ()
    job = wanted_allocation(settings, here)
    if job is not None:
        _explain_step(settings, here, job, words)
        return
    with _said_once(here):
        refuse_login_node(settings, here)
        if script:
            check_script(settings, script, here.directory)
        plan = derivation.make_plan(settings, here, words)
    if isinstance(here.slurm, Step) and not plan.world.leader:
        _tell_notes(f"{plan.world.host}: {line}" for line in plan.seen_here)
        return
    _tell_ranks(plan)
    _tell_values((*plan.derived, *_command(plan)))
    if script and settings.plain:
        line = redaction.redacted_arguments(program_of(plan, here).words, settings.secret_names)
        click.echo(f"  plain: {shlex.join(line)}")
    for row in cpu_binding.binding_table(plan.binding, plan.omp_num_threads):
        click.echo(f"  {row}")
    _tell_notes(plan.warnings)
    _tell_policy(settings)
    _advise(settings, here, plan.world, plan)


def _explain_step(settings: Settings, here: LaunchContext, job: Allocation, script: tuple[str, ...]) -> None:
    """Say which step `run` would start, and what it would do there. The second word is `explain`."""
    prepared = prepare(settings, here, job, [word for at, word in enumerate(here.command) if at != 1])
    request = prepared.request
    if script and job.node_name in request.hosts:
        check_script(settings, script[0], here.directory)
    there = step_forecast.first_task(here, job, request, prepared.grants)
    plan = derivation.make_plan(settings, there, script) if there is not None else None
    click.echo(f"a step is started on {hostlist.fold(request.hosts)} of job {job.job_label}, an agent per node")
    _tell_values(derive_step(job, request, prepared.line))
    if plan is not None:
        _tell_ranks(plan)
        _tell_values((*step_forecast.known_values(plan), *_command(plan)))
    _tell_notes(dict.fromkeys((*prepared.notes, *(plan.warnings if plan else settings.notes))))
    _tell_policy(settings)
    world = of_nodes(request.hosts, 0, Origin.JOB)
    if job.place is not Place.ELSEWHERE:
        _advise(settings, here, world, plan)
    elif plan is not None:
        _tell_notes(filter(None, [advice.superfluous(settings, plan, addresses(world))]))


@contextlib.contextmanager
def _said_once(here: LaunchContext) -> Iterator[None]:
    """Leave it to the first task to say how options contradict what Slurm says: all tasks find the same."""
    try:
        yield
    except ContextError as error:
        error.silent = isinstance(here.slurm, Step) and here.slurm.task > 0
        raise


def _tell_ranks(plan: Plan) -> None:
    ranks, hosts = plan.world.agents * plan.local_world_size, plan.world.hosts
    nodes = f"{len(hosts)} nodes, if all are like {plan.world.host}" if len(hosts) > 1 else "1 node"
    click.echo(f"{text.count(ranks, 'rank')} on {nodes}: {hostlist.fold(hosts)}")


def _tell_values(items: Sequence[DerivedValue]) -> None:
    width = max(len(item.name) for item in items)
    for item in items:
        click.echo(f"  {item.name:<{width}}  {item.value}" + (f"  ({item.origin})" if item.origin else ""))


def _command(plan: Plan) -> tuple[DerivedValue, ...]:
    return (DerivedValue("command", shlex.join(plan.script), ""),) if plan.script else ()


def _tell_notes(lines: Iterable[str]) -> None:
    for line in lines:
        click.echo(f"note: {line}")


def _tell_policy(settings: Settings) -> None:
    """Say what the site allows, where it sets limits."""
    for name, value in settings.policy.rules.items():
        click.echo(f"policy: {toml_writer.settings_line(name, value)}  ({settings.policy.place(name)})")


def _advise(settings: Settings, here: LaunchContext, world: World, plan: Plan | None) -> None:
    """Say what is worth knowing beside the plan, as far as there is one."""
    told, known = _ask(here), addresses(world)
    _tell_notes(advice.advice_lines(advice.AdviceContext(settings, here, world, told.rules, told.job, known)))
    if plan is not None:
        _tell_notes(filter(None, [advice.superfluous(settings, plan, known)]))
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
