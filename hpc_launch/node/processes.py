"""Processes of this node as the kernel shows them in /proc (proc(5))."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

_STATES = {
    "R": "running",
    "S": "waiting",
    "D": "hanging in the kernel",
    "T": "stopped",
    "t": "stopped by a debugger",
    "Z": "ended",
    "X": "ended",
    "I": "idle",
}


# From <sys/prctl.h>.
_PR_SET_PDEATHSIG = 1


def tied_to(parent: int, by: signal.Signals) -> Callable[[], None]:
    """What a child does to end with its parent: the kernel signals it when that ends, whatever ends it (prctl(2)).

    Args:
        parent: the process id of the parent.
        by: the signal. A child whose parent has ended before ends at once, with the status of this signal.

    Returns:
        A function for the child; it takes no lock, so that it can be called between fork and exec.
    """
    libc = ctypes.CDLL(None)

    def tie() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, by, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(128 + by)

    return tie


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


@dataclass(frozen=True)
class Handling:
    """What a thread does about signals: sets of them, as the kernel's masks."""

    _pending: int
    _blocked: int
    _caught: int

    def caught(self, *signums: int) -> bool:
        """Whether its process has handlers for all of these."""
        return all(self._caught >> signum - 1 & 1 for signum in signums)

    def pending(self, signum: int) -> bool:
        """Whether it has still to be handled."""
        return bool(self._pending >> signum - 1 & 1)

    def blocked(self, signum: int) -> bool:
        """Whether it is blocked, as it is while its handler runs."""
        return bool(self._blocked >> signum - 1 & 1)


def signals(pid: int, thread: int) -> Handling | None:
    """What a thread does about signals; None if it is gone."""
    try:
        lines = Path("/proc", str(pid), "task", str(thread), "status").read_text(errors="replace").splitlines()
        fields = dict(line.split(":", 1) for line in lines)
        return Handling(*(int(fields[name], 16) for name in ("SigPnd", "SigBlk", "SigCgt")))
    except (OSError, KeyError, ValueError):
        return None


def numbers() -> list[int]:
    """The processes that there are."""
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]  # noqa: PTH208 - names are all that is wanted


def threads(pid: int) -> list[int]:
    """The threads of a process, the oldest first; none if it is gone."""
    try:
        return sorted(map(int, os.listdir(f"/proc/{pid}/task")))  # noqa: PTH208 - names are all that is wanted
    except OSError:
        return []


def name(pid: int, thread: int | None = None) -> str:
    """The name of a process or of one of its threads, of up to 15 characters; empty if it is gone."""
    try:
        return Path(_folder(pid, thread), "comm").read_text(errors="replace").rstrip("\n")
    except OSError:
        return ""


def parent(pid: int) -> int:
    """The parent of a process; 0 if it is gone."""
    fields = _fields(pid)
    return int(fields[1]) if fields else 0


def state(pid: int, thread: int | None = None) -> tuple[str, str]:
    """What a process or a thread does: the letter that the kernel has for it, empty if it is gone, and words for it.

    Where in the kernel it waits is told to those who may trace it only (`/proc/PID/wchan`).
    """
    fields = _fields(pid, thread)
    if not fields:
        return "", "gone"
    letter = fields[0]
    words = _STATES.get(letter, letter)
    try:
        function = Path(_folder(pid, thread), "wchan").read_text(errors="replace") if letter in "SD" else ""
    except OSError:
        function = ""
    return letter, f"{words} in {function}" if function.strip("0") else words


def environment(pid: int) -> dict[str, str]:
    """The environment that the program of a process was started with; empty where it cannot be read."""
    try:
        text = Path("/proc", str(pid), "environ").read_bytes().decode(errors="surrogateescape")
    except OSError:
        return {}
    pairs = (entry.partition("=") for entry in text.split("\0"))
    return {name: value for name, equals, value in pairs if equals}


def alive(pid: int) -> bool:
    """Whether a process runs; one that is still to be reaped does not."""
    fields = _fields(pid)
    return bool(fields) and fields[0] not in "ZX"


def _folder(pid: int, thread: int | None) -> str:
    return f"/proc/{pid}" if thread is None else f"/proc/{pid}/task/{thread}"


def _fields(pid: int, thread: int | None = None) -> list[str]:
    """The fields of `stat` from the state on; empty if it is gone."""
    try:
        # The name of the program, in parentheses, may hold anything.
        return Path(_folder(pid, thread), "stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return []


# The bits of signals 32 and 33, which the C library has for itself (nptl(7)).
_OF_THE_LIBRARY = 0b11 << 31


def would_die_of(pid: int, signum: int) -> bool:
    """Whether a signal would end a process because it does nothing about it: no handler, not ignored, not blocked.

    False for a process that is gone. Where even the C library's own signals are blocked, all are so for a moment only:
    it makes a thread (glibc, pthread_create.c), and `sigprocmask` leaves them out for everybody else (nptl(7)).
    """
    bit = 1 << (signum - 1)
    try:
        lines = Path("/proc", str(pid), "status").read_text(errors="replace").splitlines()
        fields = dict(line.split(":", 1) for line in lines)
        blocked, *cared_for = [int(fields[name], 16) for name in ("SigBlk", "SigIgn", "SigCgt")]
    except (OSError, KeyError, ValueError):
        return False
    if not blocked & _OF_THE_LIBRARY:
        cared_for.append(blocked)
    return not any(mask & bit for mask in cared_for)


def send(pid: int, signum: int, *, group: bool = False) -> None:
    """Signal a process, or the process group that it leads; one that is gone is no error."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        (os.killpg if group else os.kill)(pid, signal.Signals(signum))


def start_time(pid: int) -> str:
    """When a process began, as the kernel counts: with its number, it names it for good. Empty if it is gone."""
    fields = _fields(pid)
    return fields[19] if len(fields) > 19 else ""  # noqa: PLR2004 - proc(5), starttime
