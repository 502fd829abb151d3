"""Let a process say where its threads are when a signal (`node.reserved_signals`) asks; its script knows nothing of it.

faulthandler could dump all threads at once. But it reads the stacks of the others while they change: of busy threads a
few hundred such dumps kill a process (SIGSEGV; Python 3.10 to 3.13). So a process is first asked for its stacks by a
signal that Python handles, holding its lock; and where its main thread does not get to it, thread by thread, each of
which then dumps itself only.
"""

from __future__ import annotations

import contextlib
import faulthandler
import fcntl
import os
import resource
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType

from hpc_launch.node import reserved_signals
from hpc_launch.node.reserved_signals import Owner

# Recursion goes deeper than anybody reads.
_MOST_FRAMES = 100


def install_stack_handlers(environ: Mapping[str, str]) -> None:
    """Make this process answer. Where that is not possible it is the same process without it.

    A handler that the script installs for one of the signals takes the place of this one.

    Args:
        environ: the environment of the worker; one that is no worker answers nobody.
    """
    try:
        job = Path(environ["HPC_LAUNCH_JOB_DIRECTORY"]).name
        owner = Owner(job, int(environ["HPC_LAUNCH_ATTEMPT"]), int(environ["RANK"]))
    except (KeyError, ValueError):
        return  # it is no worker
    try:
        file = _open(owner)
    except OSError:
        return  # there is no memory, or no descriptor
    faulthandler.register(reserved_signals.DUMP, file=file, all_threads=False, chain=False)
    if threading.current_thread() is threading.main_thread():  # others cannot handle signals
        signal.signal(reserved_signals.ASK, _teller(file))
        signal.siginterrupt(reserved_signals.ASK, False)  # what can go on after a signal does


def _open(owner: Owner) -> int:
    file = os.memfd_create(owner.file)
    try:
        lowest = reserved_signals.first_descriptor(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
        high = fcntl.fcntl(file, fcntl.F_DUPFD_CLOEXEC, lowest)
    finally:
        os.close(file)
    fcntl.fcntl(high, fcntl.F_SETFL, os.O_APPEND)
    return high


def _teller(file: int) -> Callable[[int, FrameType | None], None]:
    """The handler. It takes no lock and imports nothing: whatever the main thread was doing goes on after it."""
    status = os.fstat(file)
    place = status.st_dev, status.st_ino

    def tell(_: int, frame: FrameType | None) -> None:
        with contextlib.suppress(Exception):
            status = os.fstat(file)
            if (status.st_dev, status.st_ino) == place:  # the script may have closed it, and opened another one
                os.write(file, "".join(_threads(frame)).encode("ascii", "backslashreplace"))

    return tell


def _threads(frame: FrameType | None) -> Iterator[str]:
    """The stacks of all threads, the main thread's first, as faulthandler of Python 3.14 writes them."""
    own = threading.get_ident()
    known = threading._active.copy()  # type: ignore[attr-defined]  # noqa: SLF001 - enumerate() takes a lock
    others = sys._current_frames()  # noqa: SLF001 - this is what it is for
    others.pop(own, None)
    for ident, top in ((own, frame), *others.items()):
        name = getattr(known.get(ident), "name", "") if ident != own else "MainThread"
        words = f" [{' '.join(name.split())}]" if name else ""
        yield f"Thread 0x{ident:016x}{words} (most recent call first):\n"
        yield from _lines(top)
    yield reserved_signals.END


def _lines(frame: FrameType | None) -> Iterator[str]:
    for _ in range(_MOST_FRAMES):
        if frame is None:
            return
        yield f'  File "{frame.f_code.co_filename}", line {frame.f_lineno or 0} in {frame.f_code.co_name}\n'
        frame = frame.f_back
    yield "  ...\n"
