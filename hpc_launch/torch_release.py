"""Which release of torch is installed, and what differs between releases; torch is not imported for it."""

from __future__ import annotations

import re
from importlib import metadata

from hpc_launch.errors import UsageError

OLDEST = (2, 4)
"""The oldest release that hpc-launch runs with; pyproject.toml has the same."""

# From this release on a store that torch serves by libuv takes a socket that listens already (pytorch/pytorch#150215).
_LIBUV_TAKES_SOCKETS = (2, 8)


def check_installed() -> None:
    """See that the torch that is installed is new enough. One that pip knows nothing of is taken as it is.

    Raises:
        UsageError: where it is older than `OLDEST`.
    """
    try:
        version = metadata.version("torch")
    except metadata.PackageNotFoundError:
        return
    if not _reached(version, OLDEST):
        oldest = ".".join(map(str, OLDEST))
        raise UsageError(f"torch {version} is installed, but hpc-launch needs {oldest}: pip install 'torch>={oldest}'")


def libuv_takes_sockets(version: str) -> bool:
    """Whether a store on a given socket can be served by libuv; torch's older server takes sockets in all releases."""
    return _reached(version, _LIBUV_TAKES_SOCKETS)


def _reached(version: str, release: tuple[int, int]) -> bool:
    """Whether a version, such as `2.8.0a0+git1234`, is of a release or a later one; one that is no number is."""
    found = re.match(r"(\d+)\.(\d+)", version)
    return found is None or (int(found[1]), int(found[2])) >= release
