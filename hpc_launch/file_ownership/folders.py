"""One's own directories and files: what opens them, and refuses what is not one's own."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hpc_launch.file_ownership.parents import DIRECTORY_MODE, SEARCH, check_parents, descriptor_path, make_parents
from hpc_launch.file_ownership.rules import FileStatus, NotOwnError, fault_of_directory, fault_of_file

# A pipe that somebody has put in the place of a file must not block.
_FILE = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC

_PRIVATE_MODE = 0o700

# The owners that file systems show for new files of this process, by device.
_SHOWN_OWNERS: dict[int, int] = {}


@dataclass(frozen=True)
class Folder:
    """An open directory of one's own.

    Attributes:
        path: where it is.
        descriptor: it, for `dir_fd`.
        owner: the owner that one's own files have there.
    """

    path: Path
    descriptor: int
    owner: int

    def open(self, name: str, flags: int, mode: int = 0o666) -> int:
        """Open a regular file of one's own.

        Args:
            name: of the file, without a directory.
            flags: as open(2) has them; links are not followed, and O_TRUNC empties the file once it is known.
            mode: the permissions of a new one.

        Raises:
            NotOwnError: it is no regular file, or not one's own.
            OSError: as open(2) has it.
        """
        try:
            handle = os.open(name, flags & ~os.O_TRUNC | _FILE, mode, dir_fd=self.descriptor)
        except OSError as error:
            if error.errno not in (errno.ELOOP, errno.ENXIO):
                raise
            fault = fault_of_file(self._entry(name), self.owner, writing=False)
            raise NotOwnError(fault or f"{self.path / name} cannot be opened") from None
        try:
            writing = flags & os.O_ACCMODE != os.O_RDONLY
            fault = fault_of_file(FileStatus.of(self.path / name, os.fstat(handle)), self.owner, writing=writing)
            _refuse(fault)
            if flags & os.O_TRUNC:
                os.ftruncate(handle, 0)
            os.set_blocking(handle, True)
        except BaseException:
            os.close(handle)
            raise
        return handle

    def owns(self, name: str) -> bool:
        """Whether there is a regular file of one's own with that name."""
        try:
            return not fault_of_file(self._entry(name), self.owner, writing=False)
        except OSError:
            return False

    def rename(self, name: str, target: str) -> None:
        """Give a file another name in this directory; whatever has that name is replaced."""
        os.rename(name, target, src_dir_fd=self.descriptor, dst_dir_fd=self.descriptor)

    def unlink(self, name: str) -> None:
        """Remove a name."""
        os.unlink(name, dir_fd=self.descriptor)

    def _entry(self, name: str) -> FileStatus:
        status = os.stat(name, dir_fd=self.descriptor, follow_symlinks=False)
        return FileStatus.of(self.path / name, status)


@contextlib.contextmanager
def open_shared(path: Path) -> Iterator[Folder]:
    """Open a directory for a while that may belong to somebody else, for the files of one's own that are in it.

    Its owner and its group can rename and remove these, and cannot make others.

    Raises:
        NotOwnError: everybody can do so.
        OSError: it is not there.
    """
    path = path.absolute()
    check_parents(path)
    here = os.open(path, SEARCH)
    try:
        yield Folder(path, here, _own_uid(here, os.fstat(here)))
    finally:
        os.close(here)


@contextlib.contextmanager
def open_folder(path: Path, top: Path | None = None, *, make: bool = False, private: bool = False) -> Iterator[Folder]:
    """Open a directory of one's own for a while.

    Args:
        path: the directory.
        top: the uppermost directory that has to be one's own, at or above `path`; without it, `path`.
        make: make what is not there.
        private: let nobody else into `top`.

    Raises:
        NotOwnError: one of these directories is not one's own, or everybody can put another one in its place.
        OSError: it is not there, or cannot be made.
    """
    path = path.absolute()
    top = path if top is None else top.absolute()
    if make:
        make_parents(top.parent)
    check_parents(top.parent)
    here, where = os.open(top.parent, SEARCH), top.parent
    owner = os.geteuid()
    try:
        for name in (top.name, *path.relative_to(top).parts):
            mode = _PRIVATE_MODE if private and where == top.parent else DIRECTORY_MODE
            below = _enter(here, name, where / name, mode if make else None)
            os.close(here)
            here, where = below, where / name
            status = os.fstat(here)
            owner = _own_uid(here, status)
            _refuse(fault_of_directory(FileStatus.of(where, status), owner))
            if private and where == top and status.st_mode & 0o077:
                descriptor_path(here).chmod(stat.S_IMODE(status.st_mode) & ~0o077)
        yield Folder(path, here, owner)
    finally:
        os.close(here)


def read_own(path: Path, top: Path | None = None, most: int = -1) -> bytes:
    """Read a regular file of one's own, in a directory of one's own.

    Args:
        path: the file.
        top: as `open_folder` has it.
        most: read no more than the first so many bytes; -1 for all of it.

    Raises:
        NotOwnError: it is not.
        OSError: it is not there, or cannot be read.
    """
    with open_folder(path.parent, top) as folder, os.fdopen(folder.open(path.name, os.O_RDONLY), "rb") as file:
        return file.read(most)


def read_shared(path: Path) -> bytes:
    """Read a regular file of one's own in a directory that may belong to somebody else.

    Raises:
        NotOwnError: it is not.
        OSError: it is not there, or cannot be read.
    """
    with open_shared(path.parent) as folder, os.fdopen(folder.open(path.name, os.O_RDONLY), "rb") as file:
        return file.read()


def is_own(path: Path) -> bool:
    """Whether there is a regular file of one's own at a path, in whatever directory."""
    try:
        status = path.lstat()
        owner = _SHOWN_OWNERS.get(status.st_dev, os.geteuid())
        return not fault_of_file(FileStatus.of(path, status), owner, writing=False)
    except OSError:
        return False


def is_own_directory(path: Path) -> bool:
    """Whether a directory is there, and is one's own."""
    try:
        with open_folder(path):
            return True
    except OSError:
        return False


def temporary_name(name: str) -> str:
    """A name for a temporary file beside `name`, which no other thread, process or node uses."""
    return f".{name}.{os.urandom(16).hex()}"


def _enter(folder: int, name: str, path: Path, mode: int | None) -> int:
    """Open the directory `name` in a directory; with a mode, make it where it is not there. Links are not followed."""
    flags = SEARCH | os.O_NOFOLLOW
    try:
        return os.open(name, flags, dir_fd=folder)
    except FileNotFoundError:
        if mode is None:
            raise
    except OSError as error:
        if error.errno not in (errno.ENOTDIR, errno.ELOOP):
            raise
        entry = FileStatus.of(path, os.stat(name, dir_fd=folder, follow_symlinks=False))
        if stat.S_ISLNK(entry.mode):
            raise NotOwnError(fault_of_directory(entry, entry.uid)) from None
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path)) from None
    with contextlib.suppress(FileExistsError):  # another node may be making it at the same moment
        os.mkdir(name, mode, dir_fd=folder)
    return _enter(folder, name, path, None)


def _own_uid(folder: int, status: os.stat_result) -> int:
    """The owner that this process's files have in a directory: its user, unless the file system maps owners."""
    uid = os.geteuid()
    if status.st_uid == uid:
        return uid
    shown = _SHOWN_OWNERS.get(status.st_dev)
    if shown is None:
        shown = _try_owner(folder)
        if shown is None:
            return uid
        _SHOWN_OWNERS[status.st_dev] = shown
    return shown


def _try_owner(folder: int) -> int | None:
    """The owner of a new file in a directory; None where none can be made."""
    name = temporary_name("owner")
    try:
        handle = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _FILE, 0o600, dir_fd=folder)
    except OSError:
        return None
    try:
        return os.fstat(handle).st_uid
    finally:
        os.close(handle)
        with contextlib.suppress(OSError):
            os.unlink(name, dir_fd=folder)


def _refuse(fault: str) -> None:
    if fault:
        raise NotOwnError(fault)
