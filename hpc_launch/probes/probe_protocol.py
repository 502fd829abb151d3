"""How the probes are spoken to, and speak: JSON objects in lines.

An order is a line of a probe's standard input. What the probe says goes to a stream to which others write as well, and
srun passes lines on in pieces of at most a kilobyte, and pieces of several tasks may come mixed. So a long record is
broken up here, into lines that stay whole. Whatever else a node prints (a module's greeting, a library's warning) is
recognised as not ours.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TextIO

from hpc_launch import codec

# srun reads at most 1024 bytes of a line at a time (MAX_MSG_LEN, slurm/src/api/step_io.c), its label among them.
_PIECE = 800
_MARK = "#hpc-launch-probe:"
_MORE, _LAST = "+", "."

# Characters of an order or a record; the stacks of a node with many processes are some megabytes.
_LONGEST = 1 << 28


def encode_order(order: Mapping[str, Any]) -> str:
    """The line of an order."""
    return codec.line(order)


def orders(stream: TextIO) -> Iterator[dict[str, Any]]:
    """The orders that a stream has, until it ends or has something else."""
    while (line := stream.readline(_LONGEST)) and (order := codec.parse(line)) is not None:
        yield order


def encode_record(record: Mapping[str, Any]) -> str:
    """The lines of a record."""
    text = codec.write(record)
    pieces = [text[begin : begin + _PIECE] for begin in range(0, len(text), _PIECE)]
    ends = [_MORE] * (len(pieces) - 1) + [_LAST]
    return "".join(f"{_MARK}{end}{piece}\n" for end, piece in zip(ends, pieces, strict=True))


class RecordDecoder:
    """Puts the records of one probe together again."""

    def __init__(self) -> None:
        self._begun: list[str] = []
        self._length = 0

    def feed(self, line: str) -> dict[str, Any] | None:
        """Take a line; returns the record that it completes, None where it is not ours, not the last, or too much."""
        _, mark, rest = line.rstrip("\n").partition(_MARK)
        if not mark:
            return None
        self._length += len(rest)
        if self._length <= _LONGEST:
            self._begun.append(rest[1:])
        if rest[:1] != _LAST:
            return None
        text, whole = "".join(self._begun), self._length <= _LONGEST
        self._begun, self._length = [], 0
        return codec.parse(text) if whole else None
