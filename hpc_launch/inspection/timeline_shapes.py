"""The timeline as shapes: where each bar, mark and word is drawn. Pure; the template only writes it down."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import tzinfo
from itertools import groupby, islice

from hpc_launch import ranges
from hpc_launch.inspection import time_axis, timeline_lanes
from hpc_launch.inspection.time_axis import AxisTick, TimeAxis, short
from hpc_launch.inspection.timeline import AttemptSpan, Timeline, TimelineEvent
from hpc_launch.inspection.timeline_lanes import LaneBar, LaneEnd, RankTrack, TimelineLane
from hpc_launch.records import formatting
from hpc_launch.text import count, date_and_time, duration, time_of_day

# The units of a picture: the page is about so many points wide.
WIDTH = 1160.0
_LEFT = 206.0
_RIGHT = 24.0

_HEAD = 40.0
_FLAG = 15.0
_FOOT = 34.0

# Seconds that are less than a line's width in the picture make no difference between ranks.
_TOLERANCE = 2.0 / 800

# More titles than this would make the file large; then each lane has one, for all of its bars.
_MOST_TITLES = 2500

# A title has no more lines that say how attempts ended.
_SAID = 12

# More bars than this are not drawn one by one.
MOST_BARS = 60_000

_CLASSES = {
    LaneEnd.CAUSE: "cause",
    LaneEnd.FAILED: "failed",
    LaneEnd.LOST: "lost",
    LaneEnd.UNKNOWN: "unknown",
    LaneEnd.FOLLOWED: "followed",
    LaneEnd.STOPPED: "stopped",
    LaneEnd.RUNNING: "running",
    LaneEnd.FINISHED: "finished",
}


@dataclass(frozen=True)
class Box:
    """Bars of one kind: a path, its style, and what is said of it."""

    path: str
    style: str
    title: str = ""


@dataclass(frozen=True)
class Cross:
    """Where a rank failed first, with the reason beside it if there is room."""

    path: str
    x: float
    y: float
    words: str = ""
    before: bool = False


@dataclass(frozen=True)
class Row:
    """A lane as drawn. `label` and `more` are beside it, `title` says all of it."""

    y: float
    label: str
    more: str
    title: str
    boxes: tuple[Box, ...]
    crosses: tuple[Cross, ...]
    rule: bool


@dataclass(frozen=True)
class Band:
    """An attempt, above the lanes."""

    x: float
    width: float
    label: str
    more: str
    title: str
    odd: bool


@dataclass(frozen=True)
class Flag:
    """A moment: a line through all lanes, with a word above it."""

    x: float
    y: float
    label: str
    title: str
    style: str
    before: bool


@dataclass(frozen=True)
class Cut:
    """A pause that is drawn shorter than it was."""

    x: float
    width: float
    label: str


@dataclass(frozen=True)
class Picture:
    """All of it. `caption` says in words what is shown; `notes` what is not as it seems."""

    width: float
    height: float
    top: float
    bottom: float
    bands: tuple[Band, ...]
    rows: tuple[Row, ...]
    flags: tuple[Flag, ...]
    cuts: tuple[Cut, ...]
    ticks: tuple[AxisTick, ...]
    kinds: tuple[tuple[str, str], ...]
    caption: str
    notes: tuple[str, ...]
    pitch: float


@dataclass(frozen=True)
class _Style:
    pitch: float
    bar: float
    two_lines: bool
    titles: bool


def draw_overview(timeline: Timeline, zone: tzinfo | None) -> Picture | None:
    """The picture that is shown first: ranks that did the same share a lane; None if there is nothing to show."""
    span = sum(phase.seconds for phase in timeline.phases)
    folded = timeline_lanes.fold_lanes(timeline.tracks, span * _TOLERANCE)
    single = all(len(lane.ranks) == 1 for lane in folded)
    style = _Style(18.0, 12.0, False, True) if single else _Style(34.0, 20.0, True, True)
    return _draw(timeline, folded, style, zone)


def draw_every_rank(timeline: Timeline, zone: tzinfo | None) -> Picture | None:
    """The picture of all ranks, a narrow lane for each; None where the first one shows them, or they are too many."""
    if len(timeline.tracks) <= timeline_lanes.EACH or sum(len(track.bars) for track in timeline.tracks) > MOST_BARS:
        return None
    return _draw(timeline, timeline_lanes.make_tracks(timeline.tracks), _Style(5.0, 4.0, False, False), zone)


def _draw(timeline: Timeline, shown: Sequence[TimelineLane], style: _Style, zone: tzinfo | None) -> Picture | None:
    if not shown or not timeline.spans:
        return None
    axis = time_axis.make_time_axis(timeline.phases, _LEFT, WIDTH - _RIGHT)
    flags, levels = _flags(timeline.moments, axis, zone)
    top = _HEAD + _FLAG * levels
    single = all(len(lane.ranks) == 1 for lane in shown)
    titles = style.titles and sum(len(lane.bars) for lane in shown) <= _MOST_TITLES
    pen = _Pen(axis, style, zone, titles=titles)
    rows: list[Row] = []
    y, host = top, ""
    for lane in shown:
        here = formatting.fold_hosts(lane.hosts)
        first = single and here != host
        rows.append(pen.row(lane, y, here if first or not single else "", rule=first and bool(rows)))
        host = here
        y += style.pitch
    cuts = tuple(
        Cut(piece.left, piece.right - piece.left, duration(piece.end - piece.begin))
        for piece in axis.pieces
        if piece.cut
    )
    used = {bar.kind for lane in shown for bar in lane.bars}
    return Picture(
        WIDTH,
        y + _FOOT,
        top,
        y,
        tuple(_band(span, at, axis, zone) for at, span in enumerate(timeline.spans)),
        tuple(rows),
        flags,
        cuts,
        axis.ticks(zone),
        tuple((_CLASSES[kind], kind.value) for kind in LaneEnd if kind in used),
        _caption(timeline),
        tuple(_notes(axis, timeline.tracks, shown, cuts)),
        style.pitch,
    )


class _Pen:
    """Draws lanes in one style."""

    def __init__(self, axis: TimeAxis, style: _Style, zone: tzinfo | None, *, titles: bool) -> None:
        self._axis = axis
        self._style = style
        self._zone = zone
        self._titles = titles

    def row(self, lane: TimelineLane, y: float, host: str, *, rule: bool) -> Row:
        """One lane."""
        top = y + (self._style.pitch - self._style.bar) / 2
        if self._titles:
            boxes = tuple(
                Box(self._box(bar, top), _CLASSES[bar.kind], f"{_name(lane)}, {self._said(bar)}") for bar in lane.bars
            )
        else:
            kinds = dict.fromkeys(bar.kind for bar in lane.bars)
            paths = {kind: "".join(self._box(bar, top) for bar in lane.bars if bar.kind is kind) for kind in kinds}
            boxes = tuple(Box(path, _CLASSES[kind]) for kind, path in paths.items())
        crosses = tuple(self._cross(lane, at, top) for at, bar in enumerate(lane.bars) if bar.kind is LaneEnd.CAUSE)
        title = _name(lane) if self._titles else "\n".join([_name(lane), *_in_short(lane.bars)])
        label, more = _labels(lane, host, two_lines=self._style.two_lines)
        return Row(y, label, more, title, boxes, crosses, rule)

    def _box(self, bar: LaneBar, top: float) -> str:
        left = self._axis.x(bar.begin)
        width = max(1.0, self._axis.x(bar.end) - left)
        return f"M{short(left)} {short(top)}h{short(width)}v{short(self._style.bar)}h-{short(width)}z"

    def _cross(self, lane: TimelineLane, at: int, top: float) -> Cross:
        bar = lane.bars[at]
        x, y, arm = self._axis.x(bar.end), top + self._style.bar / 2, min(4.5, self._style.bar * 0.45)
        path = f"M{short(x - arm)} {short(y - arm)}l{2 * arm:g} {2 * arm:g}m0 -{2 * arm:g}l-{2 * arm:g} {2 * arm:g}"
        if self._style.bar < 10:  # noqa: PLR2004 - smaller than letters
            return Cross(path, x, y)
        following = self._axis.x(lane.bars[at + 1].begin) if at + 1 < len(lane.bars) else WIDTH
        room = [(following - x - 14) / 6.2, (x - self._axis.x(bar.begin) - 14) / 6.2]
        said = bar.words.partition(":")[0].partition(" (")[0]
        before = len(said) > room[0]
        fits = len(said) <= room[before]
        return Cross(path, x + (-9 if before else 9), y, said if fits else "", before)

    def _said(self, bar: LaneBar) -> str:
        times = f"{time_of_day(bar.begin, self._zone)} to {time_of_day(bar.end, self._zone)}"
        how = bar.kind.value if bar.words in ("ended well", "no end recorded") else f"{bar.kind.value}: {bar.words}"
        return f"attempt {bar.attempt}: {how} ({times}, {duration(bar.end - bar.begin)})"


def _name(lane: TimelineLane) -> str:
    ranks = f"rank {lane.ranks[0]}" if len(lane.ranks) == 1 else f"ranks {_short(ranges.fold(lane.ranks), 120)}"
    return f"{ranks} on {_short(formatting.fold_hosts(lane.hosts), 120)}"


def _in_short(bars: Sequence[LaneBar]) -> Iterator[str]:
    """What bars say without their times, attempts that ended alike together."""
    for said, alike in islice(groupby(bars, key=_ended), _SAID):
        numbers = ranges.fold(bar.attempt for bar in alike)
        yield f"attempt{'s' if '-' in numbers else ''} {numbers}: {said}"


def _ended(bar: LaneBar) -> str:
    return (
        bar.kind.value
        if bar.kind in (LaneEnd.FINISHED, LaneEnd.RUNNING)
        else f"{bar.kind.value}: {_short(bar.words, 60)}"
    )


def _labels(lane: TimelineLane, host: str, *, two_lines: bool) -> tuple[str, str]:
    """What stands beside a lane: the ranks, and the host where it is another than above."""
    if not two_lines:
        return str(lane.ranks[0]), _short(host, 22)
    if len(lane.ranks) == 1:
        return f"rank {lane.ranks[0]}", _short(host, 30)
    return count(len(lane.ranks), "rank"), _short(f"{ranges.fold(lane.ranks)} · {host}", 36)


def _band(span: AttemptSpan, at: int, axis: TimeAxis, zone: tzinfo | None) -> Band:
    x = axis.x(span.begin)
    width = max(1.0, axis.x(span.end) - x)
    took = duration(span.end - span.begin) + ("…" if span.open else "")
    label = next(
        (text for text in (f"attempt {span.number}", f"{span.number}") if len(text) * 6.6 <= width),
        "",
    )
    title = f"attempt {span.number}: {date_and_time(span.begin, zone)} to {time_of_day(span.end, zone)}, {took}"
    return Band(x, width, label, took if label and len(took) * 6.0 <= width else "", title, bool(at % 2))


def _flags(moments: Sequence[TimelineEvent], axis: TimeAxis, zone: tzinfo | None) -> tuple[tuple[Flag, ...], int]:
    """Flags of all moments, in up to three levels so that their words do not lie on each other; and the levels used."""
    taken: list[float] = []
    found = []
    for moment in moments:
        x = axis.x(moment.time)
        width = 6.2 * len(moment.label) + 14
        before = x + width > WIDTH
        left = x - width if before else x
        level = next((at for at, right in enumerate(taken) if left >= right), len(taken))
        fits = level < 3  # noqa: PLR2004 - levels
        if fits:
            taken[level:] = [left + width, *taken[level + 1 :]]
        label = _short(moment.label, 40) if fits else ""
        title = f"{moment.label} at {date_and_time(moment.time, zone)}"
        found.append(Flag(x, _HEAD + _FLAG * min(level, 2), label, title, moment.kind, before))
    return tuple(found), len(taken)


def _caption(timeline: Timeline) -> str:
    attempts = count(len(timeline.spans), "attempt")
    ranks = count(len(timeline.tracks), "rank")
    counts = {kind: sum(bar.kind is kind for track in timeline.tracks for bar in track.bars) for kind in LaneEnd}
    ends = ", ".join(f"{count:,} {kind.value}" for kind, count in counts.items() if count)
    return f"{ranks} in {attempts}. Ends of workers: {ends}."


def _notes(
    axis: TimeAxis, tracks: Sequence[RankTrack], shown: Sequence[TimelineLane], cuts: Sequence[Cut]
) -> list[str]:
    found = []
    if not axis.even:
        found.append("Short attempts are drawn wider than they were; the times are right.")
    if cuts:
        found.append("Long pauses are cut: //.")
    if len(shown) < len(tracks):
        found.append("Ranks that did the same share a lane.")
    return found


def _short(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[: limit - 1]}…"
