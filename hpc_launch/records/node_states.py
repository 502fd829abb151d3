"""Which nodes take part in a run, which were lost, came back, or are bad: by what leaders have said. Pure.

An agent that loses another one says that this is lost, and where a network is parted both sides say so. Right is the
side that went on, and what the leader of its next attempt says of who takes part: who did before and does not any more
was lost.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

from hpc_launch.records.formatting import fold_hosts, unfold_hosts
from hpc_launch.records.history_model import History, NodeEvent, NodeState, Roster

# What happens to several nodes within this time has one reason.
_SAME_SECONDS = 1.0


@dataclass(frozen=True)
class NodeStates:
    """The nodes of the last run, as they are or were in the end.

    Attributes:
        working: those with workers.
        spares: those without.
        lost: those that were lost and have not come back.
        waiting: those that have come back, and wait for the next attempt.
        drained: those that are bad, with why: words that go on with a node's name.
    """

    working: tuple[str, ...] = ()
    spares: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()
    waiting: tuple[str, ...] = ()
    drained: Mapping[str, str] = field(default_factory=dict)


def node_events(said: Sequence[NodeEvent], rolls: Sequence[Roster]) -> tuple[NodeEvent, ...]:
    """What has become of nodes, by time: what was said, as far as it has turned out to be right, and what follows.

    Nodes of which the same happened within a second are one event.

    Args:
        said: what agents have said, by time.
        rolls: who took part in each attempt, in order.
    """
    pairs = [(before, after) for before, after in pairwise(rolls) if before.run == after.run]
    found = [*_first_said(said, {before.attempt: after for before, after in pairs})]
    for before, after in pairs:
        found += _between(before, after, said)
    return tuple(_together(sorted(found, key=lambda event: event.time)))


def _first_said(said: Iterable[NodeEvent], following: Mapping[int, Roster]) -> Iterator[NodeEvent]:
    """What was said, and is right; several agents lose the same node."""
    seen: set[tuple[int | None, str]] = set()
    for event in said:
        hosts = [(event.attempt, host) for host in unfold_hosts(event.hosts)]
        if event.kind == "lost":
            new = [host for host in hosts if host not in seen] if _right(event, following) else []
            seen.update(new)
            if new:
                yield replace(event, hosts=fold_hosts(host for _, host in new))
        elif event.kind != "missing" or _went_on(event, following):
            seen.difference_update(hosts if event.kind == "back" else ())
            yield event


def _together(events: Iterable[NodeEvent]) -> list[NodeEvent]:
    """Events by time, those of a rack of nodes as one."""
    found: list[NodeEvent] = []
    for event in events:
        at = next((at for at, other in enumerate(found) if _alike(other, event)), None)
        if at is None:
            found.append(event)
        else:
            found[at] = replace(
                found[at], hosts=fold_hosts([*unfold_hosts(found[at].hosts), *unfold_hosts(event.hosts)])
            )
    return found


def _alike(one: NodeEvent, other: NodeEvent) -> bool:
    same = one.kind == other.kind in ("lost", "back") and one.attempt == other.attempt
    return same and abs(one.time - other.time) <= _SAME_SECONDS


def _right(event: NodeEvent, following: Mapping[int, Roster]) -> bool:
    """Whether a node was lost that somebody has lost: by the word of one who went on, or because it did not."""
    after = following.get(event.attempt) if event.attempt is not None else None
    return after is None or event.by in after.members or not after.members & {*unfold_hosts(event.hosts)}


def _went_on(event: NodeEvent, following: Mapping[int, Roster]) -> bool:
    """Whether who said it took part in the next attempt."""
    after = following.get(event.attempt) if event.attempt is not None else None
    return after is None or event.by in after.members


def _between(before: Roster, after: Roster, said: Sequence[NodeEvent]) -> Iterator[NodeEvent]:
    """What is known from two attempts that follow each other, and was not said."""
    mine = [event for event in said if event.attempt == before.attempt]
    noticed = {
        host
        for event in mine
        if event.kind == "lost" and _right(event, {before.attempt: after})
        for host in unfold_hosts(event.hosts)
    }
    returned = {host for event in mine if event.kind == "back" for host in unfold_hosts(event.hosts)}
    for host in sorted(before.members - after.members - noticed):
        yield NodeEvent(after.time, before.attempt, "lost", host, after.leader, run=before.run)
    for host in sorted((after.members - before.members | noticed & after.members) - returned):
        yield NodeEvent(after.time, after.attempt, "back", host, after.leader, run=before.run)
    if before.leader and after.leader and after.leader != before.leader:
        yield NodeEvent(after.time, after.attempt, "leads", after.leader, after.leader, before.leader, before.run)


def node_states(history: History) -> NodeStates:
    """The nodes of the last run."""
    if not history.runs:
        return NodeStates()
    run = history.runs[-1].first_attempt
    rolls = [roll for roll in history.rolls if roll.run == run]
    mine = [event for event in history.node_events if event.run == run]
    gone: dict[str, str] = {}
    for event in mine:
        if event.kind in ("lost", "back"):
            gone |= dict.fromkeys(unfold_hosts(event.hosts), event.kind)
    last = rolls[-1] if rolls else None
    attempts = [attempt for attempt in history.attempts if attempt.run == run]
    there = last.hosts if last is not None else attempts[-1].hosts if attempts else ()
    lost = {host for host, kind in gone.items() if kind == "lost"}
    back = {host for host, kind in gone.items() if kind == "back"}
    return NodeStates(
        working=tuple(host for host in there if host not in lost),
        spares=tuple(host for host in (last.spares if last is not None else ()) if host not in lost),
        lost=tuple(sorted(lost)),
        waiting=tuple(sorted(back - last.members if last is not None else back)),
        drained={host: event.text for event in mine if event.kind == "drained" for host in unfold_hosts(event.hosts)},
    )


def known_states(said: Sequence[NodeState], events: Sequence[NodeEvent]) -> tuple[NodeState, ...]:
    """What Slurm has said of nodes that were lost: who has stopped may have asked about others.

    Args:
        said: what was written down.
        events: what has become of nodes (`node_events`).
    """
    lost = [(event.time, {*unfold_hosts(event.hosts)}) for event in events if event.kind == "lost"]
    return tuple(
        state
        for state in said
        if any(state.host in hosts and time <= state.time - state.waited + _SAME_SECONDS for time, hosts in lost)
    )


def states_of(history: History, event: NodeEvent) -> tuple[NodeState, ...]:
    """What Slurm has said last of each node of a loss, before the node was lost another time."""
    hosts = {*unfold_hosts(event.hosts)}
    again = min(
        (
            other.time
            for other in history.node_events
            if other.kind == "lost" and other.time > event.time and hosts & {*unfold_hosts(other.hosts)}
        ),
        default=float("inf"),
    )
    last = {
        state.host: state
        for state in history.node_states
        if state.host in hosts and event.time <= state.time - state.waited + _SAME_SECONDS and state.time < again
    }
    return tuple(last[host] for host in sorted(last))


def lost_in(history: History, attempt: int) -> frozenset[str]:
    """The nodes that were lost in an attempt."""
    events = (event for event in history.node_events if event.kind == "lost" and event.attempt == attempt)
    return frozenset(host for event in events for host in unfold_hosts(event.hosts))
