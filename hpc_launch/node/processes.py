"""Processes of this node: what the kernel shows of them in /proc (proc(5)), and the calls that only it has for them.

The one place that reads /proc/PID. Where a process id may be left out, it is this process that is meant.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import signal
from collections import defaultdict
from collections.abc import Callable, Iterable
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
_PR_SET_CHILD_SUBREAPER = 36

# tgkill(2) by its number: the C libraries of Enterprise Linux 8 have no function of that name.
_TGKILL = {"x86_64": 234, "aarch64": 131, "ppc64le": 250, "s390x": 241, "riscv64": 131, "loongarch64": 131}

# The bits of signals 32 and 33, which the C library has for itself (nptl(7)).
_OF_THE_LIBRARY = 0b11 << 31


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


def untied() -> None:
    """Undo `tied_to` for this process."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, 0, 0, 0, 0)


def become_subreaper() -> None:
    """Have the kernel make this process the parent of what its descendants leave behind (prctl(2))."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def signal_file(signums: Iterable[int]) -> int:
    """A descriptor that can be read while one of some blocked signals is pending for this process (signalfd(2)).

    It is for waiting: what has come is taken by `signal.sigtimedwait`.

    Raises:
        OSError: there are no descriptors left.
    """
    # sigset_t of the C libraries has 1,024 bits.
    mask = (ctypes.c_uint64 * 16)(sum(1 << signum - 1 for signum in signums))
    libc = ctypes.CDLL(None, use_errno=True)
    found: int = libc.signalfd(-1, ctypes.byref(mask), os.O_NONBLOCK | os.O_CLOEXEC)
    if found < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return found


def descendants(ancestor: int) -> list[int]:
    """The processes below one, whichever process group, session or name they have chosen; without zombies.

    A process that was forked twice belongs to the nearest subreaper above it (`become_subreaper`).
    """
    children: defaultdict[int, list[int]] = defaultdict(list)
    ended = set()
    for pid in numbers():
        if fields := _stat(pid):
            children[int(fields[_PARENT])].append(pid)
            if fields[_STATE] in _ENDED:
                ended.add(pid)
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
    _ignored: int
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

    def deadly(self, signum: int) -> bool:
        """Whether it would end the process because nothing is done about it: no handler, not ignored, not blocked.

        Where even the C library's own signals are blocked, all are so for a moment only: it makes a thread (glibc,
        pthread_create.c), and `sigprocmask` leaves them out for everybody else (nptl(7)).
        """
        blocked = 0 if self._blocked & _OF_THE_LIBRARY else self._blocked
        return not (self._ignored | self._caught | blocked) >> signum - 1 & 1


def signals(pid: int, thread: int | None = None) -> Handling | None:
    """What a thread, or the main thread of a process, does about signals; None if it is gone."""
    try:
        lines = Path(_folder(pid, thread), "status").read_text(errors="replace").splitlines()
        fields = dict(line.split(":", 1) for line in lines)
        return Handling(*(int(fields[name], 16) for name in ("SigPnd", "SigBlk", "SigIgn", "SigCgt")))
    except (OSError, KeyError, ValueError):
        return None


def would_die_of(pid: int, signum: int) -> bool:
    """Whether a signal would end a process (`Handling.deadly`); not one that is gone."""
    handling = signals(pid)
    return handling is not None and handling.deadly(signum)


def numbers() -> list[int]:
    """The processes that there are."""
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]  # noqa: PTH208 - names are all that is wanted


def threads(pid: int | None = None) -> list[int]:
    """The threads of a process, the oldest first; none if it is gone."""
    return _numbered(f"{_folder(pid)}/task")


def descriptors(pid: int | None = None) -> list[int]:
    """The file descriptors of a process, the lowest first; none if it is gone, or another user's."""
    return _numbered(f"{_folder(pid)}/fd")


def file_of(pid: int, descriptor: int) -> str:
    """The path under which a file that a process has open can be opened, or its link be read."""
    return f"{_folder(pid)}/fd/{descriptor}"


def name(pid: int, thread: int | None = None) -> str:
    """The name of a process or of one of its threads, of up to 15 characters; empty if it is gone."""
    try:
        return Path(_folder(pid, thread), "comm").read_text(errors="replace").rstrip("\n")
    except OSError:
        return ""


def parent(pid: int) -> int:
    """The parent of a process; 0 if it is gone."""
    fields = _stat(pid)
    return int(fields[_PARENT]) if fields else 0


def state(pid: int, thread: int | None = None) -> tuple[str, str]:
    """What a process or a thread does: the letter that the kernel has for it, empty if it is gone, and words for it."""
    fields = _stat(pid, thread)
    if not fields:
        return "", "gone"
    letter = fields[_STATE]
    words = _STATES.get(letter, letter)
    function = _kernel_function(pid, thread) if letter in "SD" else ""
    return letter, f"{words} in {function}" if function else words


def hung_in(pid: int) -> str:
    """The function of the kernel in which a process waits and cannot be interrupted; empty if it does not.

    It is the state D of proc_pid_stat(5). A function whose name is hidden is called `the kernel`.
    """
    fields = _stat(pid)
    return _kernel_function(pid) or "the kernel" if fields and fields[_STATE] == "D" else ""


def process_environment(pid: int) -> dict[str, str]:
    """The environment that the program of a process was started with; empty where it cannot be read."""
    try:
        text = Path(_folder(pid), "environ").read_bytes().decode(errors="surrogateescape")
    except OSError:
        return {}
    pairs = (entry.partition("=") for entry in text.split("\0"))
    return {name: value for name, equals, value in pairs if equals}


def alive(pid: int) -> bool:
    """Whether a process runs; one that is still to be reaped does not."""
    fields = _stat(pid)
    return bool(fields) and fields[_STATE] not in _ENDED


def start_time(pid: int) -> str:
    """When a process began, as the kernel counts: with its number, it names it for good. Empty if it is gone."""
    fields = _stat(pid)
    return fields[_START_TIME] if fields else ""


def is_same(pid: int, began: str) -> bool:
    """Whether the process of this number is the one whose `start_time` was that, and runs."""
    fields = _stat(pid)
    return bool(fields) and fields[_START_TIME] == began and fields[_STATE] not in _ENDED


def send(pid: int, signum: int, *, group: bool = False) -> None:
    """Signal a process, or the process group that it leads; one that is gone is no error."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        (os.killpg if group else os.kill)(pid, signal.Signals(signum))


def send_to_thread(pid: int, thread: int, signum: int) -> None:
    """Signal one thread of a process (tgkill(2)); one that is gone is no error."""
    libc = ctypes.CDLL(None)
    number = _TGKILL.get(platform.machine())
    if number is not None:
        libc.syscall(number, pid, thread, int(signum))
    else:
        libc.tgkill(pid, thread, int(signum))


# Fields of `stat` after the name of the program (proc_pid_stat(5)), and states in which a process runs no more.
_STATE, _PARENT, _START_TIME = 0, 1, 19
_ENDED = "ZX"


def _folder(pid: int | None, thread: int | None = None) -> str:
    folder = f"/proc/{'self' if pid is None else pid}"
    return folder if thread is None else f"{folder}/task/{thread}"


def _numbered(folder: str) -> list[int]:
    try:
        return sorted(map(int, os.listdir(folder)))  # noqa: PTH208 - names are all that is wanted
    except OSError:
        return []


def _stat(pid: int, thread: int | None = None) -> list[str]:
    """The fields of `stat` from the state on; empty if it is gone."""
    try:
        # The name of the program, in parentheses, may hold anything.
        return Path(_folder(pid, thread), "stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return []


def _kernel_function(pid: int, thread: int | None = None) -> str:
    """Where in the kernel it waits; empty if it does not, or if that is hidden: the kernel tells who may trace it."""
    try:
        return Path(_folder(pid, thread), "wchan").read_text(errors="replace").strip("0\n")
    except OSError:
        return ""
