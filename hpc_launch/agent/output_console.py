"""The workers' output on the console, always in whole lines."""

from __future__ import annotations

import contextlib
import math
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hpc_launch.agent.traceback_folding import Folding, TracebackFilter
from hpc_launch.backoff import Backoff
from hpc_launch.console import CONSOLE, say
from hpc_launch.node.file_changes import FileChanges
from hpc_launch.records import directory
from hpc_launch.records.output_lines import LineSplitter

# What is read, and shown, at once: as much as a pipe takes.
_CHUNK = 1 << 16

# Seconds until a progress bar that has not ended is shown for the first time, and at most between two times.
_FIRST_BAR_SECONDS, _SELDOM_BAR_SECONDS = 5.0, 60.0

# Seconds after which a line that has not ended is a question (`FollowedFile.answered`).
_QUESTION_SECONDS = 0.2

# Seconds between two looks at files that grow: what comes in the meantime is shown together.
_PAUSE_SECONDS = 0.05

# Seconds between two looks at files of which the kernel reports nothing, in case it misses something.
_QUIET_SECONDS = 5.0


@dataclass
class FollowedFile:
    """A worker's file that is followed.

    Attributes:
        path: the file.
        prefix: what goes before each line.
        descriptor: 1 or 2, where its lines are shown; None where they are not.
        copy: a second file that gets the lines which contain one of `needles`.
        tracebacks: folds those that are alike; None shows them all.
        answered: tells whether an answer can still come on standard input. A question is a line without an end; the
            console shows it when no output follows. None if no answer can come.
    """

    path: Path
    prefix: str
    descriptor: int | None
    copy: Path | None = None
    needles: Sequence[str] = ()
    tracebacks: TracebackFilter | None = None
    answered: Callable[[], bool] | None = None
    _descriptor: int | None = field(default=None, repr=False)
    _position: int = field(default=0, repr=False)
    _lines: LineSplitter = field(default_factory=LineSplitter, repr=False)
    _bar_due: Backoff | None = field(default=None, repr=False)
    _bar_shown: bytes = field(default=b"", repr=False)
    _grew: float = field(default=0.0, repr=False)
    _asked: bytes = field(default=b"", repr=False)

    def advance(self, *, final: bool) -> int:
        """Show what is new, whole lines only (at the end also a last line without its end).

        Returns:
            How many bytes were new; there may be more, if it is as much as is read at once.
        """
        data = self._read()
        lines = self._lines.feed(data, final=final and len(data) < _CHUNK)
        if lines:
            self._copy(lines)
            lines = self._after_question(lines)
        if data:
            self._grew = time.monotonic()
        if not lines:
            lines = self._progress_bar() if data else self._question()
        if self.tracebacks is not None:
            lines = self.tracebacks.feed(lines, quiet=not data)
        if lines and self.descriptor is not None:
            prefix = self.prefix.encode(errors="replace")
            CONSOLE.write(self.descriptor, prefix + (b"\n" + prefix).join(lines) + b"\n")
        return len(data)

    @property
    def holds(self) -> bool:
        """Whether something is shown soon, although nothing new comes: a traceback, or a question."""
        asks = self.answered is not None and self._lines.unfinished not in (b"", self._asked)
        return asks or (self.tracebacks is not None and self.tracebacks.holds)

    def close(self) -> None:
        """Look no more."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _read(self) -> bytes:
        """What is new. The file stays open: opening it again and again is work for a file server."""
        try:
            if self._descriptor is None:
                # A pipe in its place must not block.
                flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
                self._descriptor = os.open(self.path, flags)
            data = os.pread(self._descriptor, _CHUNK, self._position)
            if not data and os.fstat(self._descriptor).st_size < self._position:
                self._position = 0  # somebody has emptied it
        except OSError:
            return b""
        self._position += len(data)
        return data

    def _progress_bar(self) -> list[bytes]:
        """The state of a progress bar, soon at first and then less often: its line ends with the training."""
        bar, now = self._lines.bar, time.monotonic()
        if not bar:
            return []
        if self._bar_due is None:
            self._bar_due = Backoff(_FIRST_BAR_SECONDS, _SELDOM_BAR_SECONDS, now)
        if bar == self._bar_shown or not self._bar_due.due(now):
            return []
        self._bar_shown = bar
        return [bar]

    def _question(self) -> list[bytes]:
        """A line that has not ended, as nothing more has come for a moment."""
        question = self._lines.unfinished
        if self.answered is None or question in (b"", self._asked):
            return []
        if time.monotonic() < self._grew + _QUESTION_SECONDS:
            return []
        if not self.answered():
            self._asked = b""
            self.answered = None
            return []
        news, self._asked = question.removeprefix(self._asked), question
        return [news]

    def _after_question(self, lines: list[bytes]) -> list[bytes]:
        """What has not been shown of the line that was a question, and the lines that follow."""
        first, self._asked = lines[0].removeprefix(self._asked), b""
        return [first, *lines[1:]] if first or not lines[0] else lines[1:]

    def _copy(self, lines: Sequence[bytes]) -> None:
        prefix = self.prefix.encode(errors="replace")
        if self.copy is not None:
            needles = [needle.encode() for needle in self.needles]
            wanted = [line for line in lines if any(needle in line for needle in needles)]
            if wanted:
                with contextlib.suppress(OSError), directory.open_output(self.copy, self.copy.parent) as stream:
                    stream.write(b"".join(prefix + line + b"\n" for line in wanted))


class OutputFollower:
    """Shows workers' files while they grow, from one thread, however many there are.

    The workers write to files, so that a slow console slows nobody.

    Args:
        sources: the files.
        before: shows those of the attempt before, which come first.
        folding: of the tracebacks in them.
    """

    def __init__(
        self,
        sources: Sequence[FollowedFile],
        before: OutputFollower | None = None,
        folding: Folding | None = None,
    ) -> None:
        self._sources = sources
        self._folding = folding
        self._before = before
        self._ending = threading.Event()
        self._changes = FileChanges()
        self._thread = threading.Thread(target=self._run, name="console", daemon=True)
        self._shown = 0

    def start(self) -> None:
        """Begin to follow."""
        if self._sources:
            self._thread.start()

    def finish(self, seconds: float) -> bool:
        """Show what is left, now that the writers have ended; returns whether all was shown within these seconds."""
        self._ending.set()
        self._changes.wake()
        if self._thread.ident is None:
            return self._before is None or self._before.finish(seconds)
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def stop(self, patience: float = math.inf, hurry: Callable[[], bool] = lambda: False) -> bool:
        """Show what is left and end; the writers must have ended.

        Args:
            patience: seconds to wait for a console that takes nothing.
            hurry: says that there is no more time for it.

        Returns:
            Whether all was shown.
        """
        shown, since = -1, time.monotonic()
        while not self.finish(_PAUSE_SECONDS):
            if self.shown != shown:
                shown, since = self.shown, time.monotonic()
            if hurry() or time.monotonic() > since + patience:
                return False
        return True

    @property
    def shown(self) -> int:
        """How many bytes have been shown, those of the attempts before too."""
        return self._shown + (self._before.shown if self._before is not None else 0)

    def _run(self) -> None:
        if self._before is not None:
            self._before.stop()
        self._changes.watch(source.path for source in self._sources)
        changed = True
        while not self._ending.is_set():
            more, grew = self._turn(final=False)
            if grew and not changed and not self._changes.wait(0):
                self._changes.reported = False  # the kernel has missed it: look often from now on
            if not more and (not grew or not self._ending.wait(_PAUSE_SECONDS)):
                held = any(source.holds for source in self._sources)
                changed = self._changes.wait(_PAUSE_SECONDS if held else _QUIET_SECONDS)
        while any(self._turn(final=True)):
            pass
        for line in self._folding.summary() if self._folding is not None else ():
            say(line)
        self._changes.close()
        for source in self._sources:
            source.close()

    def _turn(self, *, final: bool) -> tuple[bool, bool]:
        """Look at each file once; returns whether there is more already, and whether there was anything new."""
        news = [source.advance(final=final) for source in self._sources]
        self._shown += sum(news)
        return any(count == _CHUNK for count in news), any(news)
