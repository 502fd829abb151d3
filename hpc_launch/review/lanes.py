"""The lanes of the timeline: what each rank did in each attempt, and which ranks did the same. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum

# Up to so many ranks each has a lane of its own.
EACH = 64

# A picture has no more lanes, if ranks can be folded any further.
_MANY = 48


class End(str, Enum):
    """How a worker ended, as far as a picture tells. The first of two is the worse one."""

    CAUSE = "failed first"
    FAILED = "failed as well"
    LOST = "lost with its node"
    UNKNOWN = "end not seen"
    STOPPED = "stopped by hpc-launch"
    RUNNING = "still running"
    FINISHED = "finished"


_WORST_FIRST = tuple(End)


@dataclass(frozen=True)
class Bar:
    """One worker, or several that did the same, in one attempt.

    Attributes:
        attempt: its number.
        begin: seconds since the epoch.
        end: seconds since the epoch; for one that still runs, when that was seen.
        kind: how it ended.
        words: how it ended, for a person.
    """

    attempt: int
    begin: float
    end: float
    kind: End
    words: str


@dataclass(frozen=True)
class Track:
    """One rank through all attempts.

    Attributes:
        rank: its number.
        hosts: where it ran, the last one last.
        bars: one per attempt in which it was started.
    """

    rank: int
    hosts: tuple[str, ...]
    bars: tuple[Bar, ...]


@dataclass(frozen=True)
class Lane:
    """Ranks that are drawn as one.

    Attributes:
        ranks: their numbers, in order.
        hosts: where they ran, each once.
        bars: what they did.
        alike: they ended alike and at the same time in every attempt; else the bars show the worst of each.
    """

    ranks: tuple[int, ...]
    hosts: tuple[str, ...]
    bars: tuple[Bar, ...]
    alike: bool = True


def each(tracks: Sequence[Track]) -> tuple[Lane, ...]:
    """A lane for every rank."""
    return tuple(Lane((track.rank,), track.hosts, track.bars) for track in tracks)


def fold(tracks: Sequence[Track], tolerance: float) -> tuple[Lane, ...]:
    """As few lanes as a picture can have, and as many as it needs.

    Few ranks have one each. Of many, those share one that ended alike at the same time; if that is not enough, those
    that ended alike; then all that ended alike but for the words; then all that were never the first to fail.

    Args:
        tracks: all ranks, in order.
        tolerance: seconds that make no difference.
    """
    if len(tracks) <= EACH:
        return each(tracks)
    ways: tuple[Callable[[Sequence[Track]], list[list[Track]]], ...] = (
        lambda some: _same(some, tolerance),
        lambda some: _by(some, lambda track: tuple((bar.attempt, bar.kind, bar.words) for bar in track.bars)),
        lambda some: _by(some, lambda track: tuple((bar.attempt, bar.kind) for bar in track.bars)),
    )
    for way in ways:
        groups = way(tracks)
        if len(groups) <= _MANY:
            return tuple(_merged(group, alike=way is ways[0]) for group in groups)
    guilty = [track for track in tracks if any(bar.kind is End.CAUSE for bar in track.bars)]
    guilty = guilty[: _MANY - 1]
    shown = {track.rank for track in guilty}
    rest = [track for track in tracks if track.rank not in shown]
    groups = [[track] for track in guilty] + ([rest] if rest else [])
    groups.sort(key=lambda group: group[0].rank)
    return tuple(_merged(group, alike=len(group) == 1) for group in groups)


def _by(tracks: Sequence[Track], key: Callable[[Track], object]) -> list[list[Track]]:
    groups: dict[object, list[Track]] = {}
    for track in tracks:
        groups.setdefault(key(track), []).append(track)
    return list(groups.values())


def _same(tracks: Sequence[Track], tolerance: float) -> list[list[Track]]:
    """Groups of those who ended alike, each at nearly the same moments as the first of its group."""
    groups: list[list[Track]] = []
    for alike in _by(tracks, lambda track: tuple((bar.attempt, bar.kind, bar.words) for bar in track.bars)):
        near: list[list[Track]] = []
        for track in alike:
            for group in near:
                if _near(track, group[0], tolerance):
                    group.append(track)
                    break
            else:
                near.append([track])
            if len(near) > _MANY:
                break  # of no use; the next way is tried
        groups += near
    return sorted(groups, key=lambda group: group[0].rank)


def _near(one: Track, other: Track, tolerance: float) -> bool:
    return all(
        abs(mine.begin - theirs.begin) <= tolerance and abs(mine.end - theirs.end) <= tolerance
        for mine, theirs in zip(one.bars, other.bars, strict=True)
    )


def _merged(group: Sequence[Track], *, alike: bool) -> Lane:
    if len(group) == 1:
        return Lane((group[0].rank,), group[0].hosts, group[0].bars)
    bars: dict[int, list[Bar]] = {}
    for track in group:
        for bar in track.bars:
            bars.setdefault(bar.attempt, []).append(bar)
    return Lane(
        tuple(track.rank for track in group),
        unique(host for track in group for host in track.hosts),
        tuple(_together(bars[attempt]) for attempt in sorted(bars)),
        alike,
    )


def _together(bars: Sequence[Bar]) -> Bar:
    """One bar for several, with the worst of their ends."""
    worst = min(bars, key=lambda bar: _WORST_FIRST.index(bar.kind))
    words = unique(bar.words for bar in bars)
    return Bar(
        worst.attempt,
        min(bar.begin for bar in bars),
        max(bar.end for bar in bars),
        worst.kind,
        words[0] if len(words) == 1 else f"{worst.words}, and {len(words) - 1} other ways",
    )


def unique(items: Iterable[str]) -> tuple[str, ...]:
    """Each item once, in order."""
    return tuple(dict.fromkeys(items))
