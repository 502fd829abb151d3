"""Where the processes of a job were: as a value, in words and for JSON; what the fewest ranks do comes first. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpc_launch import codec, hostlist
from hpc_launch.records.formatting import fold_ranks
from hpc_launch.records.stack_traces import FoldedStacks, ProcessStacks, StackFrame, StackGroup, fold_stacks
from hpc_launch.text import count, time_of_day, visible

# Of deeper stacks the innermost calls and the outermost are shown.
_INNER = 12
_OUTER = 4

# Of further threads and children, so many kinds.
_KINDS = 20


@dataclass(frozen=True)
class JobStacks:
    """Where the processes of a job were.

    Attributes:
        job: the name of the job directory.
        attempt: the attempt that ran.
        time: when, in seconds since the epoch.
        seen: what was seen of each process.
        path: the directory in the job directory where it is written; None where it is not.
        notes: what went wrong on the way, a line each.
    """

    job: str
    attempt: int
    time: float
    seen: tuple[ProcessStacks, ...]
    path: Path | None = None
    notes: tuple[str, ...] = ()

    @property
    def folded(self) -> FoldedStacks:
        """Alike with alike."""
        return fold_stacks(self.seen)

    @property
    def complete(self) -> bool:
        """Whether the stacks of all ranks were seen."""
        return not self.folded.unseen

    def __str__(self) -> str:
        return text(self)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        folded = self.folded
        return {
            "job": self.job,
            "attempt": self.attempt,
            "time": self.time,
            "summary": folded.summary,
            "groups": codec.plain(folded.groups),
            "others": codec.plain(folded.others),
            "unseen": codec.plain(folded.unseen),
            "processes": codec.plain(self.seen),
            "path": str(self.path) if self.path else None,
            "notes": list(self.notes),
        }


def text(stacks: JobStacks, *, whole: bool = False) -> str:
    """All of it.

    Args:
        stacks: what was seen.
        whole: every call of every stack, and those of further threads and children too.
    """
    return visible("\n".join(_lines(stacks, whole=whole)))


def _lines(stacks: JobStacks, *, whole: bool) -> Iterator[str]:
    folded = stacks.folded
    total = len({one.rank for one in stacks.seen})
    when = f"{count(total, 'rank')} at {time_of_day(stacks.time)}"
    yield f"{stacks.job}, attempt {stacks.attempt}, {when}; innermost call first"
    for group in folded.groups:
        of = f" ({len(group.ranks)} of {total})" if len(folded.groups) > 1 or folded.unseen else ""
        yield ""
        yield f"{fold_ranks(group.ranks)} on {hostlist.display(group.hosts)}{of}"
        yield from _frames(group.frames, whole=whole) if group.frames else iter(["    outside of Python"])
    for those in folded.unseen:
        yield ""
        yield f"{fold_ranks(those.ranks)} on {hostlist.display(those.hosts)} ({len(those.ranks)} of {total}): no stack"
        for words in filter(None, (those.state, those.why)):
            yield f"    {words}"
    if folded.others:
        yield ""
        yield "further threads and child processes"
        yield from _others(folded.others, whole=whole)
    if stacks.path is not None:
        yield ""
        yield f"in full: {stacks.path}"
    for note in stacks.notes:
        yield f"note: {note}"


def _others(groups: Sequence[StackGroup], *, whole: bool) -> Iterator[str]:
    for group in groups if whole else groups[:_KINDS]:
        yield f"    {group.count} x {group.what} of {fold_ranks(group.ranks)}: {group.place}"
        if whole:
            yield from (f"    {line}" for line in _frames(group.frames, whole=True))
    if len(groups) > _KINDS and not whole:
        yield f"    and {len(groups) - _KINDS} more kinds (--whole)"


def _frames(frames: Sequence[StackFrame], *, whole: bool) -> Iterator[str]:
    left_out = 0 if whole else max(0, len(frames) - _INNER - _OUTER)
    shown = frames if left_out <= 1 else (*frames[:_INNER], *frames[-_OUTER:])
    for number, frame in enumerate(shown):
        if left_out > 1 and number == _INNER:
            yield f"    ... {left_out} more calls (--whole)"
        where = f"{frame.short}:{frame.line}" if frame.line else frame.short
        yield f"    {frame.function} ({where})"
