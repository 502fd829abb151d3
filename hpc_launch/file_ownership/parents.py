"""The directories above one's own, which may belong to others: they are refused where everybody can rename in them."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from pathlib import Path

from hpc_launch.file_ownership.rules import FileStatus, NotOwnError, fault_of_link, fault_of_parent

# A descriptor of a directory that only names what is below it: the directory need not be readable.
SEARCH = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC

# New directories are never world-writable, whatever the umask says: such a one would be refused the next time.
DIRECTORY_MODE = 0o775

# As the kernel has it (MAXSYMLINKS).
_MOST_LINKS = 40

# Directories whose parents were found good; once per process is enough, as only their owners can change that.
_GOOD_PARENTS: set[str] = set()


def check_parents(path: Path) -> None:
    """Refuse a directory in which everybody can put something in the place of one's own, once per process.

    Raises:
        NotOwnError: naming the directory, or the symbolic link, that is at fault.
        OSError: there is no such directory.
    """
    name = str(path.absolute())
    if name not in _GOOD_PARENTS:
        _walk(name)
        _GOOD_PARENTS.add(name)


def make_parents(path: Path) -> None:
    """Make a directory that need not be one's own, and those above it, where they are not there.

    Raises:
        OSError: as mkdir(2) has it.
    """
    if path.is_dir():
        return
    with contextlib.suppress(FileExistsError):
        try:
            path.mkdir(DIRECTORY_MODE)
        except FileNotFoundError:
            make_parents(path.parent)
            path.mkdir(DIRECTORY_MODE)


def _walk(path: str) -> None:
    """Go down a path, directory by directory, and look at each; follow links as the rules allow."""
    uid, links = os.geteuid(), 0
    left = path.split("/")[::-1]
    here = os.open("/", SEARCH)
    try:
        while True:
            status = os.fstat(here)
            if status.st_mode & stat.S_IWOTH and not status.st_mode & stat.S_ISVTX:
                raise NotOwnError(fault_of_parent(FileStatus.of(_path_of(here), status)))
            while left and left[-1] in ("", "."):
                left.pop()
            if not left:
                return
            name = left.pop()
            try:
                below = os.open(name, SEARCH | os.O_NOFOLLOW, dir_fd=here)
            except OSError as error:
                if error.errno not in (errno.ENOTDIR, errno.ELOOP):
                    raise
                target = _target(here, name, status, uid)
                links += 1
                if links > _MOST_LINKS:
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path) from None
                left += target.split("/")[::-1]
                below = os.open("/" if target.startswith("/") else ".", SEARCH, dir_fd=here)
            os.close(here)
            here = below
    finally:
        os.close(here)


def _target(folder: int, name: str, status: os.stat_result, uid: int) -> str:
    """Where a symbolic link leads, if it may be followed."""
    link = os.stat(name, dir_fd=folder, follow_symlinks=False)
    if not stat.S_ISLNK(link.st_mode):
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(_path_of(folder) / name))
    fault = fault_of_link(FileStatus.of(Path(name), link), FileStatus.of(Path(), status), uid)
    if fault:
        where = _path_of(folder)
        raise NotOwnError(fault_of_link(FileStatus.of(where / name, link), FileStatus.of(where, status), uid))
    return os.readlink(name, dir_fd=folder)


def _path_of(descriptor: int) -> Path:
    return descriptor_path(descriptor).readlink()


def descriptor_path(descriptor: int) -> Path:
    """What stands for an open descriptor, which may be one that only names its directory."""
    return Path("/proc/self/fd", str(descriptor))
