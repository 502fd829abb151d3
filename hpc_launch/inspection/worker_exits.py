"""How the workers of an attempt ended, those that ended alike in one line, and where their output is. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path

from hpc_launch import ranges
from hpc_launch.inspection.timeline import AttemptSpan, worker_end, worker_end_text
from hpc_launch.inspection.timeline_lanes import LaneEnd
from hpc_launch.records import formatting, node_states
from hpc_launch.records.history_model import Attempt, History, Usage, Worker
from hpc_launch.text import duration, size

# A table has no more lines; those that would come then are one line together.
_MOST_LINES = 40

# Of an attempt's line the files of so many ranks are linked beside it.
_LINKED = 3

# Files of more workers than this are not linked one by one, but for those of the last attempt.
MOST_FILES = 2048

_ORDER = tuple(LaneEnd)


@dataclass(frozen=True)
class WorkerFile:
    """A file of a worker: what it is called here, where it is, and how many bytes it has."""

    name: str
    path: Path
    size: int


@dataclass(frozen=True)
class WrittenFiles:
    """The files of one rank that are not empty."""

    rank: int
    files: tuple[WorkerFile, ...]


@dataclass(frozen=True)
class NodeFiles:
    """Where the workers of one node have written in one attempt; `ranks` is empty where they are not listed."""

    host: str
    path: Path
    ranks: tuple[WrittenFiles, ...]


@dataclass(frozen=True)
class ExitLine:
    """Workers that ended alike.

    Attributes:
        ranks: their ranks, folded.
        count: how many they are.
        hosts: their nodes, folded.
        kind: how they ended, in the words of the picture.
        style: its name for a style sheet.
        how: exit status, signal or exception.
        ran: how long.
        cpu: CPU time.
        memory: the most that one had.
        device: the device, if it is one worker.
        files: those of the first ranks.
    """

    ranks: str
    count: int
    hosts: str
    kind: str
    style: str
    how: str
    ran: str
    cpu: str
    memory: str
    device: str
    files: tuple[WrittenFiles, ...]


@dataclass(frozen=True)
class WorkerExits:
    """One attempt's workers."""

    attempt: int
    lines: tuple[ExitLine, ...]
    nodes: tuple[NodeFiles, ...]


def paths(history: History) -> Iterator[Path]:
    """The files that a report wants to link, so that somebody looks which of them are there."""
    for attempt in _listed(history):
        for worker in attempt.workers:
            yield from (worker.files.out, worker.files.err, worker.files.error)
    for attempt in history.attempts:
        for worker in attempt.workers:
            yield worker.files.out.parent


def make_exits(
    history: History,
    spans: Sequence[AttemptSpan],
    guilty: Mapping[int, AbstractSet[int]],
    sizes: Mapping[Path, int],
) -> tuple[WorkerExits, ...]:
    """Tell of all attempts, the last one first.

    Args:
        history: what happened.
        spans: when the attempts were.
        guilty: by attempt, the ranks that were the root cause.
        sizes: bytes of the files, and zero for the directories, that are there.
    """
    when = {span.number: span for span in spans}
    listed = {attempt.number for attempt in _listed(history)}
    return tuple(
        WorkerExits(
            attempt.number,
            tuple(
                _lines(
                    attempt,
                    when[attempt.number],
                    guilty.get(attempt.number, frozenset()),
                    node_states.lost_in(history, attempt.number),
                    sizes,
                )
            ),
            tuple(_nodes(attempt, sizes, each=attempt.number in listed)),
        )
        for attempt in reversed(history.attempts)
        if attempt.workers and attempt.number in when
    )


def files_of(worker: Worker, sizes: Mapping[Path, int]) -> WrittenFiles:
    """The files of a worker that have something in them."""
    named = (("out", worker.files.out), ("err", worker.files.err), ("error.json", worker.files.error))
    return WrittenFiles(
        worker.rank, tuple(WorkerFile(name, path, sizes[path]) for name, path in named if sizes.get(path))
    )


def _listed(history: History) -> list[Attempt]:
    """The attempts whose files are linked one by one: from the last back, until it is too many."""
    found: list[Attempt] = []
    total = 0
    for attempt in reversed(history.attempts):
        total += len(attempt.workers)
        if found and total > MOST_FILES:
            break
        found.append(attempt)
    return found


def _lines(
    attempt: Attempt, span: AttemptSpan, guilty: AbstractSet[int], lost: AbstractSet[str], sizes: Mapping[Path, int]
) -> Iterator[ExitLine]:
    groups: dict[tuple[LaneEnd, str], list[Worker]] = {}
    for worker in attempt.workers:
        kind = worker_end(worker, attempt, span, guilty, lost)
        groups.setdefault((kind, worker_end_text(worker, kind)), []).append(worker)
    ordered = sorted(groups.items(), key=lambda item: (_ORDER.index(item[0][0]), item[1][0].rank))
    for (kind, said), workers in ordered[:_MOST_LINES]:
        yield _line(kind, said, workers, span, sizes)
    rest = ordered[_MOST_LINES:]
    if rest:
        workers = [worker for _, some in rest for worker in some]
        kind = rest[0][0][0]
        yield _line(kind, f"{len(rest)} more ways, which are not listed here", workers, span, sizes)


def _line(
    kind: LaneEnd, said: str, workers: Sequence[Worker], span: AttemptSpan, sizes: Mapping[Path, int]
) -> ExitLine:
    usages = [worker.usage for worker in workers if worker.usage is not None]
    return ExitLine(
        ranks=ranges.fold(worker.rank for worker in workers),
        count=len(workers),
        hosts=formatting.fold_hosts(worker.host for worker in workers),
        kind=kind.value,
        style=kind.name.lower(),
        how=said,
        ran=_range((_ran(worker, span) for worker in workers), duration),
        cpu=_range((_cpu(usage) for usage in usages), duration),
        memory=_range((float(usage.max_rss) for usage in usages if usage.max_rss), size),
        device=workers[0].device if len(workers) == 1 else "",
        files=tuple(found for worker in workers[:_LINKED] if (found := files_of(worker, sizes)).files),
    )


def _ran(worker: Worker, span: AttemptSpan) -> float:
    begin = worker.started if worker.started is not None else span.begin
    return max(0.0, (worker.ended if worker.ended is not None else span.end) - begin)


def _cpu(usage: Usage) -> float:
    return usage.user + usage.system


def _range(values: Iterable[float], say: Callable[[float], str]) -> str:
    """The least and the most of some values, once if they are the same in words."""
    found = sorted(values)
    if not found:
        return ""
    least, most = say(found[0]), say(found[-1])
    return least if least == most else f"{least} to {most}"


def _nodes(attempt: Attempt, sizes: Mapping[Path, int], *, each: bool) -> Iterator[NodeFiles]:
    by_place: dict[tuple[str, Path], list[Worker]] = {}
    for worker in attempt.workers:
        by_place.setdefault((worker.host, worker.files.out.parent), []).append(worker)
    for (host, place), workers in by_place.items():
        if place in sizes:
            ranks = (files_of(worker, sizes) for worker in workers) if each else ()
            yield NodeFiles(host, place, tuple(files for files in ranks if files.files))
