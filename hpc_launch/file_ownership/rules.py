"""The rules about owners: why a file or directory is not one's own, or settings are not trusted.

They get what the file system says as a value, and look up nothing but the names of users and groups.
"""

from __future__ import annotations

import errno
import grp
import os
import pwd
import stat
from dataclasses import dataclass
from pathlib import Path


class NotOwnError(PermissionError):
    """A file or directory is not one's own; `strerror` is one line that says what it is and what was expected."""

    def __init__(self, words: str) -> None:
        super().__init__(errno.EPERM, words)


@dataclass(frozen=True)
class FileStatus:
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
    def of(cls, path: Path, status: os.stat_result) -> FileStatus:
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


def fault_of_parent(entry: FileStatus) -> str:
    """Say why a directory cannot be above one's own; empty where it can."""
    if entry.open_to_all:
        return f"everybody may write in {entry.path} (mode {entry.permissions}), and it has no sticky bit"
    return ""


def fault_of_link(link: FileStatus, folder: FileStatus, uid: int) -> str:
    """Say why a symbolic link is not followed; empty where it is. Others may put links into world-writable places."""
    if folder.mode & stat.S_IWOTH and link.uid not in (uid, 0, folder.uid):
        return f"{link.path} is a symbolic link of {_user(link.uid)} in a directory that everybody may write in"
    return ""


def fault_of_directory(entry: FileStatus, owner: int) -> str:
    """Say why a directory is not one's own; empty where it is.

    Args:
        entry: the directory.
        owner: the owner that one's own directories have there.
    """
    if stat.S_ISLNK(entry.mode):
        return f"{entry.path} is a symbolic link, and has to be a directory of your own"
    if entry.uid != owner:
        return f"{entry.path} belongs to {_user(entry.uid)}, and has to belong to {_user(owner)}"
    if entry.open_to_all:
        return f"everybody may write in {entry.path} (mode {entry.permissions}): chmod o-w {entry.path}"
    return ""


def fault_of_file(entry: FileStatus, owner: int, *, writing: bool) -> str:
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
        return f"{entry.path} belongs to {_user(entry.uid)}, and has to belong to {_user(owner)}"
    if writing and entry.links > 1:
        return f"{entry.path} has {entry.links} names (hard links), and has to have one"
    return ""


def fault_of_settings(entry: FileStatus, uid: int, *, trusted: bool, private_group: bool, system: bool = False) -> str:
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
        why = f"{entry.path} belongs to {_user(entry.uid)}"
    elif entry.mode & stat.S_IWGRP and not private_group and entry.gid != 0:
        why = f"the group {_group(entry.gid)} may write {'in ' if folder else ''}{entry.path}"
    else:
        return ""
    place = entry.path if folder else entry.path.parent
    return f'{why}; trusted = ["{place}"] in the settings of the user or the site makes it count'


def _user(uid: int) -> str:
    """A user in words: `alice (uid 1000)`."""
    try:
        return f"{pwd.getpwuid(uid).pw_name} (uid {uid})"
    except KeyError:
        return f"uid {uid}"


def _group(gid: int) -> str:
    """A group in words: `project (gid 2000)`."""
    try:
        return f"{grp.getgrgid(gid).gr_name} (gid {gid})"
    except KeyError:
        return f"gid {gid}"
