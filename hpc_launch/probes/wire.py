"""How the probes speak: JSON in lines, on streams that others write to as well. Pure.

srun passes lines on in pieces of at most a kilobyte, and pieces of several tasks may come mixed. So a long record is
broken up here, into lines that stay whole. Whatever else a node prints (a module's greeting, a library's warning) is
recognised as not ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hpc_launch import codec

# srun reads at most 1024 bytes of a line at a time (MAX_MSG_LEN, slurm/src/api/step_io.c), its label among them.
_PIECE = 800
_MARK = "#hpc-launch-probe:"
_MORE, _LAST = "+", "."


def encode(record: Mapping[str, Any]) -> str:
    """The lines of a record."""
    text = codec.line(record).rstrip("\n")
    pieces = [text[begin : begin + _PIECE] for begin in range(0, len(text), _PIECE)]
    ends = [_MORE] * (len(pieces) - 1) + [_LAST]
    return "".join(f"{_MARK}{end}{piece}\n" for end, piece in zip(ends, pieces, strict=True))


class Decoder:
    """Puts the records of one probe together again."""

    def __init__(self) -> None:
        self._begun = ""

    def feed(self, line: str) -> dict[str, Any] | None:
        """Take a line; returns the record that it completes, None where it is not ours or not the last."""
        _, mark, rest = line.rstrip("\n").partition(_MARK)
        if not mark:
            return None
        self._begun += rest[1:]
        if rest[:1] != _LAST:
            return None
        text, self._begun = self._begun, ""
        return codec.parse(text)
