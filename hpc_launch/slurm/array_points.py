"""The lines of a job script that give each task of a job array its arguments: written, and read back. Pure."""

from __future__ import annotations

import re
import shlex

# `2) set -- "$@" --lr 1e-3 ;;` as hpc-launch writes it, and `2) point=(--lr 1e-3) ;;` of the template array.sbatch.
_POINT = re.compile(r'^\s*(?P<number>\d{1,7})\) (?:set -- "\$@" (?P<set>.*)|point=\((?P<list>.*)\)) ;;$', re.MULTILINE)

# A word in which something is not printed (`submission.quoting`).
_ESCAPED = re.compile(r"(?<!\S)\$'((?:[^'\\]|\\.)*)'(?!\S)")
_ESCAPE = re.compile(rb"\\(?:x([0-9a-f]{2})|(.))", re.DOTALL)
_LETTERS = {b"n": b"\n", b"t": b"\t", b"r": b"\r"}


def point_line(number: int, words: str) -> str:
    """The line of one task, in `case "$SLURM_ARRAY_TASK_ID"`.

    Args:
        number: of the task.
        words: its arguments, quoted for bash.
    """
    return f'    {number}) set -- "$@" {words} ;;'


def read_points(script: str) -> dict[int, tuple[str, ...]]:
    """The arguments of each task, as far as a job script has such lines; those that cannot be read are left out."""
    found = {}
    for match in _POINT.finditer(script):
        try:
            found[int(match["number"])] = _words(match["set"] if match["set"] is not None else match["list"])
        except ValueError:
            continue
    return found


def _words(line: str) -> tuple[str, ...]:
    """The words of a line of bash in which nothing is expanded.

    Raises:
        ValueError: a quote is not closed.
    """
    return tuple(shlex.split(_ESCAPED.sub(lambda match: shlex.quote(_unescaped(match[1])), line)))


def _unescaped(text: str) -> str:
    """What `$'...'` stands for."""

    def byte(match: re.Match[bytes]) -> bytes:
        return bytes([int(match[1], 16)]) if match[1] else _LETTERS.get(match[2], match[2])

    return _ESCAPE.sub(byte, text.encode("utf-8", "surrogateescape")).decode("utf-8", "surrogateescape")
