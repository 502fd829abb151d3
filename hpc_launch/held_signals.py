"""Notice signals that are held back until hpc-launch listens: without a handler they end a process (signal(7)).

Slurm sends `--signal=USR1@120` as soon as the rest of the job's time is shorter than that, which can be in the first
moment of a step. A blocked signal waits, and a signal mask is kept by execve(2). So whoever starts hpc-launch can block
the signals for it (`holding`), and its entry does the same before anything slow is imported (`hold`). Workers and other
programs get them unblocked again (`without_held`).
"""

from __future__ import annotations

import functools
import signal
import sys
from collections.abc import Collection, Iterable

# What `--notice-signals` is unless somebody says otherwise.
NOTICE_SIGNALS = frozenset({signal.SIGUSR1, signal.SIGUSR2})

# The same as `env --block-signal`, for systems whose coreutils are older than 8.31 (2019). Isolated, and without the
# site module, Python is there in a hundredth of a second.
_IN_PYTHON = "import signal, os, sys; signal.pthread_sigmask(0, map(int, sys.argv[1].split(','))); {}".format(
    "os.execvp(sys.argv[2], sys.argv[2:])"
)


def hold() -> None:
    """Block them in this process, until somebody unblocks them who listens."""
    signal.pthread_sigmask(signal.SIG_BLOCK, NOTICE_SIGNALS)


def release() -> None:
    """Unblock them in this process: one that has come ends it, where it has no handler."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, NOTICE_SIGNALS)


def without_held(mask: Iterable[int], notices: Iterable[signal.Signals]) -> frozenset[int]:
    """The mask that a process began with, but for the signals that were blocked to hold them back. Pure.

    Args:
        mask: the signals that were blocked.
        notices: the notice signals of this run.
    """
    return frozenset(mask) - NOTICE_SIGNALS - frozenset(notices)


def holding(
    command: Iterable[str], notices: Collection[signal.Signals] = NOTICE_SIGNALS, *, on_this_host: bool
) -> tuple[str, ...]:
    """The words that start a command with these signals blocked.

    Args:
        command: what to start.
        notices: the signals.
        on_this_host: it starts on this host, or on others that have the same software: a login node may be newer.
    """
    if not notices:
        return tuple(command)
    numbers = ",".join(str(int(number)) for number in sorted(notices))
    if on_this_host and env_can_block():
        return ("env", f"--block-signal={numbers}", *command)
    return (sys.executable, "-ISc", _IN_PYTHON, numbers, *command)


@functools.cache
def env_can_block() -> bool:
    """Whether env(1) has --block-signal here: coreutils have it from 8.31 on, busybox has not."""
    import subprocess  # noqa: PLC0415 - it takes longer to import than everything that the entry needs

    try:
        tried = subprocess.run(["env", "--block-signal=USR1", "true"], capture_output=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return tried.returncode == 0
