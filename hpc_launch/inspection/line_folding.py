"""Lines that several ranks have written alike, as one. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from hpc_launch.inspection.log_reader import LogLine
from hpc_launch.settings import Streams


@dataclass
class FoldedLine:
    """A line, and who has written it.

    Attributes:
        text: the line.
        attempt: of which attempt.
        stream: stdout or stderr.
        time: when the first of them was there.
        ranks: whose it is, with their hosts.
    """

    text: str
    attempt: int
    stream: Streams
    time: float
    ranks: dict[int, str] = field(default_factory=dict)


_Key = tuple[int, Streams, str]


class LineFolding:
    """Puts equal lines of different ranks together, if they come within some time.

    The n-th such line of a rank goes with the n-th of the others. What has come first stays first.

    Args:
        window: seconds.
    """

    def __init__(self, window: float) -> None:
        self._window = window
        self._open: dict[_Key, list[FoldedLine]] = {}
        self._waiting: list[FoldedLine] = []

    def add(self, lines: Iterable[LogLine]) -> None:
        """Take lines, in order."""
        for line in lines:
            text = without_own_name(line.text, line.rank)
            same = self._open.setdefault((line.attempt, line.stream, text), [])
            found = next((folded for folded in same if line.rank not in folded.ranks), None)
            if found is None:
                found = FoldedLine(text, line.attempt, line.stream, line.time)
                same.append(found)
                self._waiting.append(found)
            found.ranks[line.rank] = line.host

    def due(self, now: float) -> list[FoldedLine]:
        """The lines that nobody adds to any more."""
        count = next((at for at, folded in enumerate(self._waiting) if folded.time > now - self._window), None)
        found = self._waiting[:count]
        self._waiting = self._waiting[len(found) :]
        for folded in found:
            key = folded.attempt, folded.stream, folded.text
            self._open[key].remove(folded)
            if not self._open[key]:
                del self._open[key]
        return found

    def rest(self) -> list[FoldedLine]:
        """All that is left."""
        return self.due(float("inf"))


def without_own_name(text: str, rank: int) -> str:
    """A line without the rank that torch puts before the lines of a traceback: `[rank3]: `."""
    return re.sub(rf"^\[rank{rank}\]: ?", "", text)
