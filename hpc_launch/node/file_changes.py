"""Waits for files to be written to, without looking at them again and again: inotify(7).

The kernel reports what processes of this node write through a file system of any kind, NFS and Lustre too. Other nodes'
writes, and writes through a memory map, are not reported.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import select
import threading
from collections.abc import Iterable
from pathlib import Path

# inotify(7), <sys/inotify.h>: a write, to the file itself and not to one that it links to.
_IN_MODIFY, _IN_DONT_FOLLOW = 0x2, 0x02000000
_IN_FLAGS = os.O_NONBLOCK | os.O_CLOEXEC

# Where the kernel reports nothing, a wait is so short: whoever waits then looks at the files.
_POLL_SECONDS = 0.1

# More than the events of a moment; the kernel joins equal ones that follow each other.
_EVENTS_BYTES = 1 << 16


class FileChanges:
    """Lets one thread wait until one of some files is written to.

    Where the kernel does not report that (no inotify, too many instances of this user, a file that is not there),
    `wait` returns ten times a second.

    Attributes:
        reported: whether the kernel reports changes. Set it to False when it has missed one.
    """

    def __init__(self) -> None:
        """Nothing is watched before `watch`."""
        self.reported = False
        self._inotify = self._wakes = -1
        self._lock = threading.Lock()  # `wake` is called by others, at any time

    def watch(self, paths: Iterable[Path]) -> None:
        """Begin to watch files. For the thread that waits: a file server may not answer for a while."""
        with self._lock:
            self._wakes = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        libc = ctypes.CDLL(None, use_errno=True)
        try:
            self._inotify = int(libc.inotify_init1(_IN_FLAGS))
        except AttributeError:  # another C library than Linux has
            return
        mask = _IN_MODIFY | _IN_DONT_FOLLOW
        watches = [libc.inotify_add_watch(self._inotify, os.fsencode(path), mask) for path in paths]
        self.reported = self._inotify >= 0 and all(watch >= 0 for watch in watches)

    def wait(self, seconds: float = math.inf) -> bool:
        """Wait until a file is written to, `wake` is called, or the time is over.

        What is written between two calls ends the second one at once.

        Returns:
            Whether a file may have been written to.
        """
        waited_for = select.poll()
        waited_for.register(self._wakes, select.POLLIN)
        if self.reported:
            waited_for.register(self._inotify, select.POLLIN)
        else:
            seconds = min(seconds, _POLL_SECONDS)
        ready = {descriptor for descriptor, _ in waited_for.poll(None if seconds == math.inf else seconds * 1000)}
        if self._inotify in ready:
            with contextlib.suppress(BlockingIOError):
                while os.read(self._inotify, _EVENTS_BYTES):
                    pass
        if self._wakes in ready:
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self._wakes)
        return self._inotify in ready or not self.reported

    def wake(self) -> None:
        """End the wait of the other thread, or its next one; without effect before `watch` and after `close`."""
        with self._lock:
            if self._wakes >= 0:
                os.eventfd_write(self._wakes, 1)

    def close(self) -> None:
        """Watch no more. For the thread that waits."""
        with self._lock:
            for descriptor in (self._inotify, self._wakes):
                if descriptor >= 0:
                    os.close(descriptor)
            self._inotify = self._wakes = -1
        self.reported = False
