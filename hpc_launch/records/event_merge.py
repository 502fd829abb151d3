"""Put the events of all nodes together: one story of runs, attempts and workers, by one clock. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set as AbstractSet
from dataclasses import dataclass, replace
from typing import Any

from hpc_launch import codec
from hpc_launch.codec import checked, natural
from hpc_launch.records import events, formatting, node_states
from hpc_launch.records.directory import JobDirectory
from hpc_launch.records.history_model import (
    Attempt,
    ClockOffset,
    Failure,
    Node,
    NodeEvent,
    NodeState,
    RecordedNotice,
    Roster,
    Run,
    Usage,
    Worker,
)
from hpc_launch.records.plan_record import PlanRecord
from hpc_launch.records.stack_traces import HANG

# What is said about nodes, and what it is called here.
_NODE_EVENTS = {
    events.NODE_MISSING: "missing",
    events.NODE_LOST: "lost",
    events.NODE_BACK: "back",
    events.NODE_DRAINED: "drained",
}


@dataclass(frozen=True)
class _EventFields:
    """What an event can say (`records.events`), of which most say little."""

    event: str
    time: float | None
    agent: int
    host: str
    # Of runs and attempts.
    pid: int
    run_id: str
    restart_count: int
    versions: Mapping[str, str]
    world_size: int
    offset: float | None
    waiting: tuple[int, ...]
    # Of workers.
    local_rank: int
    device: str
    exitcode: int | None
    told: str
    usage: Usage | None
    failure: Failure | None
    # Of ends.
    ending: str
    status: int | None
    cause: str
    signal: str
    by: str
    user: str
    hang: bool
    # Of nodes.
    hosts: str
    spares: str
    leader: str
    why: str
    attempt: int | None = checked(natural, None)
    first_attempt: int | None = checked(natural, None)
    rank: int | None = checked(natural, None)


_NOTHING = codec.salvage(_EventFields, {})


@dataclass(frozen=True)
class _NoticeFields:
    """What a node says of a notice signal; versions before `told` and `waiting` passed it on to all workers."""

    signal: str
    number: int
    told: int = 1
    waiting: int = 0


@dataclass(frozen=True)
class _Event:
    """An event whose time is the leader's."""

    time: float
    host: str
    attempt: int | None
    run: int
    offset: float
    said: _EventFields
    facts: Mapping[str, Any]

    @property
    def kind(self) -> str:
        """Its name."""
        return self.said.event


class MergedEvents:
    """The events of a job, a node at a time."""

    def __init__(self, job: JobDirectory) -> None:
        self._job = job
        self._events: list[_Event] = []
        self._nodes: list[Node] = []

    def add(self, host: str, lines: Sequence[Mapping[str, Any]]) -> None:
        """Take the events of a node, in the order in which they were written."""
        by_agent: dict[int, list[_Written]] = {}
        for facts in lines:
            said = codec.salvage(_EventFields, facts)
            if said.event and said.time is not None:
                by_agent.setdefault(said.agent, []).append((said, facts))
        found = [event for mine in by_agent.values() for event in _timed(host, mine)]
        self._events.extend(found)
        name = next((event.host for event in found), host)
        offsets = [clock.offset for clock in self._clocks(found)]
        beats = [event for event in found if event.kind == events.HEARTBEAT]
        waiting = {rank for agent in by_agent for rank in _last(beats, agent)}
        last = max((event.time for event in found), default=None)
        self._nodes.append(Node(name, last, offsets[-1] if offsets else 0.0, tuple(sorted(waiting))))

    def nodes(self) -> tuple[Node, ...]:
        """The nodes, by name."""
        return tuple(sorted(self._nodes, key=lambda node: node.host))

    def runs(self, plans: Mapping[int, PlanRecord]) -> tuple[Run, ...]:
        """The runs.

        Args:
            plans: the plans that could be read, by the first attempt of their runs.
        """
        mine: dict[int, list[_Event]] = {first: [] for first in plans}
        for event in self._events:
            mine.setdefault(event.run, []).append(event)
        last = {roll.run: roll.members for roll in self.rolls()}
        return tuple(
            _run(first, plans.get(first, PlanRecord()), mine[first], last.get(first)) for first in sorted(mine)
        )

    def attempts(self) -> tuple[Attempt, ...]:
        """The attempts, by number."""
        mine: dict[int, list[_Event]] = {}
        for event in self._events:
            if event.attempt is not None:
                mine.setdefault(event.attempt, []).append(event)
        return tuple(self._attempt(number, of) for number, of in sorted(mine.items()))

    def node_events(self) -> tuple[NodeEvent, ...]:
        """What has become of nodes, by time."""
        return node_states.node_events([self._node_event(event) for event in self._of(*_NODE_EVENTS)], self.rolls())

    @staticmethod
    def _node_event(event: _Event) -> NodeEvent:
        kind, said = _NODE_EVENTS[event.kind], event.said
        return NodeEvent(event.time, event.attempt, kind, said.hosts, event.host, said.why, event.run)

    def node_states(self) -> tuple[NodeState, ...]:
        """What Slurm has said of lost nodes, by time."""
        said = [codec.salvage(NodeState, event.facts, time=event.time) for event in self._of(events.NODE_STATE)]
        return node_states.known_states(said, self.node_events())

    def rolls(self) -> tuple[Roster, ...]:
        """Who took part in each attempt, where leaders have said so: of two that did, the later one's word counts."""
        found = {}
        for event in self._of(events.NODES):
            if event.attempt is not None:
                said = event.said
                hosts, spares = formatting.unfold_hosts(said.hosts), formatting.unfold_hosts(said.spares)
                found[event.attempt] = Roster(event.time, event.attempt, event.run, hosts, spares, said.leader)
        return tuple(roll for _, roll in sorted(found.items()))

    def notices(self) -> tuple[RecordedNotice, ...]:
        """The notice signals, by time: what several nodes say of one is put together."""
        said: dict[tuple[int | None, str, int], list[tuple[_Event, _NoticeFields]]] = {}
        for event in self._of(events.NOTICE):
            fields = codec.salvage(_NoticeFields, event.facts)
            said.setdefault((event.attempt, fields.signal, fields.number), []).append((event, fields))
        return tuple(_notice(*which, found) for which, found in said.items())

    def clocks(self) -> tuple[ClockOffset, ...]:
        """The measurements of clocks."""
        return self._clocks(self._of(events.CLOCK))

    @staticmethod
    def _clocks(found: Iterable[_Event]) -> tuple[ClockOffset, ...]:
        measured = (event for event in found if event.kind == events.CLOCK)
        return tuple(
            codec.salvage(ClockOffset, event.facts, host=event.host, attempt=event.attempt) for event in measured
        )

    def _of(self, *kinds: str) -> list[_Event]:
        return sorted((event for event in self._events if event.kind in kinds), key=lambda event: event.time)

    def _attempt(self, number: int, mine: Sequence[_Event]) -> Attempt:
        begun = [event for event in mine if event.kind == events.ATTEMPT]
        ends = [event for event in mine if event.kind == events.ROUND_ENDED]
        # Where the leader was lost there is no common end: each agent ends its run by itself.
        left = [event for event in mine if event.kind == events.RUN_ENDED and event.said.status]
        ends = ends or left
        end = min(ends, key=lambda event: event.time) if ends else None
        said = end.said if end is not None else _NOTHING
        told = [event.said for event in sorted(mine, key=lambda event: event.time) if event.kind == events.JOB_ENDING]
        workers = self._workers(number, mine)
        sizes = [event.said.world_size for event in begun]
        return Attempt(
            number=number,
            run=min((event.run for event in mine), default=0),
            world_size=max([*sizes, len(workers)]),
            hosts=tuple(sorted({event.host for event in [*begun]} | {worker.host for worker in workers})),
            begin=min((event.time for event in begun or mine), default=None),
            end=_end(ends, workers),
            ending=said.ending or ("failed" if end is not None else ""),
            status=said.status or 0,
            cause=said.cause,
            signal=said.signal,
            by=said.by or (end.host if end is not None else ""),
            workers=workers,
            decided=end.time if end is not None else None,
            # Versions before this field have the first words only.
            hang=said.hang or said.cause.startswith(HANG),
            job_ending=told[-1].ending if told else "",
            user=next((one.user for one in reversed(told) if one.user), ""),
        )

    def _workers(self, attempt: int, mine: Iterable[_Event]) -> tuple[Worker, ...]:
        started: dict[int, _Event] = {}
        ended: dict[int, _Event] = {}
        for event in mine:
            if event.said.rank is not None and event.kind == events.WORKER_STARTED:
                started[event.said.rank] = event
            elif event.said.rank is not None and event.kind == events.WORKER_ENDED:
                ended[event.said.rank] = event
        return tuple(
            self._worker(attempt, rank, started.get(rank), ended.get(rank)) for rank in sorted({*started, *ended})
        )

    def _worker(self, attempt: int, rank: int, started: _Event | None, ended: _Event | None) -> Worker:
        event = started or ended
        assert event is not None  # noqa: S101 - the rank comes from one of them
        said, end = event.said, ended.said if ended is not None else _NOTHING
        return Worker(
            rank=rank,
            host=event.host,
            agent=said.agent,
            local_rank=said.local_rank,
            device=said.device,
            pid=said.pid,
            started=started.time if started is not None else None,
            ended=ended.time if ended is not None else None,
            exitcode=end.exitcode,
            told=end.told,
            usage=end.usage,
            failure=_by_leader(end.failure, ended.offset if ended is not None else 0.0),
            files=self._job.rank(attempt, event.host, rank),
        )


# An event as it was written: what is understood of it, and all of it.
_Written = tuple[_EventFields, Mapping[str, Any]]


def _timed(host: str, lines: Sequence[_Written]) -> list[_Event]:
    """The events of one agent number, each with what holds for it: its run, its attempt, how far the clock was off.

    Until an agent has measured its clock in a run, the first measurement of that run is the best guess.
    """
    runs: list[list[_Written]] = [[]]
    for said, facts in lines:
        if said.event == events.RUN and runs[-1]:
            runs.append([])
        runs[-1].append((said, facts))
    return [event for run in runs for event in _timed_run(host, run)]


def _timed_run(host: str, written: Sequence[_Written]) -> list[_Event]:
    lines = [said for said, _ in written]
    clocks = (said.offset for said in lines if said.event == events.CLOCK)
    offset = next((measured for measured in clocks if measured is not None), 0.0)
    host = next((said.host for said in lines if said.host), host)
    numbers = [said.attempt for said in lines if said.attempt is not None]
    begins = next((said.first_attempt for said in lines if said.first_attempt is not None), None)
    run = begins if begins is not None else min(numbers, default=0)
    attempt: int | None = None
    found = []
    for said, facts in written:
        attempt = attempt if said.attempt is None else said.attempt
        if said.event == events.CLOCK:
            offset = offset if said.offset is None else said.offset
        found.append(_Event((said.time or 0.0) - offset, host, attempt, run, offset, said, facts))
    return found


def _last(beats: Sequence[_Event], agent: int) -> tuple[int, ...]:
    mine = [event for event in beats if event.said.agent == agent]
    return mine[-1].said.waiting if mine else ()


def _run(number: int, plan: PlanRecord, mine: Sequence[_Event], members: AbstractSet[str] | None) -> Run:
    """A run. Of one that may lose nodes it is those who took part in the last attempt that know how it ended."""
    begun = [event for event in mine if event.kind == events.RUN]
    stayed = [event for event in mine if members is None or event.host in members]
    started = [event for event in stayed if event.kind == events.RUN]
    left = [event for event in stayed if event.kind == events.RUN_ENDED]
    told = begun[0].said if begun else _NOTHING
    statuses = [status for event in left if (status := event.said.status) is not None]
    return Run(
        first_attempt=number,
        plan=plan,
        versions=told.versions,
        run_id=told.run_id or plan.run_id,
        restart_count=told.restart_count,
        begin=min((event.time for event in begun or mine), default=None),
        end=max(event.time for event in left) if left and len(left) >= len(started) else None,
        status=max(statuses, default=None),
        agents=tuple((event.host, event.said.pid) for event in begun),
    )


def _notice(
    attempt: int | None, signal: str, number: int, said: Sequence[tuple[_Event, _NoticeFields]]
) -> RecordedNotice:
    """What nodes have said of one notice signal: each as often as workers got it."""
    unheard = {event.host for event, fields in said if fields.waiting} - {
        event.host for event, fields in said if fields.told
    }
    hosts = {event.host for event, _ in said} - unheard
    first = min(event.time for event, _ in said)
    return RecordedNotice(first, attempt, signal, number, tuple(sorted(hosts)), tuple(sorted(unheard)))


def _end(ends: Sequence[_Event], workers: Sequence[Worker]) -> float | None:
    if not ends:
        return None
    return max([*(event.time for event in ends), *(worker.ended for worker in workers if worker.ended is not None)])


def _by_leader(failure: Failure | None, offset: float) -> Failure | None:
    """A failure with the time of the leader, whose clock was that many seconds behind; None where nothing is known."""
    if failure is None or failure.exception is None or failure.exception.time is None:
        return failure if failure != Failure() else None
    return replace(failure, exception=replace(failure.exception, time=failure.exception.time - offset))
