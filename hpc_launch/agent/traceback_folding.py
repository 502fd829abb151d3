"""Tracebacks of many ranks on the console: of those that are alike one is shown, and the others are counted.

When one rank fails, all others lose their connection to it, and each says so in a dozen lines. Their files have it all.
Pure.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from hpc_launch import ranges
from hpc_launch.records import failure_messages, root_cause, tracebacks
from hpc_launch.text import count

# A traceback begins so, behind torch's own prefix; longer ones are shown as they come.
_BEGIN = re.compile(rb"(\[rank\d+\]: ?)?Traceback \(most recent call last\):\s*$")
_LONGEST = 400

# What torch logs is no part of the traceback before it.
_LOGGED = re.compile(rb"\[[WEIF]\d{4} ")


@dataclass
class Folding:
    """The tracebacks of one attempt on one node."""

    _seen: dict[str, list[int]] = field(default_factory=dict)
    _said: dict[str, str] = field(default_factory=dict)
    _after: dict[str, list[str]] = field(default_factory=dict)

    def fold(self, rank: int, lines: Sequence[bytes]) -> list[bytes]:
        """Note a rank's traceback, with what follows it.

        Returns:
            What is to be shown: all of the first of its kind, and of the rank that wrote it; of other ranks what is no
            part of it.
        """
        text = [line.decode(errors="replace") for line in lines]
        found = tracebacks.find_traceback(text)
        if found is None:
            return [*lines]
        end = tracebacks.end_of_report(text)
        key = _kind(text[:end])
        ranks = self._seen.setdefault(key, [])
        if rank not in ranks:
            ranks.append(rank)
        self._said.setdefault(key, f"{found.type}: {found.message}" if found.message else found.type)
        after = [failure_messages.failure_kind(line) for line in text[end:]]
        known = self._after.setdefault(key, after)
        if rank == ranks[0]:
            return [*lines]
        # A message can have several lines; what another rank has not said after it is no part of it.
        same = next((at for at, pair in enumerate(zip(after, known, strict=False)) if pair[0] != pair[1]), len(known))
        return [*lines[end + same :]]

    def summary(self) -> list[str]:
        """What was left out, a line for each kind."""
        return [
            f"{count(len(ranks) - 1, 'more rank')} ({ranges.fold(sorted(ranks[1:]))}) wrote the same traceback as "
            f"rank {ranks[0]}: {self._said[key][:200]}"
            for key, ranks in self._seen.items()
            if len(ranks) > 1
        ]


@dataclass
class TracebackFilter:
    """One rank's lines on their way to the console."""

    folding: Folding
    rank: int
    _block: list[bytes] = field(default_factory=list)

    @property
    def holds(self) -> bool:
        """Whether a traceback has begun that may not be whole."""
        return bool(self._block)

    def feed(self, lines: Sequence[bytes], *, quiet: bool) -> list[bytes]:
        """Take what is new; gives what is to be shown.

        Args:
            lines: the lines.
            quiet: nothing more is there now: a traceback that has begun is whole.
        """
        shown: list[bytes] = []
        for line in lines:
            if self._block and _LOGGED.match(line):
                shown += self._whole()
                shown.append(line)
            elif self._block or _BEGIN.match(line):
                self._block.append(line)
            else:
                shown.append(line)
            if len(self._block) > _LONGEST:
                shown += self._block
                self._block = []
        return [*shown, *self._whole()] if quiet else shown

    def _whole(self) -> list[bytes]:
        block, self._block = self._block, []
        return self.folding.fold(self.rank, block) if block else []


def _kind(report: Sequence[str]) -> str:
    """The same for reports that are alike: in the same places for the same reasons, those of all exceptions in it."""
    found: list[str] = []
    for line in map(tracebacks.without_rank, report):
        raised, _, message = line.partition(": ")
        reason = root_cause.symptom(message)
        like = f"{raised}: {reason}" if reason else failure_messages.failure_kind(line)
        found += tracebacks.frames_of([line]) or [like]
    return "\n".join(found)
