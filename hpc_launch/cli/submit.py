"""`hpc-launch submit`."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from hpc_launch import __version__
from hpc_launch.cli.options import CONTEXT, launch_options, settings_of
from hpc_launch.errors import UsageError
from hpc_launch.settings import Settings, files, specs
from hpc_launch.slurm.times import read_time_limit
from hpc_launch.submission import asked, plan, quoting, run, sbatch, sweep
from hpc_launch.submission.options import OPTIONS, Kind, SubmitOption
from hpc_launch.submission.request import JobRequest, Software, Submission

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


class SubmitCommand(click.Command):
    """A command whose own options are shown under headings, and those of `run` by a line."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, by group."""
        headings = {_parameter(name): option.group for name, option in OPTIONS.items()}
        groups: dict[str, list[tuple[str, str]]] = {_SUBMISSION: []}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None and parameter.name not in specs():
                groups.setdefault(headings.get(parameter.name or "", _SUBMISSION), []).append(record)
        for heading, records in groups.items():
            with formatter.section(heading):
                formatter.write_dl(records)
        with formatter.section("Run"):
            formatter.write_text("All options of `hpc-launch run` as well: they are for the job.")


@click.command(cls=SubmitCommand, context_settings=CONTEXT)
@launch_options
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
    launch = {name: given[name] for name in specs()}
    _refuse_time(launch)
    settings = settings_of(context, launch)
    _refuse_contradictions(given)
    flags = {name: value for name in OPTIONS if (value := _flag(OPTIONS[name], given[_parameter(name)])) is not None}
    layers = files.load(os.environ, Path.cwd(), settings.profile or "").layers
    first = asked.resolve(flags, os.environ, layers)
    nodes = run.ask_nodes(first.text("partition"), first.text("clusters"))
    wanted = asked.resolve(flags, os.environ, layers, nodes[0].partition if nodes else first.text("partition"))
    request = _request(settings, wanted, (script, *args), given)
    run.see_script(settings, request, Path.cwd(), _note)
    with _code(settings, request, given) as placed:
        found = run.draft(placed, wanted.text("template"), nodes, os.environ, Path.cwd())
        submission = plan.make(placed, found.draft, run.here(os.environ, __version__), nodes, chosen=found.why)
        _tell(submission, settings, run.unknown_jobs(request.after))
        if given["dry_run"]:
            click.echo(submission.script, nl=False)
            _say(f"to be submitted with: {quoting.words(submission.command)}")
            return 0
        if given["test_only"]:
            click.echo(sbatch.verdict(submission))
            return 0
        job = run.submit(submission)
    for line in job.said:
        _say(f"Slurm: {line}")
    click.echo(job.parsable if given["parsable"] else run.announce(job, submission))
    if not (given["wait"] or given["follow"]):
        return 0
    return run.wait(job, _say, sys.stdout.buffer if given["follow"] else None)


# --- what is asked


def _flag(option: SubmitOption, value: Any) -> Any:
    """What a flag says; None where it was not given."""
    if value is None or value == ():
        return None
    if option.kind is Kind.WORDS:
        return tuple(word.strip() for text in value for word in text.split(",") if word.strip())
    return value


def _words(given: Mapping[str, Any]) -> tuple[str, ...]:
    """The options of hpc-launch as they were given."""
    words: list[str] = []
    for name, spec in specs().items():
        value = given[name]
        if value is None:
            continue
        if isinstance(value, bool):
            words.append(spec.flag if value else f"--no-{spec.keys[0]}")
        else:
            words += [f"{spec.flag}={value}"] if value.startswith("-") or not value else [spec.flag, value]
    return tuple(words)


def _request(settings: Settings, wanted: asked.Asked, command: tuple[str, ...], given: Mapping[str, Any]) -> JobRequest:
    venv = wanted.text("venv")
    return JobRequest(
        script=command[0],
        arguments=command[1:],
        options=_words(given),
        slurm=wanted.slurm(),
        sbatch_args=wanted.many("sbatch-arg"),
        limits=wanted.limits(),
        software=Software(wanted.many("modules"), _venv(venv) if venv else "", wanted.many("setup")),
        sweep=tuple(sweep.read(text) for text in given["sweep"]),
        after=given["after"],
        requeue=settings.requeue,
        check=given["check"],
        keep=wanted.many("keep-environment"),
    )


def _venv(text: str) -> str:
    path = Path.cwd() / Path(text).expanduser()
    if not (path / "bin/activate").is_file():
        raise UsageError(f"--venv: {path} is no virtual environment: it has no bin/activate", option="--venv")
    return str(path)


def _refuse_time(launch: Mapping[str, Any]) -> None:
    text = launch["tee"] or ""
    if len(text) > 1 and (text.isdigit() or "-" in text or ":" in text) and read_time_limit(text) is not None:
        raise UsageError(f"-t is --tee, of hpc-launch: for the time limit, write --time={text}", option="--time")


def _refuse_contradictions(given: Mapping[str, Any]) -> None:
    if given["follow"] and (given["sweep"] or given["slurm_array"]):
        raise UsageError("--follow shows the output of one job, not of an array: give --wait", option="--follow")
    for one in ("dry_run", "test_only"):
        for other in ("wait", "follow", "parsable"):
            if given[one] and given[other]:
                flags = f"--{one}".replace("_", "-"), f"--{other}"
                raise UsageError(f"{flags[0]} submits nothing: leave out it or {flags[1]}", option=flags[0])


def _code(
    settings: Settings, request: JobRequest, given: Mapping[str, Any]
) -> contextlib.AbstractContextManager[JobRequest]:
    """The request, for the code as it is now where that is asked for: copied to where job directories are."""
    if not given["take_snapshot"]:
        return contextlib.nullcontext(request)
    name = f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    destination = Path.cwd() / (settings.log_dir or "logs") / "snapshots" / name
    if given["dry_run"] or given["test_only"]:
        _note(f"--snapshot would copy the code to {destination}")
        return contextlib.nullcontext(request)
    is_file = not (settings.module or settings.no_python)
    return run.copied_code(request, Path.cwd(), destination, _note, changes=given["snapshot_changes"], is_file=is_file)


# --- what is said


def _tell(submission: Submission, settings: Settings, unknown: Sequence[str]) -> None:
    for note in submission.notes:
        _note(note)
    for job in unknown:
        _note(f"--after: Slurm knows no job {job}: it has ended some time ago, or another one is meant")
    if settings.verbose and submission.dropped:
        _say(f"submitted without {', '.join(submission.dropped)}")


def _note(line: str) -> None:
    _say(f"note: {line}")


def _say(line: str) -> None:
    click.echo(f"hpc-launch: {line}", err=True)
