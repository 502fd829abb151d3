"""Find the files of a job that was submitted before: by its id, its job directory or its record."""

from __future__ import annotations

import re
from pathlib import Path

from hpc_launch.api.folder_pattern import job_folder, shared_folder
from hpc_launch.api.submission_files import SUBMITTED, JobFiles, array_files, read_record
from hpc_launch.errors import UsageError
from hpc_launch.home import expand_home
from hpc_launch.slurm import controller

# squeue's name for the waiting jobs of an array: `12_[3-7%2]`.
_WHOLE_ARRAY = re.compile(r"(\d+)_\[.*\]")

# Whatever is called otherwise is no job: `12`, `12_3`, `12;CLUSTER`, `local-20261125-223607-4711`.
_ID = re.compile(r"\w[\w.;+-]{0,99}")


def find_job_files(job: str, folder: Path | None) -> JobFiles | list[JobFiles]:
    """Find a job, or all jobs of an array.

    Args:
        job: its id, or the path of its job directory, or of its record.
        folder: the executor's folder; None for `logs`, or the folder of the output that Slurm reports.

    Raises:
        UsageError: there is no such job.
    """
    if folder is None:
        found = _by_path(job)
        if found is not None:
            return found
        if "/" in job:
            raise _missing(Path(job).absolute().parent, job)
    whole = _WHOLE_ARRAY.fullmatch(job)
    name = whole[1] if whole else job
    where = shared_folder(expand_home(folder or "logs").absolute())
    files = None
    if _ID.fullmatch(name):
        files = _in_folder(where, name) or (_by_slurm(name) if folder is None else _in_own_folder(folder, name))
    if not files:
        raise _missing(where, name)
    return files


def _in_folder(folder: Path, job: str) -> JobFiles | list[JobFiles] | None:
    for base in (folder / SUBMITTED, folder):
        files = JobFiles(base, job)
        found = files if files.exist else array_files(base, job)
        if found:
            return found
    return None


def _in_own_folder(folder: Path, job: str) -> JobFiles | list[JobFiles] | None:
    """The files of a job of submitit's own executor, which fills `%j` in for these files too."""
    try:
        own = job_folder(expand_home(folder).absolute(), job)
    except UsageError:  # it has `%a`, and the job is not one of an array
        return None
    return _in_folder(own, job)


def _by_path(job: str) -> JobFiles | None:
    """The files of a job by the path of its directory or record; None where it is neither.

    Files and directories of other kinds may be called as a job is, such as the folders that `%j` makes.
    """
    try:
        path = expand_home(job)
        path = path.resolve() if ".." in path.parts else path.absolute()
        if path.is_dir():
            return _of_directory(path)
        files = JobFiles(path.parent, path.stem)
        is_record = path.is_file() and path == files.record
    except (OSError, RuntimeError, ValueError):  # no name that a file can have, or of an unknown user's
        return None
    return files if is_record and (files.is_of_this_process or read_record(files.record) is not None) else None


def _of_directory(path: Path) -> JobFiles | None:
    """The files of the job with a directory: beside it, or above, where an executor's folder has `%j` in it."""
    # What an executor of submitit's runs on one machine is called by a number, its directory `local-<number>`.
    names = [name for name in (path.name, path.name.rpartition(".")[0], path.name.removeprefix("local-")) if name]
    for folder in path.parents:
        for base in (folder / SUBMITTED, folder):
            for files in (JobFiles(base, name) for name in names):
                if files.exist and (folder == path.parent or _is_directory_of(files, path)):
                    return files
    return None


def _is_directory_of(files: JobFiles, path: Path) -> bool:
    record = read_record(files.record)
    return record is not None and record.directory.resolve() == path.resolve()


def _by_slurm(job: str) -> JobFiles | list[JobFiles] | None:
    """The files of a job in the folder that Slurm says its output goes to."""
    records = controller.ask_jobs(job) or ()
    record = next((record for record in records if Path(record.output).parent.name == SUBMITTED), None)
    if record is None:
        return None
    base = Path(record.output).parent
    # The number of a job within an array is one of its names: Slurm gives it a number of its own as well.
    label = job if record.label.partition("_")[0] == job else record.label or job
    return _in_folder(base.parent, label) or JobFiles(base, label)


def _missing(folder: Path, job: str) -> UsageError:
    array = job.rpartition("_")[0]
    points = array_files(folder / SUBMITTED, array) or array_files(folder, array)
    if points:
        ids = f"{points[0].job_id} to {points[-1].job_id}" if len(points) > 1 else points[0].job_id
        return UsageError(f"there is no job '{job}' in {folder}: the array {array} has {ids}")
    return UsageError(f"there is no job '{job}' in {folder}: say folder=, or the path of its job directory")
