"""When the job ends, as cheaply as a script may ask in every step."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from pathlib import Path

from hpc_launch import codec
from hpc_launch.codec import CodecError
from hpc_launch.records.history_model import JobEnd
from hpc_launch.runtime import worker_variables

# Seconds between two looks at the file with the job's end.
_LOOK_S = 1.0


class EndTime:
    """When the job ends: what the launcher wrote last, else what Slurm said when the job began."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._path: Path | None = None
        self._looked = -math.inf
        self._version: tuple[int, int, int] | None = None
        self._end: float | None = None
        self._known = False

    def find(self) -> float | None:
        """The end in seconds since the epoch, None where it is not known."""
        job = worker_variables.job()
        if job is not None:
            self._look(job.end_time)
            if self._known:
                return self._end
        return _seconds(os.environ.get("SLURM_JOB_END_TIME", ""))

    def _look(self, path: Path) -> None:
        now = self._clock()
        if path == self._path and now - self._looked < _LOOK_S:
            return
        if path != self._path:
            self._version = None
        self._path, self._looked = path, now
        try:
            status = path.stat()
            version = (status.st_mtime_ns, status.st_ino, status.st_size)
            if version != self._version:
                self._known = False
                self._end = codec.read(JobEnd, path.read_bytes()).end
                self._known, self._version = True, version
        except (OSError, CodecError):
            self._known, self._version = False, None


def _seconds(text: str) -> float | None:
    """Read seconds since the epoch; None for what is none."""
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None
