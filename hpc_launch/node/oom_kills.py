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

from hpc_launch.node import mounts

# Version 1 writes the largest number of pages where there is no limit.
_UNLIMITED = 1 << 62


@dataclass(frozen=True)
class OomKillCounts:
    """How often the kernel has killed a process for memory.

    Attributes:
        group: in the cgroups of this process, or below; None where that cannot be seen.
        node: on the whole node, whoever's it was; None where that cannot be seen.
    """

    group: int | None
    node: int | None


def count_oom_kills(root: Path = Path("/")) -> OomKillCounts:
    """What was counted up to now. Only differences mean anything."""
    counts = [
        count for folder, files in _groups(root) if (count := _counted(folder / files.kills, "oom_kill")) is not None
    ]
    # Counts of v2 hold for what is below as well, those of v1 only for the group itself: the highest is the one.
    return OomKillCounts(max(counts, default=None), _counted(root / "proc/vmstat", "oom_kill"))


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
        mounted = [*mounts.read((root / "proc/self/mountinfo").read_text().splitlines())]
    except OSError:
        return
    for line in lines:
        number, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            hierarchies, files = [one for one in mounted if one.kind == "cgroup" and "memory" in one.options], _V1
        elif number == "0":
            hierarchies, files = [one for one in mounted if one.kind == "cgroup2"], _V2
        else:
            continue
        if not hierarchies:
            continue
        last = hierarchies[-1]
        below = Path(path).relative_to(last.root) if Path(path).is_relative_to(last.root) else Path(path.lstrip("/"))
        base = root / last.point.lstrip("/")
        for folder in [base / below, *(base / parent for parent in below.parents)]:
            yield folder, files


def _counted(path: Path, name: str) -> int | None:
    """A number from a file of names and numbers."""
    try:
        match = re.search(rf"^{name} (\d+)$", path.read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(match[1]) if match else None
