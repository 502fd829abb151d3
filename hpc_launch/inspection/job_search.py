"""From what a person says of a job, its id for the most part, to its job directory."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from hpc_launch.errors import JobNotFoundError
from hpc_launch.home import expand_home
from hpc_launch.records.directory import WHEREABOUTS, JobDirectory
from hpc_launch.records.output_lines import last_lines
from hpc_launch.slurm import controller
from hpc_launch.slurm.job import JobRecord
from hpc_launch.text import visible

# A job's id as people and programs write it: 12, 12.0, 12_3, 12_3.0, a component 12+1, and `12;CLUSTER` of sbatch; with
# a number at its end where a step or shell has had several runs: 12.0-2 is the second, 12.0-1 the first.
_RUN = r"(?:-(?P<run>[1-9]\d{0,5}))?"
_ID = re.compile(rf"(?P<job>\d+(?:_\d+)?)(?:\+\d+)?(?:\.(?P<step>\d+))?{_RUN}(?P<cluster>;[\w.-]+)?")

_NAME = re.compile(rf"(?P<job>\d+(?:_\d+)?)(?:\.(?P<step>\d+))?{_RUN}")

# One of these is in every job directory as soon as its nodes look for each other.
_MARKS = ("job.json", "nodes", "attempt_*", WHEREABOUTS)

# Where `submit --snapshot` has its copies, below the log directory.
_SNAPSHOTS = "snapshots"

_LOG_DIR = re.compile(r"(?:--log[-_]dir[=\s]+|\bHPC_LAUNCH_LOG_DIR=)(?:'([^'\n]+)'|\"([^\"\n]+)\"|([^\s'\";&|]+))")

Ask = Callable[[str], JobRecord | None]
OwnJobs = Callable[[], tuple[JobRecord, ...]]

# Seconds for the question which jobs wait or run, and how many of them are looked at.
_PATIENCE = 3.0
_MOST_ASKED = 8

# Lines of the output of a job that has no directory.
_LAST_LINES = 20


@dataclass(frozen=True)
class SlurmStep:
    """What Slurm calls a run.

    Attributes:
        job: the id of the job, `12` or `12_3`.
        step: the number of the step; None where the directory does not say it.
        run: which of the runs that this step or shell has had, from 1; Slurm knows nothing of it.
    """

    job: str
    step: int | None
    run: int = 1

    def __str__(self) -> str:
        return self.job if self.step is None else f"{self.job}.{self.step}"


@dataclass(frozen=True)
class JobSearch:
    """What was found of a job.

    Attributes:
        directory: its job directory; None where there is none.
        record: what Slurm says of it, where it had to be asked.
        looked: where a job directory was looked for.
        others: names of the directories of the same job's other runs.
        why: why there is no directory, for a person.
        array: the number of the job array that is meant as a whole; empty where it is a job, or one task of an array.
    """

    directory: JobDirectory | None
    record: JobRecord | None = None
    looked: tuple[Path, ...] = ()
    others: tuple[str, ...] = ()
    why: str = ""
    array: str = ""

    @property
    def needed(self) -> JobDirectory:
        """The directory.

        Raises:
            JobNotFoundError: where there is none, with what was looked at.
        """
        if self.directory is None:
            raise JobNotFoundError(self.why, looked=self.looked)
        return self.directory


def search_job(
    job: str = "",
    *,
    directory: Path,
    environ: Mapping[str, str],
    log_dir: str | None = None,
    ask: Ask = controller.ask_job,
    own_jobs: OwnJobs = lambda: controller.ask_own_jobs(_PATIENCE),
) -> JobSearch:
    """Look for the job directory that is meant, and say what was seen on the way.

    Args:
        job: a job's id, with or without its step (`12`, `12.0`, `12_3`); a path of a job directory, of something in
            one, or of a log directory; the name of a directory in the log directory; nothing for the latest, which may
            be one that was just submitted.
        directory: the working directory.
        environ: the environment.
        log_dir: `--log-dir`, where it was said.
        ask: asks Slurm for a job that is not found.
        own_jobs: asks Slurm for the user's jobs that it knows.
    """
    roots = _roots(directory, environ, log_dir)
    if not job:
        return _newest(roots, ask, own_jobs)
    path = directory / expand_home(job)
    if "/" in job or job in (".", "..") or is_job_directory(path):
        return _by_path(path, job)
    for number, root in enumerate(roots):
        found = search_log_directory(root, job)
        if found is not None:
            return replace(found, looked=roots[: number + 1])
    if _ID.fullmatch(job) is None:
        return JobSearch(
            None, looked=roots, why=f"no job '{job}' in {_places(roots)}: name another place with --log-dir"
        )
    return _by_slurm(job, roots, ask)


def find_task_directories(roots: Sequence[Path], array: str) -> dict[int, JobDirectory]:
    """The directory of each task of a job array that has left one, by number: of its last run."""
    found: dict[int, tuple[tuple[int, int], JobDirectory]] = {}
    for root in roots:
        for name, step in _entries(root, f"{array}_"):
            number, order = int(step.job.partition("_")[2]), _order((step, name))
            if number not in found or found[number][0] < order:
                found[number] = order, JobDirectory(root, name)
    return {number: directory for number, (_, directory) in sorted(found.items())}


def log_directories(record: JobRecord, script: str | None = None) -> tuple[Path, ...]:
    """The log directories that a job may have, by where it was submitted, and by what its script says.

    Args:
        record: the job.
        script: its job script; without it, Slurm is asked.
    """
    return tuple(dict.fromkeys(_roots_of(record, script)))


def names_whole_job(job: str) -> bool:
    """Whether what a person says is a job's id, and not that of a step, a run or a directory."""
    match = _ID.fullmatch(job)
    return match is not None and match["step"] is None and match["run"] is None


def slurm_step(directory: JobDirectory) -> SlurmStep | None:
    """What Slurm calls the run that a job directory is of; None where it was not Slurm's."""
    match = _NAME.fullmatch(directory.job)
    return _step_of(match) if match else None


def _step_of(match: re.Match[str]) -> SlurmStep:
    return SlurmStep(match["job"], int(match["step"]) if match["step"] else None, int(match["run"] or 1))


def is_job_directory(path: Path) -> bool:
    """Whether a directory is that of a job."""
    try:
        return any(any(path.glob(name)) for name in _MARKS)
    except OSError:
        return False


# --- where to look


def _roots(directory: Path, environ: Mapping[str, str], log_dir: str | None) -> tuple[Path, ...]:
    """The log directories that there may be, the likeliest first; the working directory may be one."""
    if log_dir is not None:
        return (directory / expand_home(log_dir),)
    submitted = environ.get("SLURM_SUBMIT_DIR", "")
    roots = [*([Path(submitted) / "logs"] if submitted else []), directory / "logs", directory]
    return tuple(dict.fromkeys(roots))


def _newest(roots: tuple[Path, ...], ask: Ask, own_jobs: OwnJobs) -> JobSearch:
    """The latest job that has left anything, or one that was submitted after it and has not yet."""
    latest = _latest(roots)
    # One that has ended well and left no directory had nothing to do with hpc-launch.
    jobs = [job for job in own_jobs() if job.state != "COMPLETED"]
    jobs.sort(key=lambda job: int(job.job_id), reverse=True)
    for job in jobs[:_MOST_ASKED]:
        if latest.directory is not None and not _is_newer(job, latest.directory):
            break
        record = ask(job.job_id)
        # A shell of salloc is no job that was submitted, and one of another project is not meant.
        if record is not None and record.batch and {*_roots_of(record)} & {*roots}:
            return _by_slurm(job.job_id, roots, lambda _, record=record: record)  # type: ignore[misc]
    return latest


def _is_newer(job: JobRecord, directory: JobDirectory) -> bool:
    """Whether a job came after the one of a directory."""
    step = slurm_step(directory)
    if step is not None:
        return int(job.job_id) > int(step.job.partition("_")[0])
    try:
        return job.submitted is not None and job.submitted > directory.path.stat().st_mtime
    except OSError:
        return False


def _latest(roots: tuple[Path, ...]) -> JobSearch:
    for root in roots:
        path = _followed(root / "latest")
        # In a job directory `latest` is an attempt.
        job = path.parent if is_job_directory(path.parent) else path
        if is_job_directory(job):
            return _of_latest(JobDirectory(job.parent, job.name), roots)
    for root in roots:
        # The link is a convenience: it may not have come along, or not be possible there.
        jobs = _jobs(root) if root.name == "logs" or len(roots) == 1 else []
        if jobs:
            return _of_latest(JobDirectory(root, max(jobs)[1]), roots)
    why = f"no job has left anything in {_places(roots)}: name a job, its directory, or another place with --log-dir"
    return JobSearch(None, looked=roots, why=why)


def _of_latest(directory: JobDirectory, roots: tuple[Path, ...]) -> JobSearch:
    step = slurm_step(directory)
    array, task, _ = step.job.partition("_") if step is not None else ("", "", "")
    return JobSearch(directory, looked=roots, array=array if task else "")


def _jobs(root: Path) -> list[tuple[float, str]]:
    """The job directories in a log directory, each after the time of its last change."""
    try:
        return [(path.stat().st_mtime, path.name) for path in root.iterdir() if is_job_directory(path)]
    except OSError:
        return []


def _by_path(path: Path, said: str) -> JobSearch:
    """The job directory at a path, above it, or the latest in it."""
    if not path.exists():
        return JobSearch(None, looked=(path,), why=f"there is no {said}")
    path = _followed(path)
    for place in (path, *path.absolute().parents):
        if is_job_directory(place):
            return JobSearch(_directory(place), looked=(path,))
    found = _latest((path, path / "logs"))
    if found.directory is not None:
        return replace(found, array="")
    return JobSearch(None, looked=(path,), why=f"{said} is no job directory, nor in one, and no log directory with one")


def _directory(path: Path) -> JobDirectory:
    path = path if path.name not in ("", "..") else path.resolve()
    return JobDirectory(path.parent, path.name)


def _followed(path: Path) -> Path:
    """Where a `latest` link leads: what it means must not change while somebody looks."""
    try:
        return path.parent / path.readlink()
    except OSError:
        return path


def search_log_directory(root: Path, job: str) -> JobSearch | None:
    """A job in one log directory: by its name, or by its id; of several steps, or runs of a step, the last."""
    match = _ID.fullmatch(job)
    if match is None:
        return JobSearch(JobDirectory(root, job)) if is_job_directory(root / job) else None
    wanted = _step_of(match)
    entries = [(step, name) for name, step in _entries(root, wanted.job) if step.job == wanted.job]
    if match["run"]:
        return next((JobSearch(JobDirectory(root, name)) for step, name in entries if step == wanted), None)
    if wanted.step is not None:
        entries = [(step, name) for step, name in entries if step.step == wanted.step]
    if entries:
        *others, (_, last) = sorted(entries, key=_order)
        return JobSearch(JobDirectory(root, last), others=tuple(name for _, name in others))
    tasks = [*find_task_directories([root], wanted.job)]
    if not tasks or wanted.step is not None:
        return None
    if len(tasks) == 1:
        found = search_log_directory(root, f"{wanted.job}_{tasks[0]}")
        return None if found is None else replace(found, array=wanted.job)
    named = ", ".join(f"{job}_{task}" for task in (tasks if len(tasks) <= 4 else [*tasks[:3], tasks[-1]]))  # noqa: PLR2004 - as many as a line takes
    return JobSearch(
        None,
        why=f"job {job} is an array of {len(tasks)} tasks that have run: name one of {named}; "
        f"'hpc-launch status {job}' shows all",
        array=wanted.job,
    )


def _order(entry: tuple[SlurmStep, str]) -> tuple[int, int]:
    """Where a run stands among those of its job: first those of the shell, then those of the steps."""
    step, _ = entry
    return (-1 if step.step is None else step.step, step.run)


def _entries(root: Path, begin: str) -> Iterator[tuple[str, SlurmStep]]:
    """The directories of Slurm jobs in a log directory whose names begin so."""
    try:
        names = [entry.name for entry in root.iterdir()]
    except OSError:
        return
    for name in filter(lambda name: name.startswith(begin), names):
        step = slurm_step(JobDirectory(root, name))
        if step is not None and is_job_directory(root / name):
            yield name, step


# --- by Slurm


def _by_slurm(job: str, roots: tuple[Path, ...], ask: Ask) -> JobSearch:
    match = _ID.fullmatch(job)
    number = match["job"] if match else job
    record = ask(f"{number}{match['cluster'] or ''}" if match else job)
    if record is None:
        why = f"job {number} has no directory in {_places(roots)}, and Slurm tells nothing of it: name its --log-dir"
        return JobSearch(None, looked=roots, why=why)
    more = tuple(dict.fromkeys(root for root in _roots_of(record) if root not in roots))
    label = record.label or number
    array = number if record.task and number == label.partition("_")[0] else ""
    step = f".{match['step']}" if match and match["step"] else ""
    step += f"-{match['run']}" if match and match["run"] else ""
    # An array's task has a number of its own, but its directory the one that people see.
    for root in (*roots, *more):
        found = search_log_directory(root, f"{label}{step}")
        if found is not None:
            return JobSearch(found.directory, record, (*roots, *more), found.others, found.why, array or found.array)
    looked = (*roots, *more)
    state = f"{record.state}{f' ({record.reason})' if record.reason else ''}"
    hint = "" if record.state == "PENDING" else f": name its --log-dir{_output_of(record)}"
    return JobSearch(
        None,
        record,
        looked,
        why=f"job {label} is {state}, and has no directory in {_places(looked)}{hint}",
        array=array,
    )


def _output_of(record: JobRecord) -> str:
    """Where Slurm has put what a job has written, and its end: it may never have come to hpc-launch."""
    if not record.output:
        return ""
    lines = [visible(line) for line in last_lines(Path(record.output), _LAST_LINES)]
    if not lines:
        return f". Its script has written nothing to {record.output}"
    return "\n    ".join([f". What its script has written is in {record.output}, which ends:", *lines])


def _roots_of(record: JobRecord, script: str | None = None) -> Iterator[Path]:
    """The log directories that a job may have, by where it was submitted, and by what its script says."""
    for base in filter(None, (record.directory, record.output.rpartition("/")[0])):
        yield Path(base) / "logs"
        if Path(base).parent.name == _SNAPSHOTS:
            yield Path(base).parent.parent
    if script is None and record.batch and record.state != "PENDING":
        script = controller.ask_script(record.job_id)
    yield from _said_in(script or "", Path(record.directory or "/"))


def _said_in(script: str, directory: Path) -> Iterator[Path]:
    """The log directories that a job script names."""
    for words in _LOG_DIR.findall(script):
        text = next(filter(None, words))
        if "$" not in text:
            yield directory / expand_home(text)


def _places(roots: tuple[Path, ...]) -> str:
    return ", ".join(map(str, roots))
