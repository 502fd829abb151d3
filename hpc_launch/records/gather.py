"""Put the events of all nodes together: one story of runs, attempts and workers, by one clock. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set as AbstractSet
from dataclasses import dataclass
from typing import Any

from hpc_launch.records import events, members, words
from hpc_launch.records.directory import JobDirectory
from hpc_launch.records.model import (
    Attempt,
    Clock,
    Failure,
    Node,
    NodeEvent,
    NodeState,
    Notice,
    Raised,
    Roll,
    Run,
    Usage,
    Worker,
)
from hpc_launch.records.parsing import Fields
from hpc_launch.records.stacks import HANG

# What is said about nodes, and what it is called here.
_NODE_EVENTS = {
    events.NODE_MISSING: "missing",
    events.NODE_LOST: "lost",
    events.NODE_BACK: "back",
    events.NODE_DRAINED: "drained",
}


@dataclass(frozen=True)
class _Event:
    """An event whose time is the leader's."""

    time: float
    kind: str
    host: str
    agent: int
    attempt: int | None
    run: int
    fields: Fields
    offset: float


class Gathered:
    """The events of a job, a node at a time."""

    def __init__(self, job: JobDirectory) -> None:
        self._job = job
        self._events: list[_Event] = []
        self._nodes: list[Node] = []

    def add(self, host: str, lines: Sequence[Fields]) -> None:
        """Take the events of a node, in the order in which they were written."""
        by_agent: dict[int, list[Fields]] = {}
        for fields in lines:
            if fields.text("event") and fields.number("time") is not None:
                by_agent.setdefault(fields.whole("agent"), []).append(fields)
        found = [event for agent, mine in by_agent.items() for event in _timed(host, agent, mine)]
        self._events.extend(found)
        name = next((event.host for event in found), host)
        offsets = [event.fields.number("offset") or 0.0 for event in found if event.kind == events.CLOCK]
        beats = [event for event in found if event.kind == events.HEARTBEAT]
        waiting = {rank for agent in by_agent for rank in _last(beats, agent)}
        last = max((event.time for event in found), default=None)
        self._nodes.append(Node(name, last, offsets[-1] if offsets else 0.0, tuple(sorted(waiting))))

    def nodes(self) -> tuple[Node, ...]:
        """The nodes, by name."""
        return tuple(sorted(self._nodes, key=lambda node: node.host))

    def runs(self, plans: Mapping[int, Mapping[str, Any]]) -> tuple[Run, ...]:
        """The runs.

        Args:
            plans: the plans that could be read, by the first attempt of their runs.
        """
        mine: dict[int, list[_Event]] = {first: [] for first in plans}
        for event in self._events:
            mine.setdefault(event.run, []).append(event)
        last = {roll.run: roll.members for roll in self.rolls()}
        return tuple(_run(first, plans.get(first, {}), mine[first], last.get(first)) for first in sorted(mine))

    def attempts(self) -> tuple[Attempt, ...]:
        """The attempts, by number."""
        mine: dict[int, list[_Event]] = {}
        for event in self._events:
            if event.attempt is not None:
                mine.setdefault(event.attempt, []).append(event)
        return tuple(self._attempt(number, of) for number, of in sorted(mine.items()))

    def node_events(self) -> tuple[NodeEvent, ...]:
        """What has become of nodes, by time."""
        return members.told([self._node_event(event) for event in self._of(*_NODE_EVENTS)], self.rolls())

    @staticmethod
    def _node_event(event: _Event) -> NodeEvent:
        hosts, why = event.fields.text("hosts"), event.fields.text("why")
        return NodeEvent(event.time, event.attempt, _NODE_EVENTS[event.kind], hosts, event.host, why, event.run)

    def node_states(self) -> tuple[NodeState, ...]:
        """What Slurm has said of lost nodes, by time."""
        said = [self._node_state(event) for event in self._of(events.NODE_STATE)]
        return members.known_states(said, self.node_events())

    @staticmethod
    def _node_state(event: _Event) -> NodeState:
        fields = event.fields
        return NodeState(
            time=event.time,
            host=fields.text("host"),
            state=fields.text("state"),
            gone=fields.values.get("gone") is True,
            reason=fields.text("reason"),
            since=fields.number("since"),
            booted=fields.number("booted"),
            waited=fields.number("waited") or 0.0,
            last=fields.values.get("last") is True,
        )

    def rolls(self) -> tuple[Roll, ...]:
        """Who took part in each attempt, where leaders have said so: of two that did, the later one's word counts."""
        found = {}
        for event in self._of(events.NODES):
            if event.attempt is not None:
                hosts, spares = (words.unfold_hosts(event.fields.text(name)) for name in ("hosts", "spares"))
                leader = event.fields.text("leader")
                found[event.attempt] = Roll(event.time, event.attempt, event.run, hosts, spares, leader)
        return tuple(roll for _, roll in sorted(found.items()))

    def notices(self) -> tuple[Notice, ...]:
        """The notice signals, by time."""
        return tuple(
            Notice(event.time, event.attempt, event.host, event.fields.text("signal"), event.fields.whole("number"))
            for event in self._of(events.NOTICE)
        )

    def clocks(self) -> tuple[Clock, ...]:
        """The measurements of clocks."""
        return tuple(
            Clock(event.host, event.attempt, event.fields.number("offset") or 0.0, event.fields.number("error") or 0.0)
            for event in self._of(events.CLOCK)
        )

    def _of(self, *kinds: str) -> list[_Event]:
        return sorted((event for event in self._events if event.kind in kinds), key=lambda event: event.time)

    def _attempt(self, number: int, mine: Sequence[_Event]) -> Attempt:
        begun = [event for event in mine if event.kind == events.ATTEMPT]
        ends = [event for event in mine if event.kind == events.ROUND_ENDED]
        # Where the leader was lost there is no common end: each agent ends its run by itself.
        left = [event for event in mine if event.kind == events.RUN_ENDED and event.fields.whole("status")]
        ends = ends or left
        end = min(ends, key=lambda event: event.time) if ends else None
        said = end.fields if end is not None else Fields({})
        workers = self._workers(number, mine)
        sizes = [event.fields.whole("world_size") for event in begun]
        return Attempt(
            number=number,
            run=min((event.run for event in mine), default=0),
            world_size=max([*sizes, len(workers)]),
            hosts=tuple(sorted({event.host for event in [*begun]} | {worker.host for worker in workers})),
            begin=min((event.time for event in begun or mine), default=None),
            end=_end(ends, workers),
            ending=said.text("ending") or ("failed" if end is not None else ""),
            status=said.whole("status"),
            cause=said.text("cause"),
            signal=said.text("signal"),
            by=said.text("by") or (end.host if end is not None else ""),
            workers=workers,
            decided=end.time if end is not None else None,
            # Versions before this field have the first words only.
            hang=said.values.get("hang") is True or said.text("cause").startswith(HANG),
        )

    def _workers(self, attempt: int, mine: Iterable[_Event]) -> tuple[Worker, ...]:
        started: dict[int, _Event] = {}
        ended: dict[int, _Event] = {}
        for event in mine:
            rank = event.fields.place("rank")
            if rank is not None and event.kind == events.WORKER_STARTED:
                started[rank] = event
            elif rank is not None and event.kind == events.WORKER_ENDED:
                ended[rank] = event
        return tuple(
            self._worker(attempt, rank, started.get(rank), ended.get(rank)) for rank in sorted({*started, *ended})
        )

    def _worker(self, attempt: int, rank: int, started: _Event | None, ended: _Event | None) -> Worker:
        known = started or ended
        assert known is not None  # noqa: S101 - the rank comes from one of them
        end = ended.fields if ended is not None else Fields({})
        code = end.number("exitcode")
        return Worker(
            rank=rank,
            host=known.host,
            agent=known.agent,
            local_rank=known.fields.whole("local_rank"),
            device=known.fields.text("device"),
            pid=known.fields.whole("pid"),
            started=started.time if started is not None else None,
            ended=ended.time if ended is not None else None,
            exitcode=None if code is None else int(code),
            told=end.text("told"),
            usage=_usage(end.inner("usage")),
            failure=failure(end.inner("failure"), ended.offset if ended is not None else 0.0),
            files=self._job.rank(attempt, known.host, rank),
        )


def _timed(host: str, agent: int, lines: Sequence[Fields]) -> list[_Event]:
    """The events of one agent number, each with what holds for it: its run, its attempt, how far the clock was off.

    Until an agent has measured its clock in a run, the first measurement of that run is the best guess.
    """
    runs: list[list[Fields]] = [[]]
    for fields in lines:
        if fields.text("event") == events.RUN and runs[-1]:
            runs.append([])
        runs[-1].append(fields)
    return [event for run in runs for event in _timed_run(host, agent, run)]


def _timed_run(host: str, agent: int, lines: Sequence[Fields]) -> list[_Event]:
    clocks = (fields.number("offset") for fields in lines if fields.text("event") == events.CLOCK)
    offset = next((measured for measured in clocks if measured is not None), 0.0)
    host = next((name for fields in lines if (name := fields.text("host"))), host)
    numbers = [said for fields in lines if (said := fields.place("attempt")) is not None]
    begins = next((said for fields in lines if (said := fields.place("first_attempt")) is not None), None)
    run = begins if begins is not None else min(numbers, default=0)
    attempt: int | None = None
    found = []
    for fields in lines:
        kind = fields.text("event")
        own = fields.place("attempt")
        attempt = attempt if own is None else own
        if kind == events.CLOCK:
            measured = fields.number("offset")
            offset = offset if measured is None else measured
        time = (fields.number("time") or 0.0) - offset
        found.append(_Event(time, kind, host, agent, attempt, run, fields, offset))
    return found


def _last(beats: Sequence[_Event], agent: int) -> tuple[int, ...]:
    mine = [event for event in beats if event.agent == agent]
    return mine[-1].fields.wholes("waiting") if mine else ()


def _run(number: int, plan: Mapping[str, Any], mine: Sequence[_Event], members: AbstractSet[str] | None) -> Run:
    """A run. Of one that may lose nodes it is those who took part in the last attempt that know how it ended."""
    begun = [event for event in mine if event.kind == events.RUN]
    stayed = [event for event in mine if members is None or event.host in members]
    started = [event for event in stayed if event.kind == events.RUN]
    left = [event for event in stayed if event.kind == events.RUN_ENDED]
    told = begun[0].fields if begun else Fields({})
    statuses = [int(status) for event in left if (status := event.fields.number("status")) is not None]
    versions = {name: value for name, value in told.inner("versions").values.items() if isinstance(value, str)}
    return Run(
        first_attempt=number,
        plan=plan,
        versions=versions,
        run_id=told.text("run_id") or Fields(plan).text("run_id"),
        restart_count=told.whole("restart_count"),
        begin=min((event.time for event in begun or mine), default=None),
        end=max(event.time for event in left) if left and len(left) >= len(started) else None,
        status=max(statuses, default=None),
        agents=tuple((event.host, event.fields.whole("pid")) for event in begun),
    )


def _end(ends: Sequence[_Event], workers: Sequence[Worker]) -> float | None:
    if not ends:
        return None
    return max([*(event.time for event in ends), *(worker.ended for worker in workers if worker.ended is not None)])


def _usage(fields: Fields) -> Usage | None:
    if not fields.values:
        return None
    return Usage(fields.number("user") or 0.0, fields.number("system") or 0.0, fields.whole("max_rss"))


def failure(fields: Fields, offset: float = 0.0) -> Failure | None:
    """Read the failure of an event; None without one.

    Args:
        fields: it.
        offset: how many seconds the clock was ahead of the leader's.
    """
    if not fields.values:
        return None
    raised = fields.inner("exception")
    time = raised.number("time")
    exception = Raised(
        type=raised.text("type"),
        message=raised.text("message"),
        where=raised.text("where"),
        source=raised.text("source"),
        time=None if time is None else time - offset,
    )
    return Failure(
        exception=exception if exception.type else None,
        lines=fields.texts("lines"),
        oom=fields.text("oom"),
        gpu=fields.texts("gpu"),
        hung=fields.text("hung"),
        log=fields.text("log"),
    )
