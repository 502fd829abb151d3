"""How nodes and ranks are written for people. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from hpc_launch import hostlist, ranges
from hpc_launch.errors import HostlistError


def fold_hosts(hosts: Iterable[str]) -> str:
    """Write nodes as a host list; names that no host list can have, as foreign records may, one by one."""
    names = sorted(set(hosts))
    try:
        return hostlist.display(names)
    except HostlistError:
        return ",".join(names)


def unfold_hosts(text: str) -> tuple[str, ...]:
    """The names of a host list; one that cannot be read is a name."""
    if not text:
        return ()
    try:
        return hostlist.expand(text) if hostlist.count(text) <= hostlist.MAX_RANGE else (text,)
    except HostlistError:
        return (text,)


def fold_ranks(ranks: Iterable[int]) -> str:
    """Write ranks: `rank 3`, `ranks 0-510`, `ranks 0-2,7`."""
    numbers = set(ranks)
    return f"rank{'s' if len(numbers) != 1 else ''} {ranges.fold(numbers)}"
