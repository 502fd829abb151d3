"""What the kernel has done about memory: how often it has killed processes of this cgroup, and which limit it enforces.

All of it can be read without rights: `memory.events` and `memory.max` of cgroup v2
(Documentation/admin-guide/cgroup-v2.rst in the kernel's source), `memory.oom_control` and `memory.limit_in_bytes` of
v1, and `oom_kill` in /proc/vmstat, which counts for the whole node.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# Version 1 writes the largest number of pages where there is no limit.
_UNLIMITED = 1 << 62


@dataclass(frozen=True)
class Kills:
    """How often the kernel has killed a process for memory.

    Attributes:
        group: in the cgroups of this process, or below; None where that cannot be seen.
        node: on the whole node, whoever's it was; None where that cannot be seen.
    """

    group: int | None
    node: int | None


def kills(root: Path = Path("/")) -> Kills:
    """What was counted up to now. Only differences mean anything."""
    counts = [
        count for folder, files in _groups(root) if (count := _counted(folder / files.kills, "oom_kill")) is not None
    ]
    # Counts of v2 hold for what is below as well, those of v1 only for the group itself: the highest is the one.
    return Kills(max(counts, default=None), _counted(root / "proc/vmstat", "oom_kill"))


def limit(root: Path = Path("/")) -> int | None:
    """The memory that the processes of this cgroup can have, in bytes: the lowest limit above them; None if none."""
    found = []
    for folder, files in _groups(root):
        with contextlib.suppress(OSError, ValueError):
            found.append(int((folder / files.limit).read_text()))
    return min((size for size in found if size < _UNLIMITED), default=None)


@dataclass(frozen=True)
class _Files:
    """The names of the two files in a version's groups."""

    kills: str
    limit: str


_V1 = _Files("memory.oom_control", "memory.limit_in_bytes")
_V2 = _Files("memory.events", "memory.max")


def _groups(root: Path) -> Iterator[tuple[Path, _Files]]:
    """The memory cgroup of this process and those above it."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
        mounts = (root / "proc/self/mountinfo").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        number, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            mounted, files = _mount(mounts, "cgroup", "memory"), _V1
        elif number == "0":
            mounted, files = _mount(mounts, "cgroup2", ""), _V2
        else:
            continue
        if mounted is None:
            continue
        point, top = mounted
        below = Path(path).relative_to(top) if Path(path).is_relative_to(top) else Path(path.lstrip("/"))
        base = root / point.lstrip("/")
        for folder in [base / below, *(base / parent for parent in below.parents)]:
            yield folder, files


def _mount(lines: list[str], kind: str, option: str) -> tuple[str, str] | None:
    """Where a hierarchy is mounted, and which group is at its top (proc_pid_mountinfo(5)); the last one counts."""
    found = None
    for line in lines:
        fields, _, rest = line.partition(" - ")
        words, more = fields.split(), rest.split()
        if len(words) > 4 and len(more) > 2 and more[0] == kind and (not option or option in more[2].split(",")):  # noqa: PLR2004
            found = words[4], words[3]
    return found


def _counted(path: Path, name: str) -> int | None:
    """A number from a file of names and numbers."""
    try:
        match = re.search(rf"^{name} (\d+)$", path.read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(match[1]) if match else None
