"""`hpc-launch explain`."""

from __future__ import annotations

import os
import shlex
from typing import Any

import click

from hpc_launch import hostlist
from hpc_launch.cli.options import CONTEXT, Call, GroupedCommand, launch_options, settings_of
from hpc_launch.plan import derive
from hpc_launch.plan.here import check_script, gather


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
    for warning in plan.warnings:
        click.echo(f"note: {warning}")
