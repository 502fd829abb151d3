"""The working directory of this process, which somebody may remove, or replace by another of the same name."""

from __future__ import annotations

from pathlib import Path

from hpc_launch.errors import ContextError, reason


def check_working_directory() -> None:
    """See that it is still there.

    Raises:
        ContextError: where it is gone.
    """
    try:
        Path.cwd()
    except OSError as error:
        raise ContextError(f"the working directory of this process is gone ({reason(error)}): cd to another") from error
