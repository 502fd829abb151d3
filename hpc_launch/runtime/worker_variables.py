"""The environment of a worker: numbers, and the job directory."""

from __future__ import annotations

import os
from pathlib import Path

from hpc_launch.records.directory import JobDirectory


def number_variable(name: str, default: int) -> int:
    """Read a variable that is a number; the default where it is unset or empty.

    Raises:
        ValueError: naming the variable.
    """
    text = os.environ.get(name)
    if not text:
        return default
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"{name}={text}: a number is expected") from None


def job() -> JobDirectory | None:
    """The job directory, None where hpc-launch did not start this process."""
    name = os.environ.get("HPC_LAUNCH_JOB_DIRECTORY")
    path = Path(name) if name else None
    return None if path is None else JobDirectory(path.parent, path.name)
