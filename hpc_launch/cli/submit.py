"""`hpc-launch submit`."""

from __future__ import annotations

import functools
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click

from hpc_launch import __version__
from hpc_launch.cli.options import CONTEXT, launch_options, settings_of
from hpc_launch.errors import Interrupted, LogDirError, ScriptError, UsageError, reason
from hpc_launch.plan.here import check_script
from hpc_launch.settings import Settings, files, specs
from hpc_launch.slurm import controller
from hpc_launch.slurm.inventory import NodeGroup
from hpc_launch.slurm.times import read_time_limit
from hpc_launch.submission import asked, plan, quoting, sbatch, snapshot, sweep, templates, watch
from hpc_launch.submission.options import OPTIONS, Kind, SubmitOption
from hpc_launch.submission.render import Draft
from hpc_launch.submission.request import Here, JobRequest, Software, Submission

_Function = TypeVar("_Function", bound=Callable[..., Any])

# Slurm's options are parameters with this before their names, which hpc-launch's own may have too.
_PARAMETER = "slurm_"

# Seconds for a question to Slurm whose answer would be good to have.
_PATIENCE = 5.0

# Lines of the output of a job that has failed.
_LAST_LINES = 20

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
            record = parameter.get_help_record(ctx)
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
    launch = {name: given.get(name) for name in specs()}
    _refuse_time(launch)
    settings = settings_of(context, launch)
    _refuse_contradictions(given)
    flags = {name: value for name in OPTIONS if (value := _flag(OPTIONS[name], given[_parameter(name)])) is not None}
    layers = files.load(os.environ, Path.cwd(), settings.profile or "").layers
    first = asked.resolve(flags, os.environ, layers)
    nodes = _nodes(first.text("partition"), first.text("clusters"))
    wanted = asked.resolve(flags, os.environ, layers, nodes[0].partition if nodes else first.text("partition"))
    request = _request(settings, wanted, (script, *args), given)
    if given["take_snapshot"]:
        request = _with_snapshot(request, settings, given)
    else:
        _see_script(settings, request)
    name = wanted.text("template")
    chosen, why = (name, "") if name else plan.choose_template(request, nodes)
    found = templates.get(chosen, os.environ, Path.cwd())
    draft = Draft(found.name, found.text(), shipped=found.origin == "hpc-launch")
    submission = plan.make(request, draft, _here(), nodes, chosen=why)
    _tell(submission, settings)
    _tell_unknown(request.after)
    if given["dry_run"]:
        click.echo(submission.script, nl=False)
        _say(f"to be submitted with: {quoting.words(submission.command)}")
        return 0
    if given["test_only"]:
        click.echo(sbatch.verdict(submission))
        return 0
    return _submit(submission, parsable=given["parsable"], wait=given["wait"], follow=given["follow"])


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
        value = given.get(name)
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


def _see_script(settings: Settings, request: JobRequest) -> None:
    """Refuse a training script that is not there; a whole path may be one that only the nodes have, or an image."""
    try:
        check_script(settings, request.script, Path.cwd() / (request.slurm.get("chdir") or ""))
    except ScriptError as error:
        if not request.script.startswith("/"):
            raise
        _say(f"note: {error}")


# --- what is there


def _nodes(partition: str, clusters: str) -> tuple[NodeGroup, ...]:
    """What the nodes of the partition are like, or those of the default partition."""
    if clusters or "," in partition:
        return ()
    groups = controller.ask_nodes(partition, _PATIENCE)
    return groups if partition else tuple(group for group in groups if group.default)


def _here() -> Here:
    srun = str(Path(shutil.which("srun") or "/usr/bin/srun").parent)
    launcher = str(Path(sys.executable).parent)
    return Here(os.environ, launcher, "" if srun in ("/usr/bin", "/bin") else srun, __version__)


def _with_snapshot(request: JobRequest, settings: Settings, given: Mapping[str, Any]) -> JobRequest:
    """The request, for the code as it is now: copied where job directories are, unless nothing is to be touched."""
    start = Path.cwd() / (request.slurm.get("chdir") or "")
    destination = (
        Path.cwd() / (settings.log_dir or "logs") / "snapshots" / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    )
    script = request.script
    if given["dry_run"] or given["test_only"]:
        _say(f"note: --snapshot would copy the code to {destination}")
        return request
    needed = [] if settings.module or settings.no_python else [Path(script)]
    taken = snapshot.take(start, destination, changes=given["snapshot_changes"], needed=needed)
    if script.startswith("/"):
        script = str(taken.code / Path(script).resolve().relative_to(taken.repository))
    _say(f"note: the job runs commit {taken.commit[:12]}{' with changes' if taken.dirty else ''} in {taken.directory}")
    if taken.untracked:
        _say(f"note: not copied, as git does not track them: {', '.join(taken.untracked[:5])}")
    slurm = {**request.slurm, "chdir": str(taken.directory)}
    return JobRequest(**{**vars(request), "script": script, "slurm": slurm, "output_directory": str(start)})


# --- what is done


def _submit(submission: Submission, *, parsable: bool, wait: bool, follow: bool) -> int:
    _make_folders(submission.folders)
    done = sbatch.submit(submission)
    for line in done.said:
        _say(f"Slurm: {line}")
    record = (
        None
        if parsable and not (wait or follow)
        else next(iter(controller.ask_jobs(done.parsable, _PATIENCE) or ()), None)
    )
    if parsable:
        click.echo(done.parsable)
    else:
        size = f", {submission.points} tasks" if submission.points else ""
        output = f"; output in {record.output}" if record and record.output and not record.task else ""
        click.echo(f"job {done.job_id}: {quoting.word(submission.name)}{size}{output}")
    if not (wait or follow):
        return 0
    tail = watch.Tail(sys.stdout.buffer) if follow else None
    watcher = watch.Watcher(
        look=lambda: watch.look(done.parsable), say=lambda line: _say(f"job {done.job_id}: {line}"), tail=tail
    )
    try:
        records = watcher.until_ended()
    except (KeyboardInterrupt, BrokenPipeError) as error:
        _say(f"job {done.job_id} goes on; to end it: scancel {done.job_id}")
        if isinstance(error, KeyboardInterrupt):
            raise Interrupted(signal.SIGINT, "SIGINT", said=True) from None
        # What is left in the buffer has nowhere to go when Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise Interrupted(signal.SIGPIPE, "SIGPIPE", said=True) from None
    status = watch.exit_status(records)
    if tail is not None:
        tail(records)
    elif status:
        _show_end(records)
    return status


def _make_folders(folders: tuple[str, ...]) -> None:
    for folder in folders:
        try:
            Path(folder).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise LogDirError(f"--output: cannot make the directory {folder}: {reason(error)}") from error


def _show_end(records: watch.Records) -> None:
    """The end of the output of what has failed first."""
    failed = next((record for record in records if record.state != "COMPLETED"), records[0])
    text = watch.end_of(failed.output, _LAST_LINES) if failed.output else ""
    if text:
        _say(f"the end of {failed.output}:")
        click.echo(text, err=True)


def _tell(submission: Submission, settings: Settings) -> None:
    for note in submission.notes:
        _say(f"note: {note}")
    if settings.verbose and submission.dropped:
        _say(f"submitted without {', '.join(submission.dropped)}")


def _tell_unknown(after: tuple[str, ...]) -> None:
    """Slurm takes the number of any job, and a mistyped one has no effect, or no end."""
    for job in (text.partition(":")[0] for text in after):
        if controller.ask_jobs(job, _PATIENCE) == ():
            _say(f"note: --after: Slurm knows no job {job}: it has ended some time ago, or another one is meant")


def _say(line: str) -> None:
    click.echo(f"hpc-launch: {line}", err=True)
