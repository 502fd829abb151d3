"""How many files a process may have open; a connection is one."""

from __future__ import annotations

import resource

UNLIMITED = resource.RLIM_INFINITY


def open_files_limits() -> tuple[int, int]:
    """The soft and the hard limit of this process; `UNLIMITED` for none."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)


def set_open_files(soft: int) -> None:
    """Set the soft limit of this process, which the processes that it starts have as well.

    A hard limit that is lower by now counts.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != UNLIMITED and (soft == UNLIMITED or soft > hard):
        soft = hard
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def open_files() -> int:
    """How many files this process may have open (getrlimit(2), RLIMIT_NOFILE)."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return soft if soft != resource.RLIM_INFINITY else _MANY


_MANY = 1 << 20


def allow_open_files(wanted: int) -> int:
    """Raise this process's soft limit to what it needs, if the hard limit allows (setrlimit(2)).

    Slurm hands on the limits of the shell that submitted the job (PropagateResourceLimits in slurm.conf(5)), and the
    usual soft limit of 1,024 is too low for who serves a thousand nodes. Processes that are started from here have the
    new limit as well.

    Returns:
        The soft limit then: less than what was wanted where the hard limit is.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return wanted
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    return allowed
