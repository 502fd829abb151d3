"""The lanes of the timeline: what each rank did in each attempt, and which ranks did the same. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum

# Up to so many ranks each has a lane of its own.
EACH = 64

# Lanes of ranks that did exactly the same, as long as these are no more.
_FEW = 12

# A picture of folded ranks has no more lanes.
_MANY = 48


class LaneEnd(str, Enum):
    """How a worker ended, as far as a picture tells. The first of two is the worse one."""

    CAUSE = "failed first"
    FAILED = "failed as well"
    LOST = "lost with its node"
    UNKNOWN = "end not seen"
    FOLLOWED = "failed because of others"
    STOPPED = "stopped by hpc-launch"
    RUNNING = "running when last seen"
    FINISHED = "finished"


_WORST_FIRST = tuple(LaneEnd)

# Two ways to follow one that has failed, which are one here.
_FOLLOWED = {LaneEnd.FOLLOWED: LaneEnd.STOPPED, LaneEnd.STOPPED: LaneEnd.STOPPED}


@dataclass(frozen=True)
class LaneBar:
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
    kind: LaneEnd
    words: str


@dataclass(frozen=True)
class RankTrack:
    """One rank through all attempts.

    Attributes:
        rank: its number.
        hosts: where it ran, the last one last.
        bars: one per attempt in which it was started.
    """

    rank: int
    hosts: tuple[str, ...]
    bars: tuple[LaneBar, ...]


@dataclass(frozen=True)
class TimelineLane:
    """Ranks that are drawn as one.

    Attributes:
        ranks: their numbers, in order.
        hosts: where they ran, each once.
        bars: what they did; where they ended differently, how most of them did.
    """

    ranks: tuple[int, ...]
    hosts: tuple[str, ...]
    bars: tuple[LaneBar, ...]


def make_tracks(tracks: Sequence[RankTrack]) -> tuple[TimelineLane, ...]:
    """A lane for every rank."""
    return tuple(TimelineLane((track.rank,), track.hosts, track.bars) for track in tracks)


def fold_lanes(tracks: Sequence[RankTrack], tolerance: float) -> tuple[TimelineLane, ...]:
    """As few lanes as a picture can have, and as many as it needs.

    Few ranks have one each. Of many, those share one that ended alike at the same time; if that would still be many
    lanes, those do that only followed others, in whatever way; and then all that were never the first to fail.

    Args:
        tracks: all ranks, in order.
        tolerance: seconds that make no difference.
    """
    if len(tracks) <= EACH:
        return make_tracks(tracks)
    groups = _same(tracks, tolerance)
    if len(groups) <= _FEW:
        return tuple(_merged(group) for group in groups)
    groups = _by(tracks, lambda track: tuple(_way(bar)[:2] for bar in track.bars))
    if len(groups) > _MANY:
        shown = [track for track in tracks if any(bar.kind is LaneEnd.CAUSE for bar in track.bars)][: _MANY - 1]
        ranks = {track.rank for track in shown}
        rest = [track for track in tracks if track.rank not in ranks]
        groups = sorted([*([track] for track in shown), rest], key=lambda group: group[0].rank)
    return tuple(_merged(group) for group in groups)


def _by(tracks: Sequence[RankTrack], key: Callable[[RankTrack], object]) -> list[list[RankTrack]]:
    groups: dict[object, list[RankTrack]] = {}
    for track in tracks:
        groups.setdefault(key(track), []).append(track)
    return list(groups.values())


def _same(tracks: Sequence[RankTrack], tolerance: float) -> list[list[RankTrack]]:
    """Groups of those who ended alike, each at nearly the same moments as the first of its group."""
    groups: list[list[RankTrack]] = []
    for alike in _by(tracks, lambda track: tuple(map(_way, track.bars))):
        near: list[list[RankTrack]] = []
        for track in alike:
            for group in near:
                if _near(track, group[0], tolerance):
                    group.append(track)
                    break
            else:
                near.append([track])
            if len(near) > _FEW:
                break  # of no use; the next way is tried
        groups += near
    return sorted(groups, key=lambda group: group[0].rank)


def _way(bar: LaneBar) -> tuple[int, LaneEnd, str]:
    """In which way somebody ended: how one follows others that have failed is a matter of milliseconds."""
    followed = bar.kind in _FOLLOWED
    return bar.attempt, _FOLLOWED.get(bar.kind, bar.kind), "" if followed else bar.words


def _near(one: RankTrack, other: RankTrack, tolerance: float) -> bool:
    return all(
        abs(mine.begin - theirs.begin) <= tolerance and abs(mine.end - theirs.end) <= tolerance
        for mine, theirs in zip(one.bars, other.bars, strict=True)
    )


def _merged(group: Sequence[RankTrack]) -> TimelineLane:
    if len(group) == 1:
        return TimelineLane((group[0].rank,), group[0].hosts, group[0].bars)
    bars: dict[int, list[LaneBar]] = {}
    for track in group:
        for bar in track.bars:
            bars.setdefault(bar.attempt, []).append(bar)
    return TimelineLane(
        tuple(track.rank for track in group),
        without_repeats(host for track in group for host in track.hosts),
        tuple(_together(bars[attempt]) for attempt in sorted(bars)),
    )


def _together(bars: Sequence[LaneBar]) -> LaneBar:
    """One bar for several: as most of them ended, but never hiding that one was the first to fail."""
    counts = Counter(bar.kind for bar in bars)
    kind = (
        LaneEnd.CAUSE
        if LaneEnd.CAUSE in counts
        else max(counts, key=lambda kind: (counts[kind], -_WORST_FIRST.index(kind)))
    )
    said = without_repeats(bar.words for bar in bars if bar.kind is kind)
    words = said[0] if len(said) == 1 else f"{said[0]}, and {len(said) - 1:,} other ways"
    if len(counts) > 1:
        others = ", ".join(f"{counts[other]:,} {other.value}" for other in LaneEnd if counts[other])
        words = f"{words} ({others})"
    return LaneBar(bars[0].attempt, min(bar.begin for bar in bars), max(bar.end for bar in bars), kind, words)


def without_repeats(items: Iterable[str]) -> tuple[str, ...]:
    """Each item once, in order."""
    return tuple(dict.fromkeys(items))
