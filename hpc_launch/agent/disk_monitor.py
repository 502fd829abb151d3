"""The monitor of the files that workers write.

It records when they grow, and notices when the disk is full, or when their directory is gone.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
import time
from pathlib import Path

from hpc_launch.node.file_changes import FileChanges
from hpc_launch.records.output_times import OutputTimes

# A file system with less is full: some have a few blocks that nobody gets.
_LEAST = 1 << 16

# A quota that is used up shows only when something is written: so something is, however quiet the workers are.
_PROBE_SECONDS = 60.0

# Nothing is written for long, but others fill the file system: look as often as this.
_QUIET_SECONDS = 5.0

# So long the last look may take.
_LAST_SECONDS = 5.0


class DiskMonitor:
    """Looks at the files of an attempt when they grow, and now and then, from a thread.

    Attributes:
        problem: why nothing can be written; None as long as it can, or once it can again.

    Args:
        times: where it is written down when files grow.
        folder: the directory of the files.
    """

    def __init__(self, times: OutputTimes, folder: Path) -> None:
        self.problem: OSError | None = None
        self._times = times
        self._folder = folder
        self._ending = threading.Event()
        self._changes = FileChanges()
        self._thread = threading.Thread(target=self._run, name="storage", daemon=True)
        self._probe = 0.0

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def stop(self) -> None:
        """Look a last time, and no more; a file system that hangs is not waited for."""
        self._ending.set()
        self._changes.wake()
        if self._thread.ident is not None:
            self._thread.join(_LAST_SECONDS)

    def _run(self) -> None:
        self._changes.watch(self._times.files)
        while not self._ending.wait(self._times.pause):
            self._look()
            self._changes.wait(_QUIET_SECONDS)
        self._look()
        self._changes.close()

    def _look(self) -> None:
        now = time.monotonic()
        self.problem = self._gone() or self._times.look(even_so=now > self._probe) or self._full()
        if now > self._probe:
            self._probe = now + _PROBE_SECONDS

    def _gone(self) -> OSError | None:
        """The error if the directory was removed: what the workers write to their open files is lost then."""
        try:
            self._folder.stat()
        except FileNotFoundError as error:
            return error
        except OSError:
            return None  # a file system that is away may come back
        return None

    def _full(self) -> OSError | None:
        with contextlib.suppress(OSError):
            status = os.statvfs(self._folder)
            if status.f_blocks and status.f_bavail * status.f_frsize < _LEAST:
                return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return None
