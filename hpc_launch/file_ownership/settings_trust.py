"""The trust in settings files, profiles and templates, which say what is run: whether anybody else can change them."""

from __future__ import annotations

import grp
import os
import pwd
import stat
from collections.abc import Sequence
from pathlib import Path

from hpc_launch.file_ownership.rules import FileStatus, fault_of_settings


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
    for entry in (*(FileStatus.of(folder, folder.stat()) for folder in folders), FileStatus.of(real, status)):
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


def _is_private_group(entry: FileStatus) -> bool:
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
