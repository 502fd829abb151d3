"""A view of a job as plain text, for terminals, logs and `print(job)`. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from hpc_launch import hostlist
from hpc_launch.api.job_view import JobView, RankView
from hpc_launch.inspection.job_state import State
from hpc_launch.records import formatting
from hpc_launch.text import count, duration, number, to_the_minute

_BAR, _CURVE = 20, 24
_EIGHTHS = " ▏▎▍▌▋▊▉█"
_LEVELS = "▁▂▃▄▅▆▇█"

# So many values of a rank fit in a line.
_MOST_VALUES = 4

# Seconds without a mark that are worth a word.
_LONG_SILENCE = 60.0


def render_job_text(view: JobView) -> str:
    """The whole view, several lines without an end of line after the last."""
    return "\n".join(_lines(view))


def job_headline(view: JobView) -> str:
    """The view in one line."""
    return ", ".join([f"{view.subject.name} (job {view.subject.job_id}): {view.standing.words}", *facts(view)])


def facts(view: JobView) -> tuple[str, ...]:
    """What is to be said about a job beside its state: a few words each."""
    return tuple(word for word in (*_place(view), *_times(view), view.note) if word)


def _place(view: JobView) -> Iterator[str]:
    asked = view.subject.nodes
    if view.hosts:
        yield f"on {hostlist.display(view.hosts)}"
        if view.lost:
            yield f"without {formatting.fold_hosts(view.lost)}, lost"
    elif asked and view.state in (State.WAITING, State.REQUEUED):
        yield f"asks for {count(asked, 'node')}"
    if view.world_size:
        yield count(view.world_size, "rank")
    elif view.state is State.RUNNING:
        yield "starting"
    if view.attempt:
        yield f"attempt {view.attempt}"


def _times(view: JobView) -> Iterator[str]:
    if view.estimate is not None:
        yield f"expected to start at {to_the_minute(view.estimate, view.now)}"
    if view.elapsed is not None:
        yield f"{duration(view.elapsed)} {'in all' if view.standing.over else 'so far'}"
    if view.time_left is not None:
        yield f"{duration(view.time_left)} left"
    if view.training_left is not None:
        yield f"finishes in about {duration(view.training_left)}"
    if view.silence is not None and view.silence > _LONG_SILENCE:
        yield f"no progress for {duration(view.silence)}"


def values(view: RankView) -> str:
    """What a rank says beside its step: the first of it, where it says much."""
    return "  ".join(f"{name} {number(value)}" for name, value in [*view.mark.values.items()][:_MOST_VALUES])


def steps(view: RankView) -> str:
    """How far a rank is."""
    mark = view.mark
    if mark.step is None:
        return ""
    return f"step {number(mark.step)}" + (f" of {number(mark.total)}" if mark.total is not None else "")


def others(view: JobView) -> str:
    """Where the ranks are that are not shown one by one; empty if there are none."""
    reached = sorted(mark.step for mark in view.others if mark.step is not None)
    if not view.others:
        return ""
    between = f": step {number(reached[0])}" if reached else ""
    between += f" to {number(reached[-1])}" if reached and reached[-1] != reached[0] else ""
    return f"and {count(len(view.others), 'more rank')}{between}"


def bar(share: float, width: int = _BAR) -> str:
    """A bar of text."""
    eighths = round(share * width * 8)
    full, rest = divmod(eighths, 8)
    return ("█" * full + (_EIGHTHS[rest] if rest else "")).ljust(width)


def curve(points: Sequence[tuple[float, float]], width: int = _CURVE) -> str:
    """A curve of text, by the value that each part of the way ended with; empty for less than two points."""
    if len({step for step, _ in points}) < 2:  # noqa: PLR2004 - a line has two ends
        return ""
    first, last = points[0][0], points[-1][0]
    found = {min(width - 1, int((step - first) / (last - first) * width)): value for step, value in points}
    low, high = min(found.values()), max(found.values())
    text, value = "", 0.0
    for cell in range(width):
        value = found.get(cell, value)
        height = (value - low) / (high - low) if high > low else 0.5
        text += _LEVELS[round(height * (len(_LEVELS) - 1))]
    return text


def _lines(view: JobView) -> Iterator[str]:
    yield job_headline(view)
    rows = [_row(each) for each in view.ranks]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield ("  " + "  ".join(word.ljust(width) for word, width in zip(row, widths, strict=True) if width)).rstrip()
    if others(view):
        yield f"  {others(view)}"
    if view.cause:
        yield f"  {view.cause}"
    if view.lines:
        yield f"  last lines of {view.source}:"
        yield from (f"  | {line}" for line in view.lines)
    if view.directory is not None:
        yield f"  files in {view.directory}"


def _row(each: RankView) -> tuple[str, ...]:
    return (
        f"rank {each.rank}" + (f" on {each.host}" if each.host else ""),
        "" if each.share is None else f"|{bar(each.share)}| {each.share:4.0%}",
        steps(each),
        values(each),
        curve(each.curve),
        "failed" if each.failed else "",
    )
