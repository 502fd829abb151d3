"""The folder of an executor, with submitit's `%j`, `%A` and `%a` in it: a folder for each job. Pure.

They are filled in as submitit does it (`core.utils.JobPaths`): `%j` is the id of the job, `%A` that of its array, `%a`
its number in it. The files of the submission are in the part of the folder that is the same for all jobs.
"""

from __future__ import annotations

import itertools
import re
from pathlib import Path

from hpc_launch.errors import UsageError

# A field as sbatch reads it in names of files, and those that are filled in here.
_FIELD = re.compile(r"%(\d*[A-Za-z%])")
_FILLED_IN = re.compile(r"%([jAa])")


def check_folder(folder: str | Path) -> None:
    """Refuse a folder with fields that are not filled in.

    Raises:
        UsageError: naming the field.
    """
    for field in _FIELD.findall(str(folder)):
        if not _FILLED_IN.fullmatch(f"%{field}"):
            why = "all ranks of a job have one folder" if field == "t" else "write out what it stands for"
            raise UsageError(
                f"folder: '%{field}' is not filled in; %j (id of the job), %A (of its array) and %a (number in the "
                f"array) are: {why}",
                option="folder",
            )


def check_numbered(folder: Path, *, array: bool) -> None:
    """Refuse a number in an array of a job that is in none.

    Raises:
        UsageError: the folder has `%a`.
    """
    if not array and "%a" in str(folder):
        raise UsageError(f"folder: {folder} has %a, and the job is not one of an array: use %j", option="folder")


def shared_folder(folder: Path) -> Path:
    """The part of a folder that is the same for all jobs: up to the first component with a field."""
    return Path(*itertools.takewhile(lambda part: not _FILLED_IN.search(part), folder.parts))


def job_folder(folder: Path, job_id: str) -> Path:
    """The folder of a job.

    Args:
        folder: as it was given.
        job_id: the id of the job: `12`, `12_3` for one of an array.

    Raises:
        UsageError: it has `%a`, and the job is not one of an array.
    """
    array, _, number = job_id.partition("_")
    check_numbered(folder, array=number.isdigit())
    values = {"j": job_id, "A": array, "a": number}
    return Path(_FILLED_IN.sub(lambda match: values[match[1]], str(folder)))
