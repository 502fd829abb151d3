"""The output of workers as lines, while it grows: whole ones, as a terminal would show them. Pure."""

from __future__ import annotations

# A line longer than this is passed on in pieces rather than held back.
_LONGEST_LINE = 1 << 16


class Lines:
    """Cuts what a file gains into lines.

    A line counts when it has ended; of one that a progress bar has written over and over, the last state.
    """

    def __init__(self) -> None:
        self._rest = b""
        self._torn = False

    @property
    def pending(self) -> int:
        """How many bytes of a line are there that has not ended yet."""
        return len(self._rest)

    def feed(self, data: bytes, *, final: bool = False) -> list[bytes]:
        """Take what is new, and give the lines that have ended.

        Args:
            data: what the file has gained.
            final: nothing follows, so that a last line without an end counts as well.
        """
        text = self._rest + data if self._rest else data
        end = text.rfind(b"\n") + 1
        if final or len(text) - end > _LONGEST_LINE:
            end = len(text)
        self._rest = text[end:]
        if not end:
            return []
        lines = text[:end].removesuffix(b"\n").split(b"\n")
        if self._torn and not lines[0]:
            del lines[0]  # the end of a line that was passed on in pieces is no line of its own
        self._torn = not text[:end].endswith(b"\n")
        return [visible(line) for line in lines] if b"\r" in text else lines


def visible(line: bytes) -> bytes:
    """What a terminal would show of a line: a progress bar's last state, not all of them."""
    return line.removesuffix(b"\r").rpartition(b"\r")[2]
