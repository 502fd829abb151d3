"""How far training is, as its workers say (`runtime.mark_progress`): last words, and curves that stay small.

A *mark* is one JSON object, `{"time": ..., "attempt": ..., "step": ..., "total": ..., "values": {...}}`. A rank's last
one is `progress/rank_<r>.json`. Its curve, `progress/rank_<r>.jsonl`, has the mark of call 1, 2, ..., 400 of an
attempt, and from then on of every one that is half a percent later than the one before (`next_point`). So nothing is
ever rewritten, the last half of the training has more than a hundred points at any time, all ranks keep the same steps,
and a million calls leave some 2,000 lines, a thousand million some 3,400.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hpc_launch.records.directory import JobDirectory

# So many calls are all kept, and of the later ones each that is this part of their number after the one before.
_FINENESS = 200

_RANK = re.compile(r"rank_(\d+)\.json")

# Bytes: more is not read of a curve's end. That is some 40,000 marks; only a job of very many attempts has more.
_LARGEST = 1 << 22


@dataclass(frozen=True)
class Mark:
    """What a rank said once.

    Attributes:
        time: when, in seconds since the epoch by the clock of its node; 0.0 where that is not known.
        attempt: in which attempt.
        step: how far it was then, in its own units; None if it did not say so.
        total: where it would be at the end; None if it did not say so.
        values: what else it said: losses, accuracies, phases.
    """

    time: float
    attempt: int
    step: float | None = None
    total: float | None = None
    values: Mapping[str, float | str] = field(default_factory=dict)

    @property
    def share(self) -> float | None:
        """How much is done, from 0.0 to 1.0; None where that cannot be known."""
        if self.step is None or not self.total or self.total < 0:
            return None
        return min(max(self.step / self.total, 0.0), 1.0)


def next_point(call: int) -> int:
    """The next call of an attempt whose mark is kept in the curve, after a call that was. Pure."""
    return call + max(1, call // _FINENESS)


def read_mark(text: str) -> Mark | None:
    """Read a mark; None for what is none. Pure."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict):
        return None
    values = found.get("values")
    return Mark(
        time=_number(found.get("time")) or 0.0,
        attempt=int(_number(found.get("attempt")) or 0),
        step=_number(found.get("step")),
        total=_number(found.get("total")),
        values={name: value for name, value in _items(values) if isinstance(value, str) or _number(value) is not None},
    )


def read_marks(lines: str) -> tuple[Mark, ...]:
    """Read a curve. Lines that are none (torn by a full disk or a killed worker) are left out. Pure."""
    return tuple(mark for line in lines.splitlines() if (mark := read_mark(line)) is not None)


def joined(marks: Sequence[Mark]) -> tuple[Mark, ...]:
    """Leave out what was done again: a later attempt counts from its first step on. Pure."""
    kept: list[Mark] = []
    for mark in marks:
        if mark.step is not None and kept and mark.attempt != kept[-1].attempt:
            kept = [old for old in kept if old.step is None or old.step < mark.step]
        kept.append(mark)
    return tuple(kept)


def points(marks: Iterable[Mark], value: str) -> tuple[tuple[float, float], ...]:
    """The steps at which a value was said, with the value: what a curve of it goes through. Pure."""
    return tuple(
        (mark.step, float(found))
        for mark in marks
        if mark.step is not None and not isinstance(found := mark.values.get(value, ""), str)
    )


def last_words(job: JobDirectory) -> dict[int, Mark]:
    """Read the last word of every rank that has said one, by rank."""
    found: dict[int, Mark] = {}
    with contextlib.suppress(OSError):
        for entry in job.progress(0).parent.iterdir():
            match = _RANK.fullmatch(entry.name)
            with contextlib.suppress(OSError):
                if match and (mark := read_mark(entry.read_text(errors="replace"))) is not None:
                    found[int(match[1])] = mark
    return dict(sorted(found.items()))


def curve(job: JobDirectory, rank: int) -> tuple[Mark, ...]:
    """Read what a rank has said on the way, to its last word; empty where it has said nothing."""
    data, last = b"", None
    with contextlib.suppress(OSError), job.curve(rank).open("rb") as file:
        file.seek(max(0, file.seek(0, 2) - _LARGEST))
        data = file.read()
    with contextlib.suppress(OSError):
        last = read_mark(job.progress(rank).read_text(errors="replace"))
    marks = read_marks(data.decode(errors="replace"))
    if last is not None and (not marks or marks[-1] != last):
        marks = (*marks, last)
    return joined(marks)


def _items(values: Any) -> Iterator[tuple[str, Any]]:
    yield from values.items() if isinstance(values, dict) else ()


def _number(value: Any) -> float | None:
    """A finite number as it is; None for anything else."""
    if isinstance(value, bool):
        return int(value)
    if not isinstance(value, (int, float)):
        return None
    with contextlib.suppress(OverflowError):
        return value if math.isfinite(value) else None
    return None
