"""Files with a secret: one's own, in directories of one's own, and readable by this user alone.

`file_ownership` has the rules for files of one's own. A secret needs more: a mode that lets nobody else in, and a file
system on which owners and modes say who may read.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from hpc_launch import file_ownership
from hpc_launch.errors import reason
from hpc_launch.file_ownership import Folder
from hpc_launch.node import mounts
from hpc_launch.node.mounts import Mount

MAX_BYTES = 4096
"""The most bytes of such a file."""

# Where the owner and the mode of a file need not say who may read it: servers and mount options decide.
_UNJUDGED = frozenset(
    {"9p", "afs", "auristorfs", "cifs", "smb3", "smbfs", "vfat", "msdos", "exfat", "ntfs", "ntfs3", "hfs", "virtiofs"}
)


class UnusableSecretFile(Exception):
    """A file cannot be used as a secret; the text says why, and never what is in it."""


class AbsentSecretFile(UnusableSecretFile):
    """There is no such file."""


def read_secret_file(path: Path, *, anywhere: bool = False) -> bytes:
    """The content of a private file, without blanks around it.

    Args:
        path: the file.
        anywhere: its directory may be another user's, as where a site hands out secrets.

    Raises:
        Absent: if it is not there.
        Unusable: if others may have made or read it, or it cannot be read.
    """
    with _opened(path.parent, anywhere=anywhere) as folder:
        return _read(folder, path.name)


def make_secret_file(path: Path, content: bytes) -> bytes:
    """The content of a private file, which is made if it is not there; of several that make it at once one is first.

    Raises:
        Unusable: as in `read_secret_file`, or if it cannot be made.
    """
    with _opened(path.parent) as folder:
        with contextlib.suppress(FileNotFoundError):
            return _read(folder, path.name)
        temporary = file_ownership.temporary_name(path.name)
        try:
            _write(folder.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), content)
            # Unlike rename(2), link(2) fails where the name is taken: what others have read stays.
            with contextlib.suppress(FileExistsError):
                os.link(temporary, path.name, src_dir_fd=folder.descriptor, dst_dir_fd=folder.descriptor)
        finally:
            with contextlib.suppress(FileNotFoundError):
                folder.unlink(temporary)
        return _read(folder, path.name)


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
        raise UnusableSecretFile(reason(error)) from None


@contextlib.contextmanager
def _opened(path: Path, *, anywhere: bool = False) -> Iterator[Folder]:
    """Open a directory; what goes wrong there, or within, is said as `UnusableSecretFile`."""
    try:
        with file_ownership.open_shared(path) if anywhere else file_ownership.open_folder(path) as folder:
            why = unjudged(mounts.of_file(folder.descriptor))
            if why:
                raise UnusableSecretFile(why)
            yield folder
    except FileNotFoundError:
        raise AbsentSecretFile("it is not there") from None
    except OSError as error:
        raise UnusableSecretFile(reason(error)) from None


def _read(folder: Folder, name: str) -> bytes:
    # Reading a directory, not only passing it, shows what another node has made there (close-to-open in nfs(5)).
    with contextlib.suppress(PermissionError):
        os.close(os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=folder.descriptor))
    with os.fdopen(folder.open(name, os.O_RDONLY), "rb") as file:
        status = os.fstat(file.fileno())
        if status.st_uid != os.geteuid():
            raise UnusableSecretFile(f"its file system shows user {status.st_uid} as its owner, not {os.geteuid()}")
        if status.st_mode & 0o077:
            mode = f"{stat.S_IMODE(status.st_mode):04o}"
            raise UnusableSecretFile(f"others may use it (mode {mode}): chmod 600 {folder.path / name}")
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise UnusableSecretFile(f"it has more than {MAX_BYTES} bytes")
    return content.strip()


def _write(descriptor: int, content: bytes) -> None:
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(descriptor)  # an empty key after a crash would stay for ever


def unjudged(mount: Mount | None) -> str:
    """Why owners and modes on a mounted file system do not say who may read a file; empty where they do. Pure."""
    if mount is None:
        return "the type of its file system is not known"
    if mount.kind in _UNJUDGED:
        return f"permissions on {mount.kind} cannot be judged"
    # FUSE leaves it to the server to check who may read, unless the kernel is asked to, or only one user gets in.
    asks_kernel = "default_permissions" in mount.options
    if mount.kind.partition(".")[0] in ("fuse", "fuseblk") and not asks_kernel and "allow_other" in mount.options:
        return f"permissions on {mount.kind} without default_permissions cannot be judged"
    return ""
