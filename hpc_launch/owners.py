"""Owners of files and directories: the rules that say which ones are used, and the functions that open them.

Two questions are answered here, and nowhere else:

    Is this a file of one's own?    What a run writes, and what it reads back in order to act on it: the job directory
                                    and all below it. See `open_folder`, `Folder.open` and `read_own`.
    Are these settings trusted?     Settings files, profiles and templates, which say what is run. See `distrust`.

The directories above a job directory may belong to others. They are refused where everybody can rename what is in them:
world-writable without the sticky bit. The same holds for symbolic links on the way (the rule of
`fs.protected_symlinks`, which not every system has switched on).

File systems that map owners (NFS with root squash, CIFS, AFS) show another owner than this process. A new file shows it
too, so that is tried where a directory seems to belong to somebody else.
"""

from __future__ import annotations

import contextlib
import errno
import grp
import os
import pwd
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

# A descriptor of a directory that only names what is below it: the directory need not be readable.
_SEARCH = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC

# A pipe that somebody has put in the place of a file must not block.
_FILE = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC

# New directories are never world-writable, whatever the umask says: such a one would be refused the next time.
_DIRECTORY_MODE = 0o775
_PRIVATE_MODE = 0o700

# As the kernel has it (MAXSYMLINKS).
_MOST_LINKS = 40

# Directories whose parents were found good; once per process is enough, as only their owners can change that.
_GOOD_PARENTS: set[str] = set()

# The owners that file systems show for new files of this process, by device.
_SHOWN_OWNERS: dict[int, int] = {}


class NotOwnError(PermissionError):
    """A file or directory is not one's own; `strerror` is one line that says what it is and what was expected."""

    def __init__(self, words: str) -> None:
        super().__init__(errno.EPERM, words)


@dataclass(frozen=True)
class Entry:
    """What the file system says of a file or directory.

    Attributes:
        path: where it is.
        uid: its owner.
        gid: its group.
        mode: its type and permissions, as `st_mode` has them.
        links: how many names it has.
    """

    path: Path
    uid: int
    gid: int
    mode: int
    links: int = 1

    @classmethod
    def of(cls, path: Path, status: os.stat_result) -> Entry:
        """The entry that a system call has described."""
        return cls(path, status.st_uid, status.st_gid, status.st_mode, status.st_nlink)

    @property
    def permissions(self) -> str:
        """The permissions as chmod(1) takes them: `2775`."""
        return f"{stat.S_IMODE(self.mode):04o}"

    @property
    def open_to_all(self) -> bool:
        """Whether everybody may change it; of a directory: may rename what others have put there."""
        return bool(self.mode & stat.S_IWOTH) and not (stat.S_ISDIR(self.mode) and self.mode & stat.S_ISVTX)


# ---- rules


def fault_of_parent(entry: Entry) -> str:
    """Say why a directory cannot be above one's own; empty where it can."""
    if entry.open_to_all:
        return f"everybody may write in {entry.path} (mode {entry.permissions}), and it has no sticky bit"
    return ""


def fault_of_link(link: Entry, folder: Entry, uid: int) -> str:
    """Say why a symbolic link is not followed; empty where it is. Others may put links into world-writable places."""
    if folder.mode & stat.S_IWOTH and link.uid not in (uid, 0, folder.uid):
        return f"{link.path} is a symbolic link of {user(link.uid)} in a directory that everybody may write in"
    return ""


def fault_of_directory(entry: Entry, owner: int) -> str:
    """Say why a directory is not one's own; empty where it is.

    Args:
        entry: the directory.
        owner: the owner that one's own directories have there.
    """
    if stat.S_ISLNK(entry.mode):
        return f"{entry.path} is a symbolic link, and has to be a directory of your own"
    if entry.uid != owner:
        return f"{entry.path} belongs to {user(entry.uid)}, and has to belong to {user(owner)}"
    if entry.open_to_all:
        return f"everybody may write in {entry.path} (mode {entry.permissions}): chmod o-w {entry.path}"
    return ""


def fault_of_file(entry: Entry, owner: int, *, writing: bool) -> str:
    """Say why a file is not one's own; empty where it is.

    Args:
        entry: the file.
        owner: the owner that one's own files have there.
        writing: whether it is to be changed: then it may have one name only, as the other may be of another file.
    """
    if stat.S_ISLNK(entry.mode):
        return f"{entry.path} is a symbolic link, and has to be a file of your own"
    if not stat.S_ISREG(entry.mode):
        return f"{entry.path} is not a regular file"
    if entry.uid != owner:
        return f"{entry.path} belongs to {user(entry.uid)}, and has to belong to {user(owner)}"
    if writing and entry.links > 1:
        return f"{entry.path} has {entry.links} names (hard links), and has to have one"
    return ""


def fault_of_settings(entry: Entry, uid: int, *, trusted: bool, private_group: bool, system: bool = False) -> str:
    """Say why settings, or the directory that they are in, are not trusted; empty where they are.

    Args:
        entry: the file or directory.
        uid: the user.
        trusted: the directory is listed as trusted, so that its owner and its group are.
        private_group: the group of the entry has no member but the user.
        system: it is root's by its place, and a container cannot show that.
    """
    folder = stat.S_ISDIR(entry.mode)
    if entry.mode & stat.S_IWOTH:
        return f"everybody may write {'in ' if folder else ''}{entry.path} (mode {entry.permissions})"
    if trusted:
        return ""
    if entry.uid not in (uid, 0) and not system:
        why = f"{entry.path} belongs to {user(entry.uid)}"
    elif entry.mode & stat.S_IWGRP and not private_group and entry.gid != 0:
        why = f"the group {group(entry.gid)} may write {'in ' if folder else ''}{entry.path}"
    else:
        return ""
    place = entry.path if folder else entry.path.parent
    return f'{why}; trusted = ["{place}"] in the settings of the user or the site makes it count'


# ---- one's own directories and files


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
            fault = fault_of_file(Entry.of(self.path / name, os.fstat(handle)), self.owner, writing=writing)
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

    def _entry(self, name: str) -> Entry:
        status = os.stat(name, dir_fd=self.descriptor, follow_symlinks=False)
        return Entry.of(self.path / name, status)


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
    here = os.open(path, _SEARCH)
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
    here, where = os.open(top.parent, _SEARCH), top.parent
    owner = os.geteuid()
    try:
        for name in (top.name, *path.relative_to(top).parts):
            mode = _PRIVATE_MODE if private and where == top.parent else _DIRECTORY_MODE
            below = _enter(here, name, where / name, mode if make else None)
            os.close(here)
            here, where = below, where / name
            status = os.fstat(here)
            owner = _own_uid(here, status)
            _refuse(fault_of_directory(Entry.of(where, status), owner))
            if private and where == top and status.st_mode & 0o077:
                _link(here).chmod(stat.S_IMODE(status.st_mode) & ~0o077)
        yield Folder(path, here, owner)
    finally:
        os.close(here)


def read_own(path: Path, top: Path | None = None) -> bytes:
    """Read a regular file of one's own, in a directory of one's own.

    Args:
        path: the file.
        top: as `open_folder` has it.

    Raises:
        NotOwnError: it is not.
        OSError: it is not there, or cannot be read.
    """
    with open_folder(path.parent, top) as folder, os.fdopen(folder.open(path.name, os.O_RDONLY), "rb") as file:
        return file.read()


def read_shared(path: Path) -> bytes:
    """Read a regular file of one's own in a directory that may belong to somebody else.

    Raises:
        NotOwnError: it is not.
        OSError: it is not there, or cannot be read.
    """
    with open_shared(path.parent) as folder, os.fdopen(folder.open(path.name, os.O_RDONLY), "rb") as file:
        return file.read()


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
            path.mkdir(_DIRECTORY_MODE)
        except FileNotFoundError:
            make_parents(path.parent)
            path.mkdir(_DIRECTORY_MODE)


def is_own(path: Path) -> bool:
    """Whether there is a regular file of one's own at a path, in whatever directory."""
    try:
        status = path.lstat()
        owner = _SHOWN_OWNERS.get(status.st_dev, os.geteuid())
        return not fault_of_file(Entry.of(path, status), owner, writing=False)
    except OSError:
        return False


def unique(name: str) -> str:
    """A name for a temporary file beside `name`, which no other thread, process or node uses."""
    return f".{name}.{os.urandom(16).hex()}"


def _walk(path: str) -> None:
    """Go down a path, directory by directory, and look at each; follow links as the rules allow."""
    uid, links = os.geteuid(), 0
    left = path.split("/")[::-1]
    here = os.open("/", _SEARCH)
    try:
        while True:
            status = os.fstat(here)
            if status.st_mode & stat.S_IWOTH and not status.st_mode & stat.S_ISVTX:
                raise NotOwnError(fault_of_parent(Entry.of(_path_of(here), status)))
            while left and left[-1] in ("", "."):
                left.pop()
            if not left:
                return
            name = left.pop()
            try:
                below = os.open(name, _SEARCH | os.O_NOFOLLOW, dir_fd=here)
            except OSError as error:
                if error.errno not in (errno.ENOTDIR, errno.ELOOP):
                    raise
                target = _target(here, name, status, uid)
                links += 1
                if links > _MOST_LINKS:
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path) from None
                left += target.split("/")[::-1]
                below = os.open("/" if target.startswith("/") else ".", _SEARCH, dir_fd=here)
            os.close(here)
            here = below
    finally:
        os.close(here)


def _target(folder: int, name: str, status: os.stat_result, uid: int) -> str:
    """Where a symbolic link leads, if it may be followed."""
    link = os.stat(name, dir_fd=folder, follow_symlinks=False)
    if not stat.S_ISLNK(link.st_mode):
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(_path_of(folder) / name))
    fault = fault_of_link(Entry.of(Path(name), link), Entry.of(Path(), status), uid)
    if fault:
        where = _path_of(folder)
        raise NotOwnError(fault_of_link(Entry.of(where / name, link), Entry.of(where, status), uid))
    return os.readlink(name, dir_fd=folder)


def _enter(folder: int, name: str, path: Path, mode: int | None) -> int:
    """Open the directory `name` in a directory; with a mode, make it where it is not there. Links are not followed."""
    flags = _SEARCH | os.O_NOFOLLOW
    try:
        return os.open(name, flags, dir_fd=folder)
    except FileNotFoundError:
        if mode is None:
            raise
    except OSError as error:
        if error.errno not in (errno.ENOTDIR, errno.ELOOP):
            raise
        entry = Entry.of(path, os.stat(name, dir_fd=folder, follow_symlinks=False))
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
    name = unique("owner")
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


def _path_of(descriptor: int) -> Path:
    return _link(descriptor).readlink()


def _link(descriptor: int) -> Path:
    """What stands for an open descriptor, which may be one that only names its directory."""
    return Path("/proc/self/fd", str(descriptor))


def _refuse(fault: str) -> None:
    if fault:
        raise NotOwnError(fault)


# ---- settings


def distrust(path: Path, status: os.stat_result, trusted: Sequence[Path] = (), *, system: bool = False) -> str:
    """Say why a file that says what is run does not count; empty where it does.

    It counts if it and its directory belong to the user or root, and nobody else may write there. Of a symbolic link
    the file that it leads to is looked at, with that file's directory, and the directory of the link.

    Args:
        path: the file.
        status: what fstat(2) says of it.
        trusted: directories whose owner and group are trusted.
        system: the site's: in a container without a user for root its owner is not shown.
    """
    real = Path(os.path.realpath(path))
    unshown = _overflow_uid() if system and _in_user_namespace() else None
    folders = dict.fromkeys((path.parent, real.parent))
    for entry in (*(Entry.of(folder, folder.stat()) for folder in folders), Entry.of(real, status)):
        fault = fault_of_settings(
            entry,
            os.geteuid(),
            trusted=any(place.absolute() in (entry.path, *entry.path.parents) for place in trusted),
            private_group=bool(entry.mode & stat.S_IWGRP) and _is_private_group(entry),
            system=entry.uid == unshown,
        )
        if fault:
            return fault
    return ""


def _is_private_group(entry: Entry) -> bool:
    """Whether a group is its user's own: the primary one, with the user's name and no other members."""
    try:
        me, its = pwd.getpwuid(os.geteuid()), grp.getgrgid(entry.gid)
    except KeyError:
        return False
    if me.pw_gid != entry.gid or its.gr_name != me.pw_name or set(its.gr_mem) - {me.pw_name}:
        return False
    try:
        os.getxattr(entry.path, "system.posix_acl_access")
    except OSError:
        return True
    return False  # an access control list names more users or groups; the mode shows only their mask


def _in_user_namespace() -> bool:
    """Whether this process is in a user namespace, where the files of users that it does not map have no owner."""
    try:
        return Path("/proc/self/uid_map").read_text().split() != ["0", "0", "4294967295"]
    except OSError:
        return False


def _overflow_uid() -> int:
    """The owner that files have which belong to a user without a number in this user namespace."""
    try:
        return int(Path("/proc/sys/fs/overflowuid").read_text())
    except (OSError, ValueError):
        return 65534


# ---- words


def user(uid: int) -> str:
    """A user in words: `alice (uid 1000)`."""
    try:
        return f"{pwd.getpwuid(uid).pw_name} (uid {uid})"
    except KeyError:
        return f"uid {uid}"


def group(gid: int) -> str:
    """A group in words: `project (gid 2000)`."""
    try:
        return f"{grp.getgrgid(gid).gr_name} (gid {gid})"
    except KeyError:
        return f"gid {gid}"
