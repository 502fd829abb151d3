"""Find the files of a job that was submitted before: by its id, its job directory or its record."""

from __future__ import annotations

import re
from pathlib import Path

from hpc_launch.api.folder_pattern import shared_folder
from hpc_launch.api.submission_files import SUBMITTED, JobFiles, array_files, read_record
from hpc_launch.errors import UsageError
from hpc_launch.slurm import controller

# As squeue writes an array of which several jobs wait: `12_[3-7%2]`.
_WHOLE_ARRAY = re.compile(r"(\d+)_\[.*\]")


def find_job_files(job: str, folder: Path | None) -> JobFiles | list[JobFiles]:
    """Find a job, or all jobs of an array.

    Args:
        job: its id, or the path of its job directory, or of its record.
        folder: the executor's folder; None for `logs`, or the folder of the output that Slurm reports.

    Raises:
        UsageError: there is no such job.
    """
    path = Path(job).expanduser()
    if path.is_dir() and folder is None:
        return _of_directory(path.absolute(), job)
    if path.is_file() and folder is None:
        return JobFiles(path.absolute().parent, path.stem)
    whole = _WHOLE_ARRAY.fullmatch(job)
    name = whole[1] if whole else job
    where = shared_folder((folder or Path("logs")).expanduser().absolute())
    found = _in_folder(where, name)
    if not found and folder is None:
        found = _by_slurm(name)
    if not found:
        raise _missing(where, name)
    return found


def _in_folder(folder: Path, job: str) -> JobFiles | list[JobFiles] | None:
    for base in (folder / SUBMITTED, folder):
        files = JobFiles(base, job)
        found = files if files.exist else array_files(base, job)
        if found:
            return found
    return None


def _of_directory(path: Path, job: str) -> JobFiles:
    """The files of the job with a directory: beside it, or above, where an executor's folder has `%j` in it."""
    # What an executor of submitit's runs on one machine is called by a number, its directory `local-<number>`.
    names = [name for name in (path.name, path.name.rpartition(".")[0], path.name.removeprefix("local-")) if name]
    for folder in path.parents:
        for base in (folder / SUBMITTED, folder):
            for files in (JobFiles(base, name) for name in names):
                record = read_record(files.record) if folder != path.parent else None
                if files.exist and (folder == path.parent or (record is not None and record.directory == path)):
                    return files
    raise _missing(path.parent, job)


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
