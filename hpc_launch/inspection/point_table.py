"""The points of a sweep as a table, in words and for JSON. Pure."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpc_launch import ranges
from hpc_launch.inspection import status_view
from hpc_launch.inspection.job_state import State
from hpc_launch.inspection.point_status import ArrayStatus, PointStatus
from hpc_launch.inspection.terminal_colours import TerminalColours
from hpc_launch.inspection.text_table import table_lines
from hpc_launch.records.failure_messages import failure_kind
from hpc_launch.records.history_model import ProgressMark
from hpc_launch.slurm.job import explain
from hpc_launch.text import number, one_line, visible

# So many points have a line each. Of more, those that are alike share one.
_MOST_ROWS = 40

# Characters of a cell that has what others say.
_LONGEST_CELL = 60

# Characters of a list of tasks.
_LONGEST_LIST = 24

# So many reasons for waiting are explained.
_MOST_REASONS = 3

# What stands for words that differ between the points of a line.
_DIFFERS = "…"
_VARIOUS = "various"

_COLUMNS = ("arguments", "Slurm", "result", "progress", "directory", "output")


@dataclass(frozen=True)
class _Group:
    """Points that share a line; they are alike, unless there were no lines left."""

    points: tuple[PointStatus, ...]
    alike: bool = True


def array_text(array: ArrayStatus, paint: TerminalColours | None = None) -> str:
    """A job array for a person."""
    paint = paint or TerminalColours()
    directories = _parent(point.status.path for point in array.points)
    outputs = _parent(Path(point.output) for point in array.points)
    states = (
        paint(f"{many:,} {state.value}", status_view.STATE_COLOURS[state]) for state, many in array.counts.items()
    )
    head = [
        ("job", paint(visible(" ".join([array.name, *array.command])), "bold")),
        ("points", f"{len(array.points):,}: {', '.join(states)}"),
        ("Slurm", f"cannot be seen: {array.blind}" if array.blind else ""),
        *(("waiting", one_line(why)) for why in _reasons(array.points)),
        ("files", visible(str(directories)) if directories else ""),
        ("output", visible(str(outputs)) if outputs else ""),
    ]
    lines = [f"{paint(f'{name:9}', 'dim')} {value}" for name, value in head if value]
    return "\n".join([*lines, "", *_table(array.points, "point", directories, outputs, paint)])


def _reasons(points: Sequence[PointStatus]) -> list[str]:
    """Why points wait, in Slurm's words and in others: each reason once, of several the first."""
    seen = (point.status.slurm for point in points if point.status.standing.state is State.WAITING)
    found = dict.fromkeys(explain(one.record.reason) for one in seen if one is not None and one.record is not None)
    return [why for why in found if why][:_MOST_REASONS]


def runs_text(runs: Sequence[PointStatus], paint: TerminalColours | None = None) -> str:
    """The runs of one job for a person; their directories have their names."""
    return "\n".join(_table(runs, "run", None, None, paint or TerminalColours()))


def _table(
    points: Sequence[PointStatus],
    what: str,
    directories: Path | None,
    outputs: Path | None,
    paint: TerminalColours,
) -> list[str]:
    of_array = what == "point"
    groups = _groups(points)
    rows = [
        (
            _names(group),
            _arguments(group),
            _same(group, _slurm) if of_array else "",
            _same(group, _result),
            _progress(group),
            _file(group, directories, lambda point: point.status.path) if of_array else "",
            _file(group, outputs, lambda point: Path(point.output)),
        )
        for group in groups
    ]
    return table_lines((what, *_COLUMNS), rows, [_colour(group) for group in groups], paint)


def _groups(points: Sequence[PointStatus]) -> list[_Group]:
    """The points, those that are alike together where there are many."""
    if len(points) <= _MOST_ROWS:
        return [_Group((point,)) for point in points]
    groups: dict[tuple[str, str], list[PointStatus]] = {}
    for point in points:
        groups.setdefault((_slurm(point), failure_kind(_result(point))), []).append(point)
    if len(groups) <= _MOST_ROWS:
        return [_Group(tuple(members)) for members in groups.values()]
    # Those of which there are few are what is looked for.
    kept = {key for key, _ in sorted(groups.items(), key=lambda group: len(group[1]))[: _MOST_ROWS - 1]}
    rest = [point for key, members in groups.items() if key not in kept for point in members]
    return [
        *(_Group(tuple(members)) for key, members in groups.items() if key in kept),
        _Group(tuple(rest), alike=False),
    ]


# --- cells


def _names(group: _Group) -> str:
    """Their names, as scancel takes those of tasks: `12_[0-3,7]`; of a long list its begin, and how many they are."""
    first = group.points[0]
    if len(group.points) == 1:
        return first.name
    numbers = [point.number for point in group.points if point.number is not None]
    if numbers:
        folded = ranges.fold(numbers)
        if len(folded) > _LONGEST_LIST:
            folded = f"{folded[:_LONGEST_LIST].rpartition(',')[0]},{_DIFFERS}"
        many = f", {len(numbers):,} points" if _DIFFERS in folded else ""
        return f"{first.name.partition('_')[0]}_[{folded}]{many}"
    return f"{first.name} and {len(group.points) - 1:,} more"


def _arguments(group: _Group) -> str:
    """Their arguments; of those of several points the words that they have in common."""
    found = {point.arguments for point in group.points}
    if len({len(words) for words in found}) > 1:
        return _VARIOUS
    shared = (words[0] if len(set(words)) == 1 else None for words in zip(*found, strict=True))
    return one_line(" ".join(_DIFFERS if word is None else shlex.quote(word) for word in shared), _LONGEST_CELL)


def _slurm(point: PointStatus) -> str:
    seen = point.status.slurm
    return seen.record.state if seen is not None and seen.record is not None else ""


def _result(point: PointStatus) -> str:
    standing, cause = point.status.standing, point.status.cause
    if standing.state is State.WAITING and point.status.slurm is not None and point.status.slurm.record is not None:
        # What the reason means is said once, above the table.
        reason = point.status.slurm.record.reason
        return one_line(f"{standing.state.value} ({reason})" if reason else standing.words, _LONGEST_CELL)
    failed = cause and standing.over and standing.state is not State.DONE
    return one_line(f"{standing.words}: {cause}" if failed else standing.words, _LONGEST_CELL)


def _same(group: _Group, cell: Callable[[PointStatus], str]) -> str:
    found = {cell(point) for point in group.points} if not group.alike else {cell(group.points[0])}
    return found.pop() if len(found) == 1 else _VARIOUS


def _progress(group: _Group) -> str:
    marks = [point.status.progress for point in group.points if point.status.progress is not None]
    if len(group.points) > 1 or not marks:
        steps = sorted(mark.step for mark in marks if mark.step is not None)
        return "" if not steps else _span(steps[0], steps[-1])
    return one_line(", ".join(_mark(marks[0])), _LONGEST_CELL)


def _span(low: float, high: float) -> str:
    return number(low) if low == high else f"{number(low)} to {number(high)}"


def _mark(mark: ProgressMark) -> list[str]:
    step = " of ".join(number(value) for value in (mark.step, mark.total) if value is not None)
    return [*([step] if step else []), *(f"{name} {number(value)}" for name, value in mark.values.items())]


def _file(group: _Group, parent: Path | None, file: Callable[[PointStatus], Path]) -> str:
    """A file of them: that of the first, where there are several."""
    files = [found for point in group.points if (found := file(point)) != Path()]
    if not files:
        return ""
    name = visible(files[0].name if parent else str(files[0]))
    return name if len(files) == 1 else f"{name} and {len(files) - 1:,} more"


def _parent(files: Iterable[Path]) -> Path | None:
    """Where all of these files are; None where they are in several directories, or there are none."""
    found = {file.parent for file in files if file != Path()}
    return found.pop() if len(found) == 1 else None


def _colour(group: _Group) -> str:
    return status_view.STATE_COLOURS[group.points[0].status.standing.state] if group.alike else ""


# --- for programs


def array_as_dict(array: ArrayStatus) -> dict[str, Any]:
    """A job array for JSON; the keys are those of a job, where they have the same meaning."""
    return {
        "job": array.name,
        "script": list(array.command),
        "over": array.over,
        "exit_status": array.exit_status if array.over else None,
        "slurm": {"cannot_see": array.blind or None},
        "points": points_as_list(array.points),
        "now": array.now,
    }


def points_as_list(points: Sequence[PointStatus]) -> list[dict[str, Any]]:
    """Points for JSON."""
    return [_point(point) for point in points]


def _point(point: PointStatus) -> dict[str, Any]:
    status = point.status
    whole = status_view.status_as_dict(status)
    shared = ("state", "words", "over", "exit_status", "slurm", "attempt", "begin", "end", "failure", "directory")
    return {
        "point": point.name,
        "task": point.number,
        "arguments": list(point.arguments),
        **{key: whole[key] for key in shared},
        "progress": None if status.progress is None else status_view.mark_as_dict(status.progress),
        "output": point.output or None,
    }
