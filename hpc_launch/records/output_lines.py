"""The output of workers as lines, while it grows: whole ones, as a terminal would show them.

Pure, but for `last_lines`, which reads a file.
"""

from __future__ import annotations

import os
from pathlib import Path

from hpc_launch.records.regular_files import open_regular


class LineSplitter:
    """Cuts what a file gains into lines.

    A line counts when it has ended; of one that a progress bar has written over and over, the last state.

    Args:
        longest: a line that is longer, in bytes, is passed on in pieces rather than held back.
    """

    def __init__(self, longest: int = 1 << 16) -> None:
        self._longest = longest
        self._rest = b""
        self._torn = False

    @property
    def bar(self) -> bytes:
        """What a terminal would show of a line that is written over and has not ended: a progress bar; else nothing."""
        return visible_line(self._rest) if b"\r" in self._rest.rstrip(b"\r") else b""

    @property
    def unfinished(self) -> bytes:
        """The line that has not ended, as a terminal would show it."""
        return visible_line(self._rest)

    def feed(self, data: bytes, *, final: bool = False) -> list[bytes]:
        """Take what is new, and give the lines that have ended.

        Args:
            data: what the file has gained.
            final: nothing follows, so that a last line without an end counts as well.
        """
        text = self._rest + data if self._rest else data
        end = text.rfind(b"\n") + 1
        if final or len(text) - end > self._longest:
            end = len(text)
        self._rest = text[end:]
        if not end:
            return []
        lines = text[:end].removesuffix(b"\n").split(b"\n")
        if self._torn and not lines[0]:
            del lines[0]  # the end of a line that was passed on in pieces is no line of its own
        self._torn = not text[:end].endswith(b"\n")
        return [visible_line(line) for line in lines] if b"\r" in text else lines


def visible_line(line: bytes) -> bytes:
    """What a terminal would show of a line: a progress bar's last state, not all of them."""
    return line.removesuffix(b"\r").rpartition(b"\r")[2]


def last_lines(path: Path, count: int, limit: int = 1 << 15) -> list[str]:
    """The last lines of a file, for a person; empty if it cannot be read."""
    try:
        with open_regular(path) as stream:
            stream.seek(0, os.SEEK_END)
            stream.seek(max(0, stream.tell() - limit))
            data = stream.read()
    except OSError:
        return []
    lines = data.removesuffix(b"\n").split(b"\n") if data else []
    return [visible_line(line).decode(errors="replace") for line in lines[-count:]]
