"""A report of a job: everything that a person wants to know of it, as a value. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import tzinfo
from pathlib import Path

from hpc_launch import __version__, ranges
from hpc_launch.inspection import chronology, job_verdict, plan_comparison, timeline, timeline_shapes, worker_exits
from hpc_launch.inspection.job_verdict import JobVerdict
from hpc_launch.inspection.plan_comparison import PlanView
from hpc_launch.inspection.root_cause_view import RootCauseView
from hpc_launch.inspection.timeline import Timeline
from hpc_launch.inspection.timeline_shapes import Picture
from hpc_launch.inspection.worker_exits import WorkerExits, WrittenFiles
from hpc_launch.records import failure_messages, formatting, node_states, nodes_to_exclude
from hpc_launch.records.history_model import Attempt, History, ProgressMark
from hpc_launch.records.node_states import NodeStates
from hpc_launch.text import date_and_time, duration, number, one_line, sane, zone_name

# Of more attempts the middle ones are left out of the table.
_MOST_ATTEMPTS = 100

# More lines about what could not be read are counted.
_MOST_UNREADABLE = 100

# A clock that is off by less makes no difference to anybody.
_CLOCK = 0.5


@dataclass(frozen=True)
class ReportedFact:
    """A name and a value."""

    name: str
    value: str


@dataclass(frozen=True)
class ReportedMoment:
    """An entry of the story, with its time in words, and how long after the beginning it was."""

    time: str
    after: str
    tone: str
    text: str


@dataclass(frozen=True)
class AttemptLine:
    """A line of the table of attempts; one without number says that some are left out."""

    number: int | None
    began: str
    took: str
    ranks: str
    hosts: str
    ending: str
    tone: str
    requeued: str


@dataclass(frozen=True)
class ReportedCause:
    """A root cause.

    Attributes:
        blame: it.
        title: its title.
        files: those of the rank.
        before: in which attempts the same happened before.
        past: the job has gone on since.
    """

    blame: RootCauseView
    title: str
    files: WrittenFiles | None
    before: str
    past: bool


@dataclass(frozen=True)
class ReportedProgress:
    """How far training came. `part` is between 0 and 1, None if no total was marked."""

    text: str
    part: float | None
    values: tuple[ReportedFact, ...]


@dataclass(frozen=True)
class NodeLine:
    """Something about a node that somebody should know."""

    host: str
    text: str


@dataclass(frozen=True)
class Report:
    """All of it; times are in words already.

    Attributes:
        path: the job directory.
        name: the job.
        written: when the report was made.
        zone: what local time is.
        version: of hpc-launch, which made it.
        verdict: how it went.
        facts: the most important of it.
        advice: what to do about bad nodes; empty where there are none.
        root: the root cause of the last attempt that failed; None if none did.
        overview: the picture.
        every: the picture of all ranks, where the first one folds them.
        attempts: the table of attempts.
        story: one thing after another.
        exits: how workers ended, by attempt, the last one first.
        stacks: directories with the stacks of workers, as somebody asked for them or a hang was found.
        progress: how far training came.
        requeues: the ledger.
        nodes: what is special about nodes.
        plan: what was planned, set and installed.
        unreadable: what could not be read.
    """

    path: Path
    name: str
    written: str
    zone: str
    version: str
    verdict: JobVerdict
    facts: tuple[ReportedFact, ...]
    advice: str
    root: ReportedCause | None
    overview: Picture | None
    every: Picture | None
    attempts: tuple[AttemptLine, ...]
    story: tuple[ReportedMoment, ...]
    exits: tuple[WorkerExits, ...]
    stacks: tuple[Path, ...]
    progress: tuple[ReportedProgress, ...]
    requeues: tuple[ReportedMoment, ...]
    nodes: tuple[NodeLine, ...]
    plan: PlanView | None
    unreadable: tuple[str, ...]


def make_report(
    history: History,
    blames: Mapping[int, RootCauseView],
    sizes: Mapping[Path, int],
    *,
    now: float,
    zone: tzinfo | None = None,
    stacks: Sequence[Path] = (),
) -> Report:
    """Make a report.

    Args:
        history: what happened.
        blames: the root causes, by attempt.
        sizes: which of the files that `worker_exits.paths` names are there, and how large they are.
        now: seconds since the epoch.
        zone: what local time is; None for this machine's.
        stacks: directories with stacks.
    """
    guilty = {number: blame.ranks for number, blame in blames.items()}
    times = timeline.make_timeline(history, guilty)
    begin = _begin(history, times)
    told = chronology.make_chronology(history, times, blames)
    return Report(
        path=history.path,
        name=history.path.name,
        written=date_and_time(now, zone),
        zone=zone_name(begin or now, zone),
        version=__version__,
        verdict=job_verdict.judge_job(history, now, zone),
        facts=_facts(history, times, begin, zone),
        advice=_sentence(one_line(nodes_to_exclude.bad_nodes_advice(nodes_to_exclude.find_bad_nodes(history)), 1000)),
        root=_root(history, blames, sizes),
        overview=timeline_shapes.draw_overview(times, zone),
        every=timeline_shapes.draw_every_rank(times, zone),
        attempts=_attempts(history, times, blames, zone),
        story=tuple(_moment(entry, begin, zone) for entry in told),
        exits=worker_exits.make_exits(history, times.spans, guilty, sizes),
        stacks=tuple(stacks),
        progress=_progress(history.marks, zone),
        requeues=_requeues(history, begin, zone),
        nodes=_nodes(history),
        plan=plan_comparison.compare_plans(history.runs),
        unreadable=_unreadable(history.unreadable),
    )


def _begin(history: History, times: Timeline) -> float | None:
    begun = (sane(run.begin) for run in history.runs)
    return min([*(time for time in begun if time is not None), *(span.begin for span in times.spans)], default=None)


def _facts(history: History, times: Timeline, begin: float | None, zone: tzinfo | None) -> tuple[ReportedFact, ...]:
    last = history.last_attempt
    left = (sane(run.end) for run in history.runs)
    ends = [*(time for time in left if time is not None), *(span.end for span in times.spans)]
    running = sum(span.end - span.begin for span in times.spans)
    found = []
    if last is not None:
        first = next(attempt for attempt in history.attempts if attempt.run == last.run)
        grown = f" ({first.world_size:,} at first)" if first.world_size != last.world_size else ""
        found.append(ReportedFact("Ranks", f"{last.world_size:,}{grown}"))
        found.append(ReportedFact("Nodes", f"{len(last.hosts):,}: {formatting.fold_hosts(last.hosts)}"))
        found += _others(node_states.node_states(history))
        found.append(ReportedFact("Attempts", f"{len(history.attempts):,}"))
    if history.requeues:
        found.append(ReportedFact("Requeues", f"{len(history.requeues):,}"))
    if begin is not None:
        found.append(ReportedFact("Began", date_and_time(begin, zone)))
    if ends and begin is not None:
        found.append(
            ReportedFact(
                "Last seen" if any(span.open for span in times.spans) else "Ended", date_and_time(max(ends), zone)
            )
        )
        found.append(ReportedFact("Took", duration(max(ends) - begin)))
        if max(ends) - begin - running > 0.05 * (max(ends) - begin):
            found.append(ReportedFact("Workers ran", duration(running)))
    return tuple(found)


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def _others(fleet: NodeStates) -> list[ReportedFact]:
    """The nodes that have no workers, by why."""
    named = (("To spare", fleet.spares), ("Lost", fleet.lost), ("Back", fleet.waiting), ("Drained", fleet.drained))
    return [ReportedFact(name, f"{len(hosts):,}: {formatting.fold_hosts(hosts)}") for name, hosts in named if hosts]


def _root(history: History, blames: Mapping[int, RootCauseView], sizes: Mapping[Path, int]) -> ReportedCause | None:
    """The root cause of the last attempt that failed, and how often it was the same."""
    if not blames:
        return None
    last = max(blames)
    blame = blames[last]
    same = ranges.fold(number for number, other in blames.items() if other.what == blame.what and number != last)
    past = last != history.attempts[-1].number or history.attempts[-1].ending == "restart"
    return ReportedCause(
        blame,
        f"Why attempt {last} failed" if past else "Root cause",
        worker_exits.files_of(blame.first, sizes) if blame.first is not None else None,
        f"The same happened in attempt{'' if same.isdecimal() else 's'} {same}." if same else "",
        past,
    )


def _attempts(
    history: History, times: Timeline, blames: Mapping[int, RootCauseView], zone: tzinfo | None
) -> tuple[AttemptLine, ...]:
    spans = {span.number: span for span in times.spans}
    after = {entry.attempt: entry for entry in history.requeues}
    spares = {
        roll.attempt: f"; to spare: {formatting.fold_hosts(roll.spares)}" for roll in history.rolls if roll.spares
    }
    found = []
    for attempt in history.attempts:
        span = spans.get(attempt.number)
        blame = blames.get(attempt.number)
        said = chronology.attempt_ending(attempt, blame.headline if blame is not None else "")
        is_open = span is not None and span.open
        found.append(
            AttemptLine(
                attempt.number,
                date_and_time(attempt.begin, zone),
                duration(span.end - span.begin) if span is not None else "",
                f"{attempt.world_size:,}",
                formatting.fold_hosts(attempt.hosts) + spares.get(attempt.number, ""),
                "no end recorded" if is_open else said or "nobody recorded how it ended",
                _tone(attempt, is_open=is_open),
                after[attempt.number].reason if attempt.number in after else "",
            )
        )
    if len(found) > _MOST_ATTEMPTS:
        half = _MOST_ATTEMPTS // 2
        gap = AttemptLine(None, "", "", "", "", f"{len(found) - 2 * half:,} attempts are left out here", "plain", "")
        found = [*found[:half], gap, *found[-half:]]
    return tuple(found)


def _tone(attempt: Attempt, *, is_open: bool) -> str:
    if is_open:
        return "plain"
    return "good" if attempt.ending == "done" else "warn" if attempt.signal else "bad"


def _moment(entry: chronology.ChronologyEntry, begin: float | None, zone: tzinfo | None) -> ReportedMoment:
    after = f"+{duration(entry.time - begin)}" if entry.time is not None and begin is not None else ""
    return ReportedMoment(date_and_time(entry.time, zone), after, entry.tone, entry.text)


def _requeues(history: History, begin: float | None, zone: tzinfo | None) -> tuple[ReportedMoment, ...]:
    found = []
    for entry in history.requeues:
        parts = [
            f"after attempt {entry.attempt}",
            one_line(entry.cause),
            f"step {number(entry.step)}" if entry.step is not None else "",
            "" if entry.counted else "not counted",
        ]
        after = f"+{duration(entry.time - begin)}" if begin is not None else ""
        text = f"{entry.reason}: {', '.join(filter(None, parts))}"
        found.append(ReportedMoment(date_and_time(entry.time, zone), after, "warn", text))
    return tuple(found)


def _progress(marks: Sequence[ProgressMark], zone: tzinfo | None) -> tuple[ReportedProgress, ...]:
    """The mark of the rank that came furthest, and of the one that is furthest behind, if they differ."""
    if not marks:
        return ()
    ordered = sorted(marks, key=lambda mark: (mark.attempt, -1.0 if mark.step is None else mark.step))
    least, most = ordered[0], ordered[-1]
    shown = [most] if (least.attempt, least.step) == (most.attempt, most.step) else [most, least]
    return tuple(_progressed(mark, marks, zone) for mark in shown)


def _progressed(mark: ProgressMark, marks: Sequence[ProgressMark], zone: tzinfo | None) -> ReportedProgress:
    like_it = [other.rank for other in marks if (other.attempt, other.step) == (mark.attempt, mark.step)]
    who = formatting.fold_ranks(like_it)
    part = min(1.0, max(0.0, mark.step / mark.total)) if mark.step is not None and mark.total else None
    step = f"step {number(mark.step)}" if mark.step is not None else "a mark without a step"
    total = f" of {number(mark.total)}" if mark.total else ""
    percent = f" ({part:.0%})" if part is not None else ""
    text = f"{step}{total}{percent} in attempt {mark.attempt}, marked by {who} at {date_and_time(mark.time, zone)}"
    values = tuple(
        ReportedFact(name, value if isinstance(value, str) else number(value)) for name, value in mark.values.items()
    )
    return ReportedProgress(_sentence(text), part, values)


def _unreadable(lines: tuple[str, ...]) -> tuple[str, ...]:
    rest = len(lines) - _MOST_UNREADABLE
    return lines if rest <= 0 else (*lines[:_MOST_UNREADABLE], f"and {rest:,} more")


def _nodes(history: History) -> tuple[NodeLine, ...]:
    fleet = node_states.node_states(history)
    states = {state.host: failure_messages.slurms_word(state) for state in history.node_states}
    found = [NodeLine(host, one_line(why)) for host, why in fleet.drained.items()]
    alike: dict[str, list[str]] = {}
    for host in fleet.lost:
        alike.setdefault(f"was lost{f'; {states[host]}' if host in states else ''}", []).append(host)
    found += [NodeLine(formatting.fold_hosts(hosts), one_line(text)) for text, hosts in alike.items()]
    found += [NodeLine(host, "was lost and came back") for host in fleet.waiting]
    for node in history.nodes:
        if abs(node.offset) >= _CLOCK:
            ahead = "ahead of" if node.offset > 0 else "behind"
            text = f"its clock was {duration(abs(node.offset))} {ahead} that of the first node"
            found.append(NodeLine(node.host, f"{text}; times here are corrected"))
        if node.waiting:
            found.append(
                NodeLine(node.host, f"{formatting.fold_ranks(node.waiting)} hung in the kernel when last seen")
            )
    return tuple(found)
