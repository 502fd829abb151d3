"""The console: the launcher's own lines, and those of the workers, always whole."""

from __future__ import annotations

import contextlib
import os
import select
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

_CHUNK = 1 << 20
# A line longer than this is shown in pieces rather than held back.
_LONGEST_LINE = 1 << 16
_IDLE_SECONDS = 0.1


def say(message: str) -> None:
    """Write a line of the launcher's own to stderr, in one write so that it stays whole among others."""
    _write(2, f"hpc-launch: {message}\n".encode(errors="replace"))


def duration(seconds: float) -> str:
    """A time as people say it: `45 s`, `12 min`, `3 h 20 min`."""
    minutes = round(seconds / 60)
    if seconds < 120:  # noqa: PLR2004 - two minutes
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"  # noqa: PLR2004 - an hour


def _write(descriptor: int, data: bytes) -> None:
    """Write all of it; a console that is gone is not the workers' concern."""
    with contextlib.suppress(BrokenPipeError):
        while data:
            try:
                data = data[os.write(descriptor, data) :]
            except BlockingIOError:
                select.select([], [descriptor], [])


@dataclass
class Source:
    """A worker's file that is followed.

    Attributes:
        path: the file.
        prefix: what goes before each line.
        descriptor: 1 or 2, where its lines are shown; None where they are not.
        copy: a second file that gets the lines which contain one of `needles`.
    """

    path: Path
    prefix: str
    descriptor: int | None
    copy: Path | None = None
    needles: Sequence[str] = ()
    _offset: int = field(default=0, repr=False)
    _rest: bytes = field(default=b"", repr=False)
    _torn: bool = field(default=False, repr=False)

    def advance(self, *, final: bool) -> bool:
        """Show what is new, whole lines only (at the end also a last line without its end); False if nothing was."""
        try:
            with self.path.open("rb") as stream:
                stream.seek(self._offset)
                data = stream.read(_CHUNK)
        except OSError:
            return False
        self._offset += len(data)
        text = self._rest + data
        end = text.rfind(b"\n") + 1
        if (final and len(data) < _CHUNK) or len(text) - end > _LONGEST_LINE:
            end = len(text)
        self._rest = text[end:]
        if end:
            lines = text[:end].removesuffix(b"\n").split(b"\n")
            # The end of a line that was shown in pieces is no line of its own.
            self._show([_visible(line) for line in (lines[1:] if self._torn and not lines[0] else lines)])
            self._torn = not text[:end].endswith(b"\n")
        return bool(data)

    def _show(self, lines: Sequence[bytes]) -> None:
        prefix = self.prefix.encode(errors="replace")
        if self.descriptor is not None:
            _write(self.descriptor, b"".join(prefix + line + b"\n" for line in lines))
        if self.copy is not None:
            needles = [needle.encode() for needle in self.needles]
            wanted = [line for line in lines if any(needle in line for needle in needles)]
            if wanted:
                with contextlib.suppress(OSError), self.copy.open("ab") as stream:
                    stream.write(b"".join(prefix + line + b"\n" for line in wanted))


def _visible(line: bytes) -> bytes:
    """What a terminal would show of a line: a progress bar's last state, not all of them."""
    return line.removesuffix(b"\r").rpartition(b"\r")[2]


class Follower:
    """Shows workers' files while they grow, from one thread, however many there are.

    The workers write to files, so that a slow console slows nobody.
    """

    def __init__(self, sources: Sequence[Source]) -> None:
        self._sources = sources
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="console", daemon=True)

    def start(self) -> None:
        """Begin to follow."""
        if self._sources:
            self._thread.start()

    def stop(self) -> None:
        """Show what is left and end; the writers must have ended."""
        self._ending.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        while not self._ending.is_set():
            news = [source.advance(final=False) for source in self._sources]
            if not any(news):
                self._ending.wait(_IDLE_SECONDS)
        for source in self._sources:
            while source.advance(final=True):
                pass


def last_lines(path: Path, count: int, limit: int = 1 << 15) -> list[str]:
    """The last lines of a file, for a person; empty if it cannot be read."""
    try:
        with path.open("rb") as stream:
            stream.seek(0, os.SEEK_END)
            stream.seek(max(0, stream.tell() - limit))
            data = stream.read()
    except OSError:
        return []
    lines = data.removesuffix(b"\n").split(b"\n") if data else []
    return [_visible(line).decode(errors="replace") for line in lines[-count:]]


class Pace:
    """Says when it is time to say something again: soon at first, then seldom."""

    def __init__(self, first: float, longest: float) -> None:
        self._pause = first
        self._longest = longest
        self._next = time.monotonic() + first

    def due(self) -> bool:
        """Whether to speak now."""
        if time.monotonic() < self._next:
            return False
        self._pause = min(self._pause * 2, self._longest)
        self._next = time.monotonic() + self._pause
        return True


def flush() -> None:
    """Write out Python's own buffers before lines are written past them."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
