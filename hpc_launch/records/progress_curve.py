"""How far training is, as its workers say (`runtime.mark_progress`): last words, and curves that stay small.

A *mark* is one JSON object, `{"time": ..., "attempt": ..., "step": ..., "total": ..., "values": {...}}`. A rank's last
one is `progress/rank_<r>.json`. Its curve, `progress/rank_<r>.jsonl`, has the mark of call 1, 2, ..., 400 of an
attempt, and from then on of every one that is half a percent later than the one before (`next_point`). So nothing is
ever rewritten, the last half of the training has more than a hundred points at any time, all ranks keep the same steps,
and a million calls leave some 2,000 lines, a thousand million some 3,400.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Sequence

from hpc_launch import codec
from hpc_launch.records.directory import JobDirectory
from hpc_launch.records.history_model import ProgressMark
from hpc_launch.records.regular_files import content, entries, open_regular

# So many calls are all kept, and of the later ones each that is this part of their number after the one before.
_FINENESS = 200

_RANK = re.compile(r"rank_(\d{1,9})\.json")

# Bytes: more is not read of a curve's end. That is some 40,000 marks; only a job of very many attempts has more.
_LARGEST = 1 << 22


def next_point(call: int) -> int:
    """The next call of an attempt whose mark is kept in the curve, after a call that was. Pure."""
    return call + max(1, call // _FINENESS)


def progress_share(mark: ProgressMark) -> float | None:
    """How much is done, from 0.0 to 1.0; None where that cannot be known. Pure."""
    if mark.step is None or mark.total is None or mark.total <= 0:
        return None
    return min(max(mark.step / mark.total, 0.0), 1.0)


def joined_attempts(marks: Sequence[ProgressMark]) -> tuple[ProgressMark, ...]:
    """Leave out what was done again: a later attempt counts from its first step on. Pure."""
    kept: list[ProgressMark] = []
    for mark in marks:
        if mark.step is not None and kept and mark.attempt != kept[-1].attempt:
            kept = [old for old in kept if old.step is None or old.step < mark.step]
        kept.append(mark)
    return tuple(kept)


def curve_points(marks: Iterable[ProgressMark], value: str) -> tuple[tuple[float, float], ...]:
    """The steps at which a value was said, with the value: what a curve of it goes through. Pure."""
    return tuple(
        (mark.step, float(found))
        for mark in marks
        if mark.step is not None and not isinstance(found := mark.values.get(value, ""), str)
    )


def last_words(job: JobDirectory) -> tuple[ProgressMark, ...]:
    """Read the last word of every rank that has said one, by rank."""
    names = entries(job.progress(0).parent)
    ranks = sorted(int(match[1]) for name in (names or ()) if (match := _RANK.fullmatch(name)))
    return tuple(mark for rank in ranks if (mark := _last_word(job, rank)) is not None)


def read_curve(job: JobDirectory, rank: int) -> tuple[ProgressMark, ...]:
    """Read what a rank has said on the way, to its last word; empty where it has said nothing.

    Lines that are none (torn by a full disk or a killed worker) are left out.
    """
    data = b""
    with contextlib.suppress(OSError), open_regular(job.curve(rank)) as file:
        file.seek(max(0, file.seek(0, 2) - _LARGEST))
        data = file.read()
    marks = [codec.salvage(ProgressMark, facts, rank=rank) for facts in codec.parse_lines(data)[0]]
    last = _last_word(job, rank)
    if last is not None and (not marks or marks[-1] != last):
        marks.append(last)
    return joined_attempts(marks)


def _last_word(job: JobDirectory, rank: int) -> ProgressMark | None:
    data = content(job.progress(rank))
    facts = codec.parse(data) if isinstance(data, bytes) else None
    return None if facts is None else codec.salvage(ProgressMark, facts, rank=rank)
