"""The console of this process: whole lines, in order, whatever becomes of the terminal, pipe or file behind it.

A console can take nothing for a while (Ctrl-S), be gone (a closed terminal, `| head`) or full (a file on a full disk).
None of this is a reason for a run to fail, to restart or to end with another status. So no write raises, and no line of
the launcher's own waits for the console where something else has to go on.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import select
import sys
import threading
import time
from collections import deque

# So long a line of the launcher's own waits for a console that takes nothing.
_PATIENCE = 10.0

# So many lines wait for a console that takes nothing; the rest is counted.
_MOST_WAITING = 1000


class Console:
    """Writes to descriptors, one writer at a time, so that what is written at once stays together.

    There are two ways in. `say` is for the launcher's own lines. `write` is for the output of workers: its thread waits
    for as long as the console takes nothing. What is said before something is written is shown before it.

    Before `serve` a line is written by its caller, who waits for a while. Afterwards a thread writes it, and nobody
    waits. The thread is not started earlier because the worker factory is forked from a process with a single thread.
    """

    def __init__(self) -> None:
        # Held by the one who writes. The state below is guarded by `_changed`, which is never held during a write.
        self._writing = threading.Lock()
        self._changed = threading.Condition()
        self._waiting: deque[tuple[int, bytes]] = deque()
        self._dropped = 0
        self._moved = time.monotonic()
        self._stuck = False
        self._cut: set[int] = set()
        self._served = False

    def serve(self) -> None:
        """Write what is said in a thread from now on, and show the rest at the end of the process."""
        with self._changed:
            if self._served:
                return
            self._served = True
        threading.Thread(target=self._serve, name="console-own", daemon=True).start()
        atexit.register(self.settle)

    def say(self, descriptor: int, data: bytes) -> None:
        """Show a line, or leave it out where too many wait for a console that takes nothing."""
        with self._changed:
            if not self._waiting:
                self._moved = time.monotonic()
            if len(self._waiting) < _MOST_WAITING:
                self._note_dropped()
                self._waiting.append((descriptor, data))
            else:
                self._dropped += 1
            self._changed.notify_all()
        if not self._served:
            self._say_now()

    def write(self, descriptor: int, data: bytes) -> None:
        """Write all of it, after what was said before, however long that takes."""
        with self._writing:
            self._drain(None)
            self._put(descriptor, data, None)

    def settle(self, patience: float = _PATIENCE) -> bool:
        """Wait until all lines are shown, but no longer than this for a console that takes nothing.

        Returns:
            Whether they are.
        """
        with self._changed:
            while self._waiting:
                left = self._moved + patience - time.monotonic()
                if left <= 0:
                    return False
                self._changed.wait(left)
            return True

    def _serve(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: bool(self._waiting))
            with self._writing:
                self._drain(None)

    def _say_now(self) -> None:
        """Write what waits, and give up what the console does not take in time; at once where it is known for that."""
        patience = 0.0 if self._stuck else _PATIENCE
        self._stuck = not self._writing.acquire(timeout=patience)
        if not self._stuck:
            try:
                self._stuck = not self._drain(patience)
            finally:
                self._writing.release()
        if self._stuck:
            with self._changed:
                self._dropped += len(self._waiting)
                self._waiting.clear()

    def _drain(self, patience: float | None) -> bool:
        """Write what waits; False where the console takes nothing for so long. The caller has the turn to write."""
        while True:
            with self._changed:
                if not self._waiting:
                    self._note_dropped()
                if not self._waiting:
                    return True
                descriptor, data = self._waiting[0]
            if not self._put(descriptor, data, patience):
                return False
            with self._changed:
                self._waiting.popleft()
                self._changed.notify_all()

    def _note_dropped(self) -> None:
        """Have it said, once, how many lines were left out. The caller holds `_changed`."""
        if self._dropped:
            line = f"hpc-launch: {self._dropped} line(s) left out here, because the console took nothing\n"
            self._waiting.append((2, line.encode()))
            self._dropped = 0

    def _put(self, descriptor: int, data: bytes, patience: float | None) -> bool:
        """Write to one descriptor; False where it takes nothing for so long. One that fails loses what is written.

        A pipe that takes anything takes PIPE_BUF without a pause (pipe(7)), so that no write blocks after a wait.
        """
        poll = select.poll()
        poll.register(descriptor, select.POLLOUT)
        if descriptor in self._cut:
            data = b"\n" + data
        begun = False
        try:
            while data:
                if not poll.poll(None if patience is None else 1000 * patience):
                    if begun:
                        self._cut.add(descriptor)
                    return False
                with contextlib.suppress(BlockingIOError):
                    data = data[os.write(descriptor, data[: select.PIPE_BUF]) :]
                    begun = True
                    with self._changed:
                        self._moved = time.monotonic()
        except OSError:
            if begun:
                self._cut.add(descriptor)
        else:
            self._cut.discard(descriptor)
        return True


CONSOLE = Console()
"""The one of this process."""


def say(message: str) -> None:
    """Write a line of the launcher's own to stderr, whole among others."""
    CONSOLE.say(2, f"hpc-launch: {message}\n".encode(errors="replace"))


def tell(line: str) -> None:
    """Write a line to stderr as it is, or several."""
    CONSOLE.say(2, f"{line}\n".encode(errors="replace"))


def flush() -> None:
    """Write out Python's own buffers before lines are written past them."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):  # the last where Python began without it
            stream.flush()


def let_go() -> None:
    """See that what cannot be written does not change the exit status.

    Python flushes its buffers at the end, and where that fails ends with 120 (Py_FinalizeEx). So a stream that cannot
    be flushed is given a descriptor that takes everything.
    """
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except ValueError:
            pass  # it is closed, and Python does not flush it
        except OSError:
            with contextlib.suppress(OSError, ValueError):
                nowhere = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
                os.dup2(nowhere, stream.fileno())
                os.close(nowhere)
