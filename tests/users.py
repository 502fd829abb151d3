"""Several users in tests: what belongs to others, and code that runs as another one. Root only."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from hpc_launch.file_ownership import folders, parents

# Ordinary users that no machine has, and the group of a project.
ALICE, BOB = 61234, 61235
PROJECT_GROUP = 62000

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as several users")


def give(path: Path, uid: int, gid: int | None = None, mode: int | None = None) -> Path:
    """Let a file or directory belong to somebody."""
    os.chown(path, uid, uid if gid is None else gid, follow_symlinks=False)
    if mode is not None:
        path.chmod(mode)
    return path


@contextmanager
def common_directory() -> Iterator[Path]:
    """Make a directory that all users can enter, which those of pytest are not."""
    path = Path(tempfile.mkdtemp(prefix="hpc-launch-users-"))
    path.chmod(0o755)
    try:
        yield path
    finally:
        shutil.rmtree(path)


def run_as(
    uid: int, work: Callable[[], str], *, groups: tuple[int, ...] = (), umask: int = 0o022, cwd: Path | None = None
) -> str:
    """Call a function in a process of another user; returns what it returns, or the exception in words.

    It is forked, as the interpreter may be where only root can read it: what is called must have been imported.
    """
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setgroups(groups)
            os.setgid(uid)
            os.setuid(uid)
            os.umask(umask)
            os.chdir(cwd or "/")
            parents._GOOD_PARENTS.clear()
            folders._SHOWN_OWNERS.clear()
            try:
                words = work()
            except Exception as error:  # noqa: BLE001 - whatever it is, the test is shown it
                words = f"{type(error).__name__}: {error}"
            os.write(writing, words.encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as stream:
        words = stream.read()
    os.waitpid(pid, 0)
    return words
