"""When the workers' files grew: a line now and then, so that files without time stamps can be merged by time.

`attempt_<n>/<host>/times.jsonl` has `{"time": SECONDS, "0.out": BYTES, "3.err": BYTES}`: what the files of ranks 0 and
3 had grown to at that time, by this node's clock. Files that have not grown since the line before are left out: often
all of them, when all that is written is that something can be.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Collection, Mapping
from pathlib import Path

from hpc_launch import codec
from hpc_launch.records import directory
from hpc_launch.records.regular_files import content

_KEY = re.compile(r"\d{1,9}\.(out|err)")

# Seconds between two looks, and up to which size of the file they hold: it is never much of what the workers write.
_PAUSES = ((1 << 20, 1.0), (8 << 20, 5.0))
_LONGEST_PAUSE = 30.0


class OutputTimes:
    """Writes down when files grow.

    Args:
        path: where.
        files: the files, each by what it is called there: `0.out`.
        job: the job directory, from which on all directories have to be one's own.
    """

    def __init__(self, path: Path, files: Mapping[str, Path], job: Path | None = None) -> None:
        self._path = path
        self._job = job
        self._files = files
        self._sizes = dict.fromkeys(files, 0)
        self._written = 0

    @property
    def files(self) -> Collection[Path]:
        """The files."""
        return self._files.values()

    @property
    def pause(self) -> float:
        """Seconds to wait before the next look."""
        return next((pause for size, pause in _PAUSES if self._written < size), _LONGEST_PAUSE)

    def look(self, *, even_so: bool = False) -> OSError | None:
        """Write down what has grown, or just the time if nothing has, `even_so`; returns why that was not possible."""
        grown = {}
        for name, path in self._files.items():
            with contextlib.suppress(OSError):
                size = path.stat().st_size
                if size != self._sizes[name]:
                    grown[name] = self._sizes[name] = size
        if not grown and not even_so:
            return None
        line = codec.line({"time": round(time.time(), 3), **grown})
        try:
            self._written += directory.append(self._path, line, self._job)
        except OSError as error:
            return error
        return None


def read_output_times(path: Path) -> tuple[dict[str, list[tuple[float, int]]], str]:
    """Read when files grew.

    Returns:
        For each file the times and what it had grown to by then, in order; and why nothing, or not all, could be read.
    """
    data = content(path)
    if not isinstance(data, bytes):
        return {}, data or ""
    found: dict[str, list[tuple[float, int]]] = {}
    lines, bad, _ = codec.parse_lines(data)  # a last line that is being written is none yet
    for facts in lines:
        grown = codec.fitting(facts, codec.number)
        moment = grown.pop("time", None)
        for name, size in grown.items():
            if moment is not None and _KEY.fullmatch(name):
                steps = found.setdefault(name, [])
                # A file that was emptied begins anew, and what is known of it too.
                while steps and (steps[-1][1] >= size or steps[-1][0] > moment):
                    steps.pop()
                steps.append((moment, int(size)))
    return found, f"{bad} line{'s are' if bad > 1 else ' is'} not what hpc-launch writes there" if bad else ""
