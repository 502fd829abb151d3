"""Find an exception in what a Python program has written last: for workers that leave nothing else. Pure.

Python's own report is what is looked for, as `traceback` and Python/pythonrun.c write it; a program that reports
exceptions in another way is not understood, and its last lines stand for themselves.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

_BEGIN = re.compile(r"\s*\+? ?(Exception Group )?Traceback \(most recent call last\):\s*$")
_FRAME = re.compile(r'[ |]*File "(?P<file>.+)", line (?P<line>\d+)')
_RAISED = re.compile(r"(?:[ +|]*)(?P<type>[A-Za-z_][\w.]*)(?:: (?P<message>.*))?$")
# torch's own hook says whose line it is (torch/distributed/distributed_c10d.py, _distributed_excepthook).
_PREFIX = re.compile(r"^\[rank\d+\]: ?")
_LIBRARIES = ("/site-packages/", "/dist-packages/", "/lib/python", "<frozen ")

# What C++ says when a thread of it is ended from outside: by Python, which does so while it ends itself.
_TERMINATED = "terminate called without an active exception"

# A type of exception without a traceback must look like one.
_TELLING = ("Error", "Exception", "Warning", "Interrupt", "Exit")


@dataclass(frozen=True)
class Traceback:
    """An exception as Python has reported it.

    Attributes:
        type: its name, with the module's unless that is `builtins` or `__main__`.
        message: the first line of what it says, or what a process below it had said (see `essence`).
        where: `FILE:LINE`, of the innermost frame outside of installed packages; empty if unknown.
    """

    type: str
    message: str
    where: str


def find_traceback(lines: Sequence[str]) -> Traceback | None:
    """The last report among some lines; None if there is none.

    Args:
        lines: the end of the output, without line ends.
    """
    lines = [without_rank(line) for line in lines]
    begins = [number for number, line in enumerate(lines) if _BEGIN.match(line)]
    for begin in reversed(begins):
        report = _read(lines[begin + 1 :])
        if report is not None:
            return report
    frames = [number for number, line in enumerate(lines) if _FRAME.match(line)]
    if frames and not begins:  # a SyntaxError of the script itself is reported without the word
        return _read(lines[frames[-1] :])
    return None


def without_rank(line: str) -> str:
    """A line without the rank that torch's hook writes before it."""
    return _PREFIX.sub("", line)


def frames_of(lines: Iterable[str]) -> list[str]:
    """The places that a report names, as `FILE:LINE`, the outermost first."""
    found = (_FRAME.match(without_rank(line)) for line in lines)
    return [f"{frame['file']}:{frame['line']}" for frame in found if frame is not None]


def end_of_report(lines: Sequence[str]) -> int:
    """Where the last report among some lines ends: the number of the line after that of the exception.

    Further lines of a message cannot be told from what follows it.
    """
    last = max((number for number, line in enumerate(lines) if frames_of([line])), default=len(lines))
    texts = enumerate(without_rank(line) for line in lines)
    raised = (number for number, text in texts if number > last and text.strip() and not text.startswith((" ", "\t")))
    return next(raised, len(lines) - 1) + 1


def fatal_place(lines: Sequence[str]) -> str:
    """Where a fatal signal met a program, by the last report of faulthandler; empty where there is none.

    Args:
        lines: the end of the output, without line ends.

    Returns:
        `FILE:LINE` of the innermost frame outside of installed packages, of the thread that was hit.
    """
    begins = [number for number, line in enumerate(lines) if line.startswith("Fatal Python error: ")]
    report = [*lines[begins[-1] :]] if begins else []
    hit = next((number for number, line in enumerate(report) if line.startswith("Current thread")), 0)
    frames = frames_of(itertools.takewhile(str.strip, report[hit:] if hit else report[2:]))
    own = [frame for frame in frames if not any(place in frame for place in _LIBRARIES)]
    return next(iter([*own, *frames]), "")


def script_was_over(lines: Sequence[str]) -> bool:
    """Whether a fatal signal met a program in which Python had come to its end: no thread had a frame any more.

    Args:
        lines: the end of the output, without line ends.
    """
    begins = [number for number, line in enumerate(lines) if line.startswith("Fatal Python error: ")]
    report = lines[begins[-1] :] if begins else []
    # A process that dies so can meet the next fatal signal in the middle of its report.
    signs = any("<no Python frame>" in line for line in report) or (bool(report) and _TERMINATED in lines)
    return signs and not frames_of(report)


def essence(message: str) -> str:
    """What a message says, in one line.

    torch's DataLoader raises again what a process of its own has raised, with that one's report for a message
    (torch/_utils.py, ExceptionWrapper): its last line says what it was.
    """
    lines = [line for line in message.splitlines() if line.strip()]
    if not lines:
        return ""
    inner = find_traceback(lines[1:]) if len(lines) > 1 and "Traceback (most recent call last)" in message else None
    if inner is None and "Original Traceback" in message:
        inner = _read(lines[2:])
    if inner is None or not lines[0].startswith("Caught "):
        return lines[0].strip()
    return f"{inner.message or inner.type} ({lines[0].strip().rstrip('.').replace('Caught', 'raised as', 1)})"


def _read(lines: Sequence[str]) -> Traceback | None:
    """Read frames and what follows them."""
    frames: list[tuple[str, str]] = []
    for number, line in enumerate(lines):
        frame = _FRAME.match(line)
        if frame:
            frames.append((frame["file"], frame["line"]))
        elif frames and not line.startswith((" ", "\t")):
            return _raised(frames, lines[number:])
        elif frames and line.startswith("  | ") and not line.startswith("  |  "):
            return _raised(frames, [line[4:], *lines[number + 1 :]])
    return None


def _raised(frames: Sequence[tuple[str, str]], lines: Sequence[str]) -> Traceback | None:
    match = _RAISED.match(lines[0])
    if match is None or not (match["message"] is not None or match["type"].endswith(_TELLING)):
        return None
    own = [frame for frame in frames if not any(place in frame[0] for place in _LIBRARIES)]
    name, number = (own or frames)[-1]
    message = "\n".join([match["message"] or "", *lines[1:]])
    name_of_type = match["type"].removeprefix("__main__.")  # which Python 3.10 has in its reports
    return Traceback(name_of_type, essence(message) if match["message"] else "", f"{name}:{number}")
