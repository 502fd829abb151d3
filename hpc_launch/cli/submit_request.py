"""What `hpc-launch submit` does: its words become a request, and that a plan, which is shown or done."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from hpc_launch import __version__
from hpc_launch.cli.click_options import settings_of
from hpc_launch.errors import UsageError
from hpc_launch.home import expand_home
from hpc_launch.settings import Settings, settings_files, specs
from hpc_launch.slurm.slurm_times import read_time_limit
from hpc_launch.submission import (
    misplaced_options,
    parameter_sweep,
    quoting,
    sbatch,
    submission_plan,
    submit_resolution,
    submitter,
)
from hpc_launch.submission.job_request import JobRequest, Software, Submission
from hpc_launch.text import stamp, visible


def submitting(
    context: click.Context,
    command: tuple[str, ...],
    options: frozenset[str],
    flags: Mapping[str, Any],
    given: Mapping[str, Any],
) -> int:
    """Submit a job, or show what would be submitted.

    Args:
        context: of the command.
        command: the training script and what follows it.
        options: the long options that concern the submission.
        flags: what was given of Slurm's options and those of the `[submit]` table, by name.
        given: all parameters of the command.

    Returns:
        The exit status.
    """
    launch = {name: given.get(name) for name in specs()}
    _refuse_time(launch)
    settings = settings_of(context, launch)
    _refuse_contradictions(given)
    layers = settings_files.load_settings_files(os.environ, Path.cwd(), settings.profile or "").layers
    first = submit_resolution.resolve_submit(flags, os.environ, layers)
    command = _command(settings, command, options, Path.cwd() / first.text("chdir"))
    nodes = submitter.ask_partition_nodes(first.text("partition"), first.text("clusters"))
    wanted = submit_resolution.resolve_submit(
        flags, os.environ, layers, nodes[0].partition if nodes else first.text("partition")
    )
    request = _request(settings, wanted, command, given)
    for note in settings.notes:
        _note(note)
    submitter.see_script(settings, request, Path.cwd(), _note)
    with _code(settings, request, given) as placed:
        found = submitter.draft(placed, wanted.text("template"), nodes, os.environ, Path.cwd())
        for line in found.ignored:
            _note(f"template {line}")
        if found.path is not None:
            _note(f"template {found.draft.name} is {found.path}")
        submission = submission_plan.make_submission(
            placed, found.draft, submitter.gather_submit_context(os.environ, __version__), nodes, chosen=found.why
        )
        if given["follow"] and submission.array:
            raise UsageError("--follow shows the output of one job, not of an array: give --wait", option="--follow")
        _tell(submission, settings, submitter.unknown_jobs(request.after))
        if given["dry_run"]:
            click.echo(submission.script, nl=False)
            _say(f"to be submitted with: {quoting.words(submission.command)}")
            return 0
        if given["test_only"]:
            click.echo(sbatch.verdict(submission))
            return 0
        job = submitter.submit_planned(submission)
    for line in job.said:
        _say(f"Slurm: {line}")
    click.echo(job.parsable if given["parsable"] else submitter.announce(job, submission))
    if not (given["wait"] or given["follow"]):
        return 0
    return submitter.wait_for_job(job, _say, sys.stdout.buffer if given["follow"] else None)


# --- what is asked


def _command(settings: Settings, words: tuple[str, ...], options: frozenset[str], directory: Path) -> tuple[str, ...]:
    """The training script and its arguments, which hold no option that was meant for `submit`."""
    script, *rest = words
    text = submitter.script_text(settings, script, directory)
    arguments = misplaced_options.script_arguments(script, rest, options, text)
    if not (settings.module or settings.no_python):
        misplaced_options.refuse_job_script(script, text)
    return (script, *arguments)


def _words(given: Mapping[str, Any]) -> tuple[str, ...]:
    """The options of hpc-launch as they were given."""
    words: list[str] = []
    for name, spec in specs().items():
        value = given.get(name)
        if value is None:
            continue
        if isinstance(value, bool):
            words.append(spec.flag if value else f"--no-{spec.key}")
        else:
            words += [f"{spec.flag}={value}"] if value.startswith("-") or not value else [spec.flag, value]
    return tuple(words)


def _request(
    settings: Settings, wanted: submit_resolution.SubmitSettings, command: tuple[str, ...], given: Mapping[str, Any]
) -> JobRequest:
    venv = wanted.text("venv")
    return JobRequest(
        script=command[0],
        arguments=command[1:],
        options=_words(given),
        slurm=wanted.slurm(),
        sbatch_args=wanted.many("sbatch-arg"),
        limits=wanted.limits(),
        software=Software(
            wanted.many("modules"), _venv(venv) if venv else "", wanted.many("setup"), wanted.text("image")
        ),
        sweep=tuple(parameter_sweep.read_parameter(text) for text in given["sweep"]),
        after=given["after"],
        requeue=settings.requeue,
        check=given["check"],
        spares=settings.spares,
        no_kill=settings.may_lose_nodes,
        keep=wanted.many("keep-environment"),
    )


def _venv(text: str) -> str:
    path = Path.cwd() / expand_home(text)
    if not (path / "bin/activate").is_file():
        raise UsageError(f"--venv: {path} is no virtual environment: it has no bin/activate", option="--venv")
    return str(path)


def _refuse_time(launch: Mapping[str, Any]) -> None:
    """Say what is meant by a -t that is no --tee, but would be sbatch's."""
    text = launch["tee"] or ""
    try:
        specs()["tee"].reader(text)
    except ValueError:
        if read_time_limit(text) is not None:
            raise UsageError(
                f"-t is --tee, of hpc-launch: for the time limit, write --time={text}", option="--time"
            ) from None


def _refuse_contradictions(given: Mapping[str, Any]) -> None:
    for one in ("dry_run", "test_only"):
        for other in ("wait", "follow", "parsable"):
            if given[one] and given[other]:
                first = f"--{one}".replace("_", "-")
                raise UsageError(f"{first} submits nothing: leave out it or --{other}", option=first)


def _code(
    settings: Settings, request: JobRequest, given: Mapping[str, Any]
) -> contextlib.AbstractContextManager[JobRequest]:
    """The request, for the code as it is now where that is asked for: copied to where job directories are."""
    if not given["take_snapshot"]:
        return contextlib.nullcontext(request)
    name = f"{stamp(time.time())}-{os.getpid()}"
    log_dir = request.start_directory(Path.cwd()) / expand_home(settings.log_dir or "logs")
    destination = log_dir / "snapshots" / name
    if given["dry_run"] or given["test_only"]:
        _note(f"--snapshot would copy the code to {destination}")
        return contextlib.nullcontext(request)
    is_file = not (settings.module or settings.no_python)
    if settings.log_dir is not None:
        # The job runs in the copy, where a relative path would be another.
        request = dataclasses.replace(request, options=(*request.options, "--log-dir", str(log_dir)))
    return submitter.copied_code(
        request, Path.cwd(), destination, _note, changes=given["snapshot_changes"], is_file=is_file
    )


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
    with contextlib.suppress(OSError):  # a console that is full or gone
        click.echo(f"hpc-launch: {visible(line)}", err=True)
