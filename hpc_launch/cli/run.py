"""`hpc-launch run`."""

from __future__ import annotations

import os
from typing import Any

import click
from click.shell_completion import get_completion_class

from hpc_launch.cli.click_options import LINE_CONTEXT, GroupedCommand, ProgramCall, launch_options, settings_of
from hpc_launch.launch.launcher import run_launcher as run_plan
from hpc_launch.plan.launch_context import gather_context

_SHELLS = ("bash", "zsh", "fish", "tcsh")


def _print_completion(context: click.Context, _parameter: click.Parameter, shell: str | None) -> None:
    if shell is None:
        return
    if shell == "tcsh":
        click.echo(_tcsh_completion(context))
    completion = get_completion_class(shell)
    if completion is not None:
        root = context.find_root().command
        click.echo(completion(root, {}, "hpc-launch", "_HPC_LAUNCH_COMPLETE").source())
    context.exit()


def _tcsh_completion(context: click.Context) -> str:
    """The line for tcsh, which click does not know: its own words, and files."""
    params = context.command.get_params(context)
    names = sorted(option[2:] for param in params for option in param.opts if option.startswith("--"))
    return f"complete hpc-launch 'c/--/({' '.join(names)})/' 'p/*/f/'"


@click.command(cls=GroupedCommand, context_settings=LINE_CONTEXT)
@launch_options()
@click.option(
    "--print-completion",
    type=click.Choice(_SHELLS),
    metavar="|".join(_SHELLS),
    is_eager=True,
    expose_value=False,
    callback=_print_completion,
    help="Print the shell's completion script and end.",
)
@click.argument("script")
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def run(context: click.Context, /, script: str, args: tuple[str, ...], **given: Any) -> None:
    """Run SCRIPT with ARGS on every rank. This is the default command.

    Every option of torchrun works under its own name, with dashes or underscores, and as HPC_LAUNCH_<NAME> or
    PET_<NAME> in the environment; most can be kept in settings files. Values that are not given are derived from Slurm
    or the host list; `hpc-launch explain` shows them.
    """
    settings = settings_of(context, given)
    run_plan(
        settings, (script, *args), gather_context(os.environ, settings, context.ensure_object(ProgramCall).command)
    )
