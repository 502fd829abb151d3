"""Files with a secret: only this user may read or write them, and only where the file system says who may.

A directory is opened first, and the file within it: on NFS this shows a file that another node has just made.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path

MAX_BYTES = 4096
"""The most bytes of such a file."""

# Where the owner and the mode of a file need not say who may read it: servers and mount options decide.
_UNJUDGED = frozenset(
    {"9p", "afs", "auristorfs", "cifs", "smb3", "smbfs", "vfat", "msdos", "exfat", "ntfs", "ntfs3", "hfs", "virtiofs"}
)
_FILE = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NOCTTY


class Unusable(Exception):
    """A file cannot be used as a secret; the text says why, and never what is in it."""


class Absent(Unusable):
    """There is no such file."""


def read(path: Path, *, anywhere: bool = False) -> bytes:
    """The content of a private file, without blanks around it.

    Args:
        path: the file.
        anywhere: its directory may be another user's, as where a site hands out secrets.

    Raises:
        Absent: if it is not there.
        Unusable: if others may have made or read it, or it cannot be read.
    """
    with _opened_directory(path.parent, anywhere=anywhere) as directory:
        return _read(directory, path)


def make_once(path: Path, content: bytes) -> bytes:
    """The content of a private file, which is made if it is not there; of several that make it at once one is first.

    Raises:
        Unusable: as in `read`, or if it cannot be made.
    """
    with _opened_directory(path.parent) as directory:
        with contextlib.suppress(Absent):
            return _read(directory, path)
        temporary = f".{path.name}.{secrets.token_hex(8)}"
        try:
            _write(directory, temporary, content)
            try:
                # Unlike rename(2), link(2) fails where the name is taken: what others have read stays.
                with contextlib.suppress(FileExistsError):
                    os.link(temporary, path.name, src_dir_fd=directory, dst_dir_fd=directory, follow_symlinks=False)
            finally:
                os.unlink(temporary, dir_fd=directory)
        except OSError as error:
            raise Unusable(_reason(error)) from None
        return _read(directory, path)


def make_directories(path: Path) -> None:
    """Make a directory and those above it, where they are not there, for this user alone.

    Raises:
        Unusable: if that is not possible.
    """
    try:
        for folder in (*reversed(path.parents), path):
            if not folder.is_dir():
                folder.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise Unusable(_reason(error)) from None


@contextlib.contextmanager
def _opened_directory(path: Path, *, anywhere: bool = False) -> Iterator[int]:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise Absent("it is not there") from None
    except OSError as error:
        raise Unusable(_reason(error)) from None
    try:
        status = os.fstat(descriptor)
        if not anywhere and status.st_uid != os.geteuid():
            raise Unusable(f"its directory belongs to user {status.st_uid}, expected {os.geteuid()}")
        if not anywhere and status.st_mode & stat.S_IWOTH:
            raise Unusable("its directory can be written by all users")
        reason = unjudged(mount_of(descriptor))
        if reason:
            raise Unusable(reason)
        yield descriptor
    finally:
        os.close(descriptor)


def _read(directory: int, path: Path) -> bytes:
    try:
        # Without O_NONBLOCK the opening of a pipe would wait for a writer.
        descriptor = os.open(path.name, os.O_RDONLY | os.O_NONBLOCK | _FILE, dir_fd=directory)
    except FileNotFoundError:
        raise Absent("it is not there") from None
    except OSError as error:
        raise Unusable(_reason(error)) from None
    try:
        _check(os.fstat(descriptor), path)
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise Unusable(_reason(error)) from None
    finally:
        os.close(descriptor)
    if len(content) > MAX_BYTES:
        raise Unusable(f"it has more than {MAX_BYTES} bytes")
    return content.strip()


def _check(status: os.stat_result, path: Path) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise Unusable("it is not a regular file")
    if status.st_uid != os.geteuid():
        raise Unusable(f"it belongs to user {status.st_uid}, expected {os.geteuid()}")
    if status.st_mode & 0o077:
        raise Unusable(f"others may use it (mode {stat.S_IMODE(status.st_mode):04o}): chmod 600 {path}")


def _write(directory: int, name: str, content: bytes) -> None:
    descriptor = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _FILE, 0o600, dir_fd=directory)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(descriptor)  # an empty key after a crash would stay for ever
    except OSError:
        os.unlink(name, dir_fd=directory)
        raise


def mount_of(descriptor: int) -> str:
    """The line of the kernel's list of mounts in which an open file is; empty where the kernel does not say it."""
    try:
        facts = Path(f"/proc/self/fdinfo/{descriptor}").read_text()
        number = next(line.split()[1] for line in facts.splitlines() if line.startswith("mnt_id:"))
        with Path("/proc/self/mountinfo").open(encoding="utf-8", errors="surrogateescape") as lines:
            return next(line for line in lines if line.split(maxsplit=1)[0] == number)
    except (OSError, StopIteration, IndexError):
        return ""


def unjudged(mount: str) -> str:
    """Why owners and modes on a mounted file system do not say who may read a file; empty where they do. Pure.

    Args:
        mount: its line in /proc/PID/mountinfo (proc_pid_mountinfo(5)).
    """
    _, separator, rest = mount.partition(" - ")
    fields = rest.split()
    if not separator or len(fields) < 3:  # noqa: PLR2004 - type, source, options
        return "the type of its file system is not known"
    kind, options = fields[0], set(fields[2].split(","))
    if kind in _UNJUDGED:
        return f"permissions on {kind} cannot be judged"
    # FUSE leaves it to the server to check who may read, unless the kernel is asked to, or only one user gets in.
    asks_kernel = "default_permissions" in options
    if kind.partition(".")[0] in ("fuse", "fuseblk") and not asks_kernel and "allow_other" in options:
        return f"permissions on {kind} without default_permissions cannot be judged"
    return ""


def _reason(error: OSError) -> str:
    return str(error.strerror or error)
