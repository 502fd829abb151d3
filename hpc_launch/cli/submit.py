"""`hpc-launch submit`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import click

from hpc_launch.cli.options import CONTEXT, launch_options
from hpc_launch.settings import specs
from hpc_launch.submission.options import OPTIONS, Kind, SubmitOption

_Function = TypeVar("_Function", bound=Callable[..., Any])

# Slurm's options are parameters with this before their names, which hpc-launch's own may have too.
_PARAMETER = "slurm_"

_SUBMISSION = "Submission"


def submit_options(function: _Function) -> _Function:
    """Give a command Slurm's options, and those of the `[submit]` table."""
    for option in reversed(OPTIONS.values()):
        flags = [option.flag, *([option.short] if option.short else []), _parameter(option.name)]
        if option.kind is Kind.SWITCH:
            function = click.option(*flags, is_flag=True, default=None, help=option.help)(function)
        else:
            many = option.kind is not Kind.VALUE
            function = click.option(*flags, multiple=many, default=None, metavar=option.metavar, help=option.help)(
                function
            )
    return function


def _parameter(name: str) -> str:
    return _PARAMETER + name.replace("-", "_")


# Options of `run` that say where in an allocation it is to run: a job that is submitted is one of its own.
_OF_AN_ALLOCATION = frozenset({"nodes", "jobid", "overlap"})


class SubmitCommand(click.Command):
    """A command whose own options are shown under headings, and those of `run` by a line."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, by group."""
        headings = {_parameter(name): option.group for name, option in OPTIONS.items()}
        groups: dict[str, list[tuple[str, str]]] = {_SUBMISSION: []}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx) if isinstance(parameter, click.Option) else None
            if record is not None and parameter.name not in specs():
                groups.setdefault(headings.get(parameter.name or "", _SUBMISSION), []).append(record)
        for heading, records in groups.items():
            with formatter.section(heading):
                formatter.write_dl(records)
        with formatter.section("Run"):
            formatter.write_text("All options of `hpc-launch run` as well: they are for the job.")


@click.command(cls=SubmitCommand, context_settings=CONTEXT)
@functools.partial(launch_options, but=_OF_AN_ALLOCATION)
@submit_options
@click.option(
    "--sweep",
    multiple=True,
    metavar="NAME=VALUES",
    help="Run once for each of VALUE,VALUE,...: a job array. Repeated: for all combinations.",
)
@click.option(
    "--after",
    multiple=True,
    metavar="JOB[:STATE]",
    help="Start after another job: ok (the default), any, notok, corr, start.",
)
@click.option("--check", is_flag=True, help="Run `hpc-launch check` in the job before the training.")
@click.option("--snapshot", "take_snapshot", is_flag=True, help="Run the code as it is now: a copy of what git tracks.")
@click.option(
    "--snapshot-changes",
    type=click.Choice(["refuse", "record"]),
    default="refuse",
    metavar="refuse|record",
    help="What to do about uncommitted changes; default refuse.",
)
@click.option("--dry-run", is_flag=True, help="Print the job script, and do nothing.")
@click.option("--test-only", is_flag=True, help="Ask Slurm whether it would take the job and when it would start.")
@click.option("--wait", is_flag=True, help="Wait for the end of the job, and end with its exit status.")
@click.option("--follow", is_flag=True, help="The same, and show its output.")
@click.option("--parsable", is_flag=True, help="Print the job's number only (and ;CLUSTER, where there are several).")
@click.argument("script")
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def submit(context: click.Context, /, script: str, args: tuple[str, ...], **given: Any) -> int:
    """Submit a job that runs SCRIPT with ARGS on every rank.

    The job script is made from a template, and can be seen with --dry-run. Slurm's options have their own names; what
    stands before SCRIPT and is none of these is an option of `hpc-launch run`, and what follows it is the script's own.
    All but the last group can be kept in the [submit] table of a settings file, and as HPC_LAUNCH_SUBMIT_<NAME>.
    """
    # Every node of every run imports the commands, and few of them submit.
    from hpc_launch.cli.submitting import submitting  # noqa: PLC0415 - see above

    flags = {name: value for name in OPTIONS if (value := _flag(OPTIONS[name], given[_parameter(name)])) is not None}
    return submitting(context, (script, *args), flags, given)


def _flag(option: SubmitOption, value: Any) -> Any:
    """What a flag says; None where it was not given."""
    if value is None or value == ():
        return None
    if option.kind is Kind.WORDS:
        return tuple(word.strip() for text in value for word in text.split(",") if word.strip())
    return value
