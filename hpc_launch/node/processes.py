"""Processes of this node as the kernel shows them in /proc (proc(5))."""

from __future__ import annotations

import contextlib
import os
import signal
from collections import defaultdict
from pathlib import Path


def descendants(ancestor: int) -> list[int]:
    """The processes below one, whichever process group, session or name they have chosen; without zombies.

    A process that was forked twice belongs to the nearest subreaper above it (PR_SET_CHILD_SUBREAPER, prctl(2)).
    """
    children: defaultdict[int, list[int]] = defaultdict(list)
    ended = set()
    for name in os.listdir("/proc"):  # noqa: PTH208 - names are all that is wanted, of thousands
        if name.isdigit():
            with contextlib.suppress(OSError):
                # The name of the program, in parentheses, may hold anything; state and parent follow it.
                state, parent, *_ = Path("/proc", name, "stat").read_text(errors="replace").rpartition(")")[2].split()
                children[int(parent)].append(int(name))
                if state in "ZX":
                    ended.add(int(name))
    found: list[int] = []
    seen = [ancestor]
    for pid in seen:  # it grows meanwhile
        seen.extend(children[pid])
        found.extend(child for child in children[pid] if child not in ended)
    return found


def would_die_of(pid: int, signum: int) -> bool:
    """Whether a signal would end a process because it does nothing about it: no handler, not ignored, not blocked.

    False for a process that is gone.
    """
    bit = 1 << (signum - 1)
    try:
        lines = Path("/proc", str(pid), "status").read_text(errors="replace").splitlines()
        fields = dict(line.split(":", 1) for line in lines)
        cared_for = [int(fields[name], 16) for name in ("SigBlk", "SigIgn", "SigCgt")]
    except (OSError, KeyError, ValueError):
        return False
    return not any(mask & bit for mask in cared_for)


def send(pid: int, signum: int, *, group: bool = False) -> None:
    """Signal a process, or the process group that it leads; one that is gone is no error."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        (os.killpg if group else os.kill)(pid, signal.Signals(signum))


def start_time(pid: int) -> str:
    """When a process began, as the kernel counts: with its number, it names it for good. Empty if it is gone."""
    try:
        return Path("/proc", str(pid), "stat").read_text(errors="replace").rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""
