"""How nodes and times are written for people. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from hpc_launch import hostlist
from hpc_launch.errors import HostlistError

_MINUTE, _HOUR, _DAY = 60, 3600, 86400


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


def duration(seconds: float) -> str:
    """A time as people say it: `45 s`, `12 min`, `3 h 20 min`, `2 d 4 h`."""
    if seconds < 2 * _MINUTE:
        return f"{max(seconds, 0):.0f} s"
    minutes = round(seconds / _MINUTE)
    if minutes < _MINUTE:
        return f"{minutes} min"
    hours = round(seconds / _HOUR)
    if hours < 48:  # noqa: PLR2004 - two days
        return f"{minutes // 60} h {minutes % 60} min" if minutes % 60 else f"{minutes // 60} h"
    return f"{hours // 24} d {hours % 24} h" if hours % 24 else f"{hours // 24} d"


def ago(seconds: float) -> str:
    """How long ago, in few steps, so that what is about the same reads the same: `now`, `20 s ago`, `5 min ago`."""
    if seconds < 5:  # noqa: PLR2004 - as good as now
        return "now"
    for unit, length in (("d", _DAY), ("h", _HOUR), ("min", _MINUTE)):
        if seconds >= 2 * length:
            return f"{round(seconds / length)} {unit} ago"
    return f"{10 * max(round(seconds / 10), 1)} s ago"
