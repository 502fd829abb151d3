"""What is mounted, as the kernel lists it in /proc/PID/mountinfo (proc_pid_mountinfo(5))."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Mount:
    """A mounted file system.

    Attributes:
        number: the kernel's.
        root: which of its directories is mounted.
        point: where.
        kind: its type, such as `nfs4`.
        options: those of the file system, such as `default_permissions`.
    """

    number: str
    root: str
    point: str
    kind: str
    options: frozenset[str]


def read(lines: Iterable[str]) -> Iterator[Mount]:
    """The mounts of a list, in its order; a line that has not all of it is left out."""
    for line in lines:
        before, _, after = line.partition(" - ")
        fields, system = before.split(), after.split()
        if len(fields) > 4 and len(system) > 2:  # noqa: PLR2004 - up to the point, and up to the options
            yield Mount(fields[0], fields[3], fields[4], system[0], frozenset(system[2].split(",")))


def of_file(descriptor: int) -> Mount | None:
    """The mount in which an open file of this process is; None where the kernel does not say it."""
    try:
        facts = Path(f"/proc/self/fdinfo/{descriptor}").read_text()
        number = next(line.split()[1] for line in facts.splitlines() if line.startswith("mnt_id:"))
        with Path("/proc/self/mountinfo").open(encoding="utf-8", errors="surrogateescape") as lines:
            return next(mount for mount in read(lines) if mount.number == number)
    except (OSError, StopIteration, IndexError):
        return None
