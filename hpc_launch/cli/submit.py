"""`hpc-launch submit`."""

from __future__ import annotations

from typing import Any

import click

from hpc_launch.cli.click_options import CONTEXT, GroupedCommand, launch_options, with_options
from hpc_launch.settings import specs
from hpc_launch.submission.submit_options import OPTIONS

# Slurm's options are parameters with this before their names, which hpc-launch's own may have too.
_PARAMETERS = {name: "slurm_" + name.replace("-", "_") for name in OPTIONS}
_GROUPS = {_PARAMETERS[name]: option.group for name, option in OPTIONS.items()}

_SUBMISSION = "Submission"

# Options of `run` that say where in an allocation it is to run: a job that is submitted is one of its own.
_OF_AN_ALLOCATION = frozenset({"nodes", "jobid", "overlap"})


class SubmitCommand(GroupedCommand):
    """A command whose own options are shown under headings, and those of `run` by a line."""

    first_headings = (_SUBMISSION,)

    def heading(self, parameter: click.Parameter) -> str:
        """What is above an option; empty for those of `run`, and for arguments."""
        shown = isinstance(parameter, click.Option) and parameter.name not in specs()
        return _GROUPS.get(parameter.name or "", _SUBMISSION) if shown else ""

    def own_options(self, context: click.Context) -> frozenset[str]:
        """The long options that concern the submission, and not the run."""
        own = (parameter for parameter in self.get_params(context) if self.heading(parameter))
        return frozenset(word for parameter in own for word in parameter.opts if word.startswith("--"))

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, by group."""
        super().format_options(ctx, formatter)
        with formatter.section("Run"):
            formatter.write_text("All options of `hpc-launch run` as well: they are for the job.")


@click.command(cls=SubmitCommand, context_settings=CONTEXT)
@launch_options(*(name for name in specs() if name not in _OF_AN_ALLOCATION))
@with_options({_PARAMETERS[name]: option for name, option in OPTIONS.items()})
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
    An option of these groups that follows SCRIPT is refused, unless the script's text has it too; after `SCRIPT --`
    everything is the script's. All but the last group can be kept in the [submit] table of a settings file, and as
    HPC_LAUNCH_SUBMIT_<NAME>.
    """
    # Every node of every run imports the commands, and few of them submit.
    from hpc_launch.cli.submit_request import submitting  # noqa: PLC0415 - see above

    flags = {name: given[parameter] for name, parameter in _PARAMETERS.items() if given[parameter] not in (None, ())}
    own = context.command.own_options(context) if isinstance(context.command, SubmitCommand) else frozenset()
    return submitting(context, (script, *args), own, flags, given)
