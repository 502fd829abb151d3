"""`hpc-launch env`."""

from __future__ import annotations

import json
import os
import shlex
from typing import Any

import click

from hpc_launch.cli.click_options import LINE_CONTEXT, GroupedCommand, launch_options, settings_of
from hpc_launch.launch.srun_step import prepare
from hpc_launch.plan import derivation, step_forecast
from hpc_launch.plan.launch_context import LaunchContext, gather_context
from hpc_launch.plan.launch_plan import DerivedValue
from hpc_launch.plan.step_plan import derive_step, wanted_allocation
from hpc_launch.settings import Settings

# What other programs look for, by the name of the derived value.
_EXPORTED = {
    "nnodes": "NNODES",
    "node_rank": "NODE_RANK",
    "nproc_per_node": "NPROC_PER_NODE",
    "master_addr": "MASTER_ADDR",
    "master_port": "MASTER_PORT",
    "rdzv_id": "RDZV_ID",
    "omp_num_threads": "OMP_NUM_THREADS",
    "rank": "RANK",
    "local_rank": "LOCAL_RANK",
    "world_size": "WORLD_SIZE",
    "local_world_size": "LOCAL_WORLD_SIZE",
}


def _derived(settings: Settings, here: LaunchContext) -> tuple[DerivedValue, ...]:
    """What is known here: of a step that has to be started first, less."""
    job = wanted_allocation(settings, here)
    if job is None:
        return derivation.make_plan(settings, here, ()).derived
    prepared = prepare(settings, here, job, ["hpc-launch"])
    there = step_forecast.first_task(here, job, prepared.request, prepared.grants)
    known = step_forecast.known_values(derivation.make_plan(settings, there, ())) if there is not None else ()
    return (*derive_step(job, prepared.request, prepared.line), *known)


@click.command(cls=GroupedCommand, context_settings=LINE_CONTEXT)
@launch_options()
@click.option("--export", "as_export", is_flag=True, help="Print 'export NAME=value' lines, for eval.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def env(context: click.Context, /, *, as_export: bool, as_json: bool, **given: Any) -> None:
    """Print what was derived, and where each value came from.

    With --export the values have the names that other launchers and scripts read. RANK and its like are among them only
    where this process is one rank (one Slurm task per rank).
    """
    settings = settings_of(context, given)
    here = gather_context(os.environ, settings)
    items = _derived(settings, here)
    if as_json:
        click.echo(json.dumps({item.name: {"value": item.value, "origin": item.origin} for item in items}, indent=2))
        return
    for item in items:
        if not as_export:
            click.echo(f"{item.name}={shlex.quote(item.value)}  # {item.origin}")
        elif item.name in _EXPORTED and item.value:
            click.echo(f"export {_EXPORTED[item.name]}={shlex.quote(item.value)}")
