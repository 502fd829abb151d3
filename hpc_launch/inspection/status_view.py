"""Where a job stands, rank by rank: as a value, in words and for JSON. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from hpc_launch import ranges
from hpc_launch.inspection.job_state import JobState, SlurmAnswer, State
from hpc_launch.inspection.terminal_colours import TerminalColours
from hpc_launch.inspection.text_table import table_lines
from hpc_launch.records import failure_messages, formatting
from hpc_launch.records.history_model import NodeEvent, NodeState, ProgressMark, RecordedNotice, Requeue
from hpc_launch.records.node_states import NodeStates
from hpc_launch.records.nodes_to_exclude import BadNode
from hpc_launch.text import ago, count, date_and_time, duration, number, to_the_minute, visible

STATE_COLOURS = {
    State.WAITING: "yellow",
    State.RUNNING: "green",
    State.REQUEUED: "yellow",
    State.DONE: "green",
    State.FAILED: "red",
    State.STOPPED: "yellow",
    State.UNKNOWN: "yellow",
}

# So many lines of ranks, after folding, a person may want to read.
_MOST_ROWS = 24

# So many things that could not be read are named.
_MOST_UNREADABLE = 5


class RankState(str, Enum):
    """How a rank is."""

    UP = "up"
    DONE = "done"
    FAILED = "failed"
    STOPPED = "stopped"
    """Its agent has ended it: because others failed, or the run was stopped."""
    LOST = "lost"
    """With its node."""
    UNKNOWN = "unknown"
    """Nobody has seen its end, and nobody can say that it is there."""


@dataclass(frozen=True)
class RankStatus:
    """One rank of the last attempt.

    Attributes:
        rank: its number.
        host: its node.
        local_rank: its number there; None if that is not known.
        device: `GPU 3` for instance; empty without one.
        pid: its process id; 0 if unknown.
        state: how it is.
        exitcode: its exit code, -N for signal N; None as long as it is not known.
        output: when it wrote anything last (by the clock of the file system); None if it never did.
        mark: how far it is, as it has marked last.
    """

    rank: int
    host: str
    local_rank: int | None
    device: str
    pid: int
    state: RankState
    exitcode: int | None
    output: float | None
    mark: ProgressMark | None


@dataclass(frozen=True)
class JobStatus:
    """Where a job stands.

    Attributes:
        path: its job directory; an empty path as long as it has none.
        name: the name of that, `1234.0`.
        script: the training script and its arguments; empty if unknown.
        standing: how it stands.
        slurm: what Slurm says; None where it is no job of Slurm's.
        attempt: the number of the last attempt; None before the first.
        begin: when that began.
        end: when it ended; None while it goes on, or if nobody saw it.
        restarts: how many attempts of the last run went before it.
        world_size: how many ranks it has.
        hosts: the nodes of the run that have workers, as far as they are known.
        missing: the nodes that are awaited, as a host list.
        fleet: the other nodes of the run: spares, those that were lost, and what is known of it.
        states: what Slurm has said last of lost nodes.
        told: what has become of nodes in the run, by time.
        bad: the nodes that the next job had better be without.
        ranks: by number.
        job_end: when the job ends; None where there is no such time.
        requeues: so far.
        notice: the last notice signal.
        failure: why the last attempt that failed did so, its number first; None if none has.
        cause: why the last attempt failed, without who did, in short; empty if it did not.
        now: the time of all this.
        unreadable: what could not be read, a line each.
    """

    path: Path
    name: str
    script: tuple[str, ...]
    standing: JobState
    slurm: SlurmAnswer | None
    attempt: int | None
    begin: float | None
    end: float | None
    restarts: int
    world_size: int
    hosts: tuple[str, ...]
    missing: str
    fleet: NodeStates
    states: tuple[NodeState, ...]
    told: tuple[NodeEvent, ...]
    bad: tuple[BadNode, ...]
    ranks: tuple[RankStatus, ...]
    job_end: float | None
    requeues: tuple[Requeue, ...]
    notice: RecordedNotice | None
    failure: tuple[int, str] | None
    cause: str
    now: float
    unreadable: tuple[str, ...]

    @property
    def time_left(self) -> float | None:
        """Seconds until the job ends; None where it does not run, or that is not known."""
        if self.job_end is None or self.standing.state is not State.RUNNING:
            return None
        return max(0.0, self.job_end - self.now)

    @property
    def progress(self) -> ProgressMark | None:
        """The furthest that any rank has marked."""
        marks = [rank.mark for rank in self.ranks if rank.mark is not None]
        return max(marks, key=lambda mark: (mark.step or 0.0, mark.time), default=None)

    def __str__(self) -> str:
        return text(self)


_RANKS = {RankState.FAILED: "red", RankState.LOST: "red", RankState.UNKNOWN: "yellow", RankState.STOPPED: "dim"}


def text(status: JobStatus, paint: TerminalColours | None = None) -> str:
    """A status for a person."""
    paint = paint or TerminalColours()
    lines = [f"{paint(f'{name:9}', 'dim')} {value}".rstrip() for name, value in _head(status, paint)]
    rows = _rows(status)
    if rows:
        lines += ["", *_table(rows, paint)]
    return "\n".join(lines)


def _head(status: JobStatus, paint: TerminalColours) -> list[tuple[str, str]]:
    """What there is to say of the job as a whole, each under its name."""
    found = [
        ("job", paint(" ".join([status.name, *status.script]), "bold")),
        ("state", paint(status.standing.words, STATE_COLOURS[status.standing.state])),
        ("Slurm", visible(_slurm(status.slurm)) if status.slurm is not None else ""),
        ("attempt", _attempt(status) if status.attempt is not None else ""),
        ("time left", _time_left(status) if status.time_left is not None else ""),
        ("nodes", _nodes(status, paint) if status.hosts or status.missing else ""),
        ("lost", paint(_lost(status), "red") if status.fleet.lost else ""),
        ("back", visible(_back(status)) if status.fleet.waiting else ""),
        *(
            ("drained" if node.host in status.fleet.drained else "bad", paint(f"{node.host} {node.why}", "red"))
            for node in status.bad
            if node.host not in status.fleet.lost
        ),
        ("workers", _workers(status, paint) if status.world_size or status.ranks else ""),
        ("progress", visible(_progress(status.progress, status.now)) if status.progress is not None else ""),
        ("notice", visible(_notice(status.notice, status.now)) if status.notice is not None else ""),
        ("requeues", visible(_requeues(status)) if status.requeues else ""),
        ("failure", visible(f"attempt {status.failure[0]}: {status.failure[1]}") if status.failure is not None else ""),
        ("files", visible(str(status.path)) if status.path != Path() else _no_directory(status)),
        *(("unread", paint(line, "yellow")) for line in status.unreadable[:_MOST_UNREADABLE]),
    ]
    more = len(status.unreadable) - _MOST_UNREADABLE
    if more > 0:
        found.append(("unread", paint(f"and {more} more: see --json", "yellow")))
    return [(name, value) for name, value in found if value]


def _time_left(status: JobStatus) -> str:
    left = status.time_left or 0.0
    return "no limit" if math.isinf(left) else f"{duration(left)}, until {to_the_minute(status.job_end, status.now)}"


def _requeues(status: JobStatus) -> str:
    last = status.requeues[-1]
    return f"{len(status.requeues)}; the last {date_and_time(last.time)} after attempt {last.attempt}: {last.cause}"


def _slurm(seen: SlurmAnswer) -> str:
    if seen.blind:
        return f"cannot be seen: {seen.blind}"
    record = seen.record
    if record is None:
        return "knows nothing of it (any more)"
    reason = f" ({record.reason})" if record.reason else ""
    where = f" on {record.nodes}" if record.nodes else ""
    return f"{record.state}{reason}{where}{f', partition {record.partition}' if record.partition else ''}"


def _attempt(status: JobStatus) -> str:
    parts = [str(status.attempt)]
    if status.begin is not None:
        if status.end is not None:
            parts.append(f"from {date_and_time(status.begin)}, for {duration(status.end - status.begin)}")
        elif status.standing.state is State.RUNNING:
            parts.append(f"for {duration(status.now - status.begin)}")
        else:
            parts.append(f"from {date_and_time(status.begin)}")
    if status.restarts:
        parts.append(f"{count(status.restarts, 'restart')} before it in this run")
    return "; ".join(parts)


def _nodes(status: JobStatus, paint: TerminalColours) -> str:
    found = f"{len(status.hosts)}: {formatting.fold_hosts(status.hosts)}" if status.hosts else "none yet"
    if status.fleet.spares:
        found += f"; to spare: {formatting.fold_hosts(status.fleet.spares)}"
    found = visible(found)
    if status.missing and not status.standing.over:
        found += paint(f"; waiting for {status.missing}", "yellow")
    return found


def _back(status: JobStatus) -> str:
    """Nodes that were lost and have come back."""
    part = "takes part" if len(status.fleet.waiting) == 1 else "take part"
    waits = "" if status.standing.over else f", which {part} from the next attempt on"
    return f"{formatting.fold_hosts(status.fleet.waiting)}{waits}"


def _lost(status: JobStatus) -> str:
    """Lost nodes; of a single one what Slurm says."""
    lost = formatting.fold_hosts(status.fleet.lost)
    last = max((event.time for event in status.told if event.kind == "lost"), default=status.now)
    when = f"{lost}, {'the last ' if len(status.fleet.lost) > 1 else ''}{ago(status.now - last)}"
    if len(status.fleet.lost) == 1 and status.states:
        return f"{when}: {failure_messages.slurms_word(status.states[0])}"
    gone = [state.host for state in status.states if state.gone]
    return f"{when}; down, as Slurm says: {formatting.fold_hosts(gone)}" if gone else when


def _notice(notice: RecordedNotice, now: float) -> str:
    parts = [f"{notice.signal}, {ago(now - notice.time)}"]
    if notice.unheard:
        where = f" of {formatting.fold_hosts(notice.unheard)}" if notice.hosts else ""
        parts.append(f"no worker{where} has a handler for it")
    return "; ".join(parts)


def _workers(status: JobStatus, paint: TerminalColours) -> str:
    counts = {state: sum(rank.state is state for rank in status.ranks) for state in RankState}
    parts = [paint(f"{count} {state.value}", _RANKS.get(state, "")) for state, count in counts.items() if count]
    unseen = status.world_size - len(status.ranks)
    if unseen > 0:
        parts.append(paint(f"{unseen} of which nothing is written", "yellow"))
    return f"{max(status.world_size, len(status.ranks))}: {', '.join(parts)}"


def _progress(mark: ProgressMark, now: float) -> str:
    parts = [f"step {_step(mark)}"] if mark.step is not None else []
    if mark.step is not None and mark.total:
        parts.append(f"{100 * mark.step / mark.total:.0f} %")
    parts += [f"{name} {number(value)}" for name, value in mark.values.items()]
    return f"{', '.join(parts) or 'marked'}; rank {mark.rank}, {ago(now - mark.time)}"


def _step(mark: ProgressMark) -> str:
    return " of ".join(number(value) for value in (mark.step, mark.total) if value is not None)


# --- ranks


@dataclass(frozen=True)
class _Row:
    """Ranks of which the same can be said."""

    ranks: str
    hosts: str
    state: str
    output: str
    step: str
    colour: str


def _rows(status: JobStatus) -> list[_Row]:
    """The ranks, those that are alike together."""
    groups: dict[tuple[str, str, str], list[RankStatus]] = {}
    for rank in status.ranks:
        groups.setdefault((rank.state.value, _how(rank), _output(rank, status)), []).append(rank)
    rows = [_row(members, output) for (_, _, output), members in groups.items()]
    if len(rows) <= _MOST_ROWS:
        return rows
    # Those of which there are few are what is looked for.
    few = sorted(groups.items(), key=lambda group: len(group[1]))[: _MOST_ROWS - 1]
    kept = {key for key, _ in few}
    rest = [rank for key, members in groups.items() if key not in kept for rank in members]
    rows = [_row(members, key[2]) for key, members in groups.items() if key in kept]
    return [*rows, _row(rest, "various", "various")]


def _row(members: Sequence[RankStatus], output: str, state: str = "") -> _Row:
    first = members[0]
    steps = sorted({member.mark.step for member in members if member.mark and member.mark.step is not None})
    step = "" if not steps else number(steps[0]) if len(steps) == 1 else f"{number(steps[0])} to {number(steps[-1])}"
    return _Row(
        ranks=ranges.fold(member.rank for member in members),
        hosts=formatting.fold_hosts(member.host for member in members),
        state=state or _how(first),
        output=output,
        step=step,
        colour="" if state else _RANKS.get(first.state, ""),
    )


def _how(rank: RankStatus) -> str:
    if rank.state is RankState.FAILED and rank.exitcode is not None:
        code = rank.exitcode
        return f"failed, {f'signal {-code}' if code < 0 else f'exit status {code}'}"
    return rank.state.value


def _no_directory(status: JobStatus) -> str:
    return f"there is no job directory{'' if status.standing.over else ' yet'}"


def _output(rank: RankStatus, status: JobStatus) -> str:
    if rank.output is None:
        return "none"
    # After the end it is of interest how long before that it was.
    if status.end is not None and status.standing.state is not State.RUNNING:
        before = status.end - rank.output
        return "at the end" if before < 5 else f"{duration(before)} before the end"  # noqa: PLR2004 - as good as then
    return ago(status.now - rank.output)


def _table(rows: Sequence[_Row], paint: TerminalColours) -> list[str]:
    names = ("ranks", "nodes", "state", "last output", "step")
    cells = [(row.ranks, row.hosts, row.state, row.output, row.step) for row in rows]
    return table_lines(names, cells, [row.colour for row in rows], paint)


# --- for programs


def status_as_dict(status: JobStatus) -> dict[str, Any]:
    """A status for JSON: times are seconds since the epoch."""
    seen = status.slurm
    record = seen.record if seen is not None else None
    return {
        "job": status.name,
        "directory": str(status.path) if status.path != Path() else None,
        "script": list(status.script),
        # For programs a job that was stopped has always been one that failed: `words` tells them apart.
        "state": (State.FAILED if status.standing.state is State.STOPPED else status.standing.state).value,
        "words": status.standing.words,
        "over": status.standing.over,
        "exit_status": status.standing.status,
        "slurm": None
        if seen is None
        else {
            "state": record.state if record is not None else None,
            "reason": record.reason if record is not None else None,
            "cannot_see": seen.blind or None,
        },
        "attempt": status.attempt,
        "begin": status.begin,
        "end": status.end,
        "restarts": status.restarts,
        "world_size": status.world_size,
        "hosts": list(status.hosts),
        "waiting_for": status.missing or None,
        "spares": list(status.fleet.spares),
        "lost": list(status.fleet.lost),
        "back": list(status.fleet.waiting),
        "drained": dict(status.fleet.drained),
        "bad": {node.host: node.why for node in status.bad},
        "slurm_of_lost": {state.host: {"state": state.state, "reason": state.reason} for state in status.states},
        "time_left": _finite(status.time_left),
        "job_end": _finite(status.job_end),
        "ranks": [_rank(rank) for rank in status.ranks],
        "requeues": [
            {"time": one.time, "reason": one.reason, "cause": one.cause, "attempt": one.attempt}
            for one in status.requeues
        ],
        "notice": None if status.notice is None else _notice_as_dict(status.notice),
        "failure": None if status.failure is None else {"attempt": status.failure[0], "cause": status.failure[1]},
        "now": status.now,
        "unreadable": list(status.unreadable),
    }


def _notice_as_dict(notice: RecordedNotice) -> dict[str, Any]:
    return {
        "time": notice.time,
        "signal": notice.signal,
        "hosts": list(notice.hosts),
        "unheard": list(notice.unheard),
    }


def _rank(rank: RankStatus) -> dict[str, Any]:
    mark = rank.mark
    return {
        "rank": rank.rank,
        "host": rank.host,
        "local_rank": rank.local_rank,
        "device": rank.device or None,
        "pid": rank.pid or None,
        "state": rank.state.value,
        "exitcode": rank.exitcode,
        "last_output": rank.output,
        "progress": None if mark is None else mark_as_dict(mark),
    }


def mark_as_dict(mark: ProgressMark) -> dict[str, Any]:
    """How far training is, for JSON."""
    return {"time": mark.time, "step": mark.step, "total": mark.total, "values": dict(mark.values)}


def _finite(number: float | None) -> float | None:
    """JSON has no infinity: no limit is no number."""
    return number if number is not None and math.isfinite(number) else None
