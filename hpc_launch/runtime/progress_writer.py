"""Says how far training is."""

from __future__ import annotations

import math
import numbers
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from hpc_launch import codec
from hpc_launch.errors import LogDirError
from hpc_launch.records import directory
from hpc_launch.records.directory import JobDirectory
from hpc_launch.records.progress_curve import next_point

# Seconds between two writes of the progress.
_WRITE_S = 1.0


def json_number(name: str, value: object) -> float | str:
    """Make a number one that JSON has."""
    if isinstance(value, (bool, int)):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):  # numpy's as well
        number = float(value)
        return number if math.isfinite(number) else str(number)
    raise TypeError(f"{name} is a {type(value).__name__}: mark_progress takes numbers and strings")


class ProgressWriter:
    """Writes how far training is, not more often than anybody would read it."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._written = -math.inf
        self._last: Mapping[str, Any] | None = None
        self._pending: tuple[JobDirectory, int] | None = None
        self._calls = 0
        self._next = 1
        self._points: list[str] = []
        # Never waited for: a signal handler may say something while the main thread is writing.
        self._writing = threading.Lock()

    def mark(self, job: JobDirectory, rank: int, word: Mapping[str, Any], *, done: bool) -> None:
        """Remember a word, and write it if it is time."""
        if not self._same(word):
            self._last = word
            self._pending = (job, rank)
            self._calls += 1
            if self._calls >= self._next:
                self._next = next_point(self._calls)
                self._points.append(codec.line(word))
        if done or self._clock() - self._written > _WRITE_S:
            self.flush()

    def _same(self, word: Mapping[str, Any]) -> bool:
        last = self._last
        return (
            last is not None
            and word["step"] is not None
            and all(last[name] == word[name] for name in ("attempt", "step", "total", "values"))
        )

    def flush(self) -> None:
        """Write what was held back."""
        if self._pending is None or self._last is None or not self._writing.acquire(blocking=False):
            return
        try:
            (job, rank), self._pending = self._pending, None
            points, self._points = self._points, []
            self._written = self._clock()
            if job.path.is_dir():
                directory.write_json(job.progress(rank), self._last, job.path)
                if points:
                    directory.append(job.curve(rank), "".join(points), job.path)
        except (OSError, LogDirError):
            pass
        finally:
            self._writing.release()
