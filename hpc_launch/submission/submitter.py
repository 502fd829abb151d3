"""Do what was planned: ask, copy, submit, wait. What is said on the way goes to whoever calls."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from hpc_launch.errors import HpcLaunchError, Interrupted, LogDirError, ScriptError, reason
from hpc_launch.plan.launch_context import check_script
from hpc_launch.records.regular_files import open_regular
from hpc_launch.settings import Settings
from hpc_launch.slurm import controller
from hpc_launch.slurm.inventory import NodeGroup
from hpc_launch.submission import code_snapshot, job_watcher, quoting, sbatch, submission_plan, templates
from hpc_launch.submission.job_request import JobRequest, Software, Submission, SubmitContext
from hpc_launch.submission.job_script import ScriptDraft
from hpc_launch.submission.sbatch import SubmittedJob

# Seconds for a question to Slurm whose answer would be good to have.
_PATIENCE = 5.0

# Lines of the output of a job that has failed.
_LAST_LINES = 20

# Bytes of a script that are looked at: with --no-python it may be a program of hundreds of megabytes.
_LONGEST_SCRIPT = 1 << 20

# Names of files that git does not track, as many as a line has room for.
_NAMED = 5

Tell = Callable[[str], None]


@dataclass(frozen=True)
class ChosenTemplate:
    """A template.

    Attributes:
        draft: what is in it.
        why: why it was chosen; empty where somebody has named it.
        path: its file; None for one that comes with hpc-launch.
        ignored: a line for each template of that name that would come first, and does not count.
    """

    draft: ScriptDraft
    why: str
    path: Path | None
    ignored: tuple[str, ...]


# --- before


def ask_partition_nodes(partition: str, clusters: str) -> tuple[NodeGroup, ...]:
    """Ask what the nodes of a partition are like, or those of the default one; nothing where it cannot be learnt."""
    if clusters or "," in partition:
        return ()
    groups = controller.ask_nodes(partition, _PATIENCE)
    return groups if partition else tuple(group for group in groups if group.default)


def unknown_jobs(after: Sequence[str]) -> list[str]:
    """Those jobs to come after that Slurm does not know: it takes any number, and a wrong one means nothing to it."""
    jobs = [text.partition(":")[0] for text in after]
    return [job for job in jobs if controller.ask_jobs(job, _PATIENCE) == ()]


def see_script(settings: Settings, request: JobRequest, directory: Path, tell: Tell) -> None:
    """Refuse a training script that is not there, unless it may be one that only the job has.

    That is a whole path, of the nodes or of an image, and a program by its name where the job has another PATH.

    Raises:
        ScriptError: naming the file.
    """
    try:
        check_script(settings, request.script, request.start_directory(directory))
    except ScriptError as error:
        other_path = settings.no_python and "/" not in request.script and _has_other_path(request)
        if not (request.script.startswith("/") or other_path):
            raise
        tell(str(error))


def _has_other_path(request: JobRequest) -> bool:
    """Whether programs may be found in the job that are not found here."""
    return request.software != Software() or "export" in request.slurm


def script_text(settings: Settings, script: str, directory: Path) -> str:
    """The text of a script or a module that is run, up to a megabyte; empty where it cannot be read here."""
    place = directory.joinpath(*script.split(".")) if settings.module else directory / script
    for file in (place.with_suffix(".py") if settings.module else place, place / "__main__.py"):
        with contextlib.suppress(OSError, ValueError), open_regular(file) as stream:
            return stream.read(_LONGEST_SCRIPT).decode(errors="replace")
    return ""


def draft(
    request: JobRequest, name: str, nodes: Sequence[NodeGroup], environ: Mapping[str, str], directory: Path
) -> ChosenTemplate:
    """Find the template that is named, or choose one.

    Raises:
        UsageError: there is none of that name.
    """
    chosen, why = (name, "") if name else submission_plan.choose_template(request, nodes)
    found = templates.get_template(chosen, environ, directory)
    text = ScriptDraft(found.name, found.text(), shipped=found.shipped)
    return ChosenTemplate(text, why, None if found.shipped else found.path, found.ignored)


def gather_submit_context(environ: Mapping[str, str], version: str) -> SubmitContext:
    """Where this runs."""
    path = environ.get("PATH", os.defpath)
    srun = str(Path(shutil.which("srun", path=path) or "/usr/bin/srun").parent)
    return SubmitContext(
        environ,
        launcher=str(Path(sys.executable).parent),
        on_path=shutil.which("hpc-launch", path=path) is not None,
        slurm="" if srun in ("/usr/bin", "/bin") else srun,
        version=version,
    )


@contextlib.contextmanager
def copied_code(
    request: JobRequest,
    directory: Path,
    destination: Path,
    tell: Tell,
    *,
    changes: code_snapshot.Changes,
    is_file: bool,
) -> Iterator[JobRequest]:
    """Copy the code, for a job that runs the copy. It is removed where the job does not come to be.

    Args:
        request: what would run here.
        directory: where the submission begins.
        destination: the copy.
        tell: told what is and is not copied.
        changes: what to do about uncommitted changes.
        is_file: whether the training script is a file of the code.

    Raises:
        UsageError, ScriptError, LogDirError: as `code_snapshot.take_snapshot`.
    """
    start = request.start_directory(directory)
    script = request.script
    taken = code_snapshot.take_snapshot(start, destination, changes=changes, needed=[Path(script)] if is_file else [])
    if script.startswith("/"):
        script = str(taken.code / Path(script).resolve().relative_to(taken.repository))
    tell(f"the job runs commit {taken.commit[:12]}{' with changes' if taken.dirty else ''} in {taken.directory}")
    if taken.untracked:
        more = " and more" if len(taken.untracked) > _NAMED else ""
        tell(f"not copied, as git does not track it: {', '.join(taken.untracked[:_NAMED])}{more}")
    slurm = {**request.slurm, "chdir": str(taken.directory)}
    try:
        yield dataclasses.replace(request, script=script, slurm=slurm, output_directory=str(start))
    except HpcLaunchError:
        shutil.rmtree(destination, ignore_errors=True)
        raise


# --- the job


def submit_planned(submission: Submission) -> SubmittedJob:
    """Submit a job, with the directories that its output goes to.

    Raises:
        LogDirError: one of these cannot be made.
        SlurmError: Slurm refuses the job.
    """
    for folder in submission.folders:
        try:
            Path(folder).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise LogDirError(f"--output: cannot make the directory {folder}: {reason(error)}") from error
    return sbatch.run_sbatch(submission)


def announce(job: SubmittedJob, submission: Submission) -> str:
    """A job in a line: its number, its name, and where its output goes, where Slurm says so."""
    record = next(iter(controller.ask_jobs(job.parsable, _PATIENCE) or ()), None)
    tasks = f", {submission.points} tasks" if submission.points else ""
    output = f"; output in {record.output}" if record and record.output and not record.task else ""
    return f"job {job.job_id}: {quoting.word(submission.name)}{tasks}{output}"


def wait_for_job(job: SubmittedJob, tell: Tell, stream: BinaryIO | None) -> int:
    """Wait until a job has ended, and tell how it gets on.

    Args:
        job: which.
        tell: told each state, and the end of the output of a job that fails.
        stream: where the output goes while it is written; None for nowhere.

    Returns:
        The job's exit status.

    Raises:
        SlurmError: nobody knows how it ended.
        Interrupted: by Ctrl-C, or because nobody reads any more. The job goes on.
    """
    tail = None if stream is None else job_watcher.FileTail(stream)
    watcher = job_watcher.JobWatcher(
        look=lambda: job_watcher.ask_job_state(job.parsable),
        say=lambda line: tell(f"job {job.job_id}: {line}"),
        tail=tail,
    )
    try:
        records = watcher.until_ended()
        if tail is not None:
            tail(records)
    except KeyboardInterrupt:
        tell(_goes_on(job))
        raise Interrupted(signal.SIGINT, "SIGINT", said=True) from None
    except BrokenPipeError:
        tell(_goes_on(job))
        # What is left in the buffer has nowhere to go when Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise Interrupted(signal.SIGPIPE, "SIGPIPE", said=True) from None
    status = job_watcher.exit_status(records)
    if status and tail is None:
        _tell_end(records, tell)
    return status


def _goes_on(job: SubmittedJob) -> str:
    return f"job {job.job_id} goes on; to end it: scancel {job.job_id}"


def _tell_end(records: job_watcher.Records, tell: Tell) -> None:
    """The end of the output of what has failed first."""
    failed = next((record for record in records if record.state != "COMPLETED"), records[0])
    text = job_watcher.last_lines_of(failed.output, _LAST_LINES) if failed.output else ""
    if text:
        tell(f"the end of {failed.output}:\n{text}")
