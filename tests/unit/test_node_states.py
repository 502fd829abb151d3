"""Which nodes were lost, came back, or are bad: by what agents have said, of which not all is right."""

from __future__ import annotations

from pathlib import Path

from hpc_launch.records import formatting, node_states
from hpc_launch.records.history_model import Attempt, History, NodeEvent, Roster, Run
from hpc_launch.records.node_states import NodeStates
from hpc_launch.records.plan_record import PlanRecord

ALL = ("gpu1", "gpu2", "gpu3", "gpu4")


def roll(attempt: int, hosts: str, spares: str = "", leader: str = "gpu1", run: int = 0) -> Roster:
    """Who takes part in an attempt that begins at ten times its number."""
    return Roster(10.0 * attempt, attempt, run, formatting.unfold_hosts(hosts), formatting.unfold_hosts(spares), leader)


def said(time: float, kind: str, hosts: str, by: str = "gpu1", text: str = "") -> NodeEvent:
    """What an agent has said in the attempt that runs at that time."""
    return NodeEvent(time, int(time // 10), kind, hosts, by, text)


def short(events: tuple[NodeEvent, ...]) -> list[tuple[float, str, str]]:
    """What is interesting about events."""
    return [(event.time, event.kind, event.hosts) for event in events]


def history(rolls: tuple[Roster, ...], *events: NodeEvent) -> History:
    """A run with these attempts."""
    attempts = tuple(
        Attempt(one.attempt, one.run, len(one.hosts), one.hosts, one.time, None, "", 0, "", "", "", ()) for one in rolls
    )
    runs = tuple(Run(first, PlanRecord(), {}, "", 0, 0.0, None, None) for first in sorted({one.run for one in rolls}))
    return History(Path("job"), runs, attempts, node_events=node_states.node_events(events, rolls), rolls=rolls)


def test_who_takes_part_no_more_was_lost() -> None:
    """Of two that are lost at once only one is said to be, before the next attempt shows it."""
    rolls = (roll(0, "gpu[1-4]"), roll(1, "gpu[1-2]"))
    found = node_states.node_events([said(8, "lost", "gpu3")], rolls)

    assert short(found) == [(8, "lost", "gpu3"), (10, "lost", "gpu4")]
    assert [event.attempt for event in found] == [0, 0]


def test_of_a_parted_network_the_side_that_went_on_is_right() -> None:
    """Each side says that the other one is lost; the first node's was the one that stopped, and another one leads."""
    rolls = (roll(0, "gpu[1-4]"), roll(1, "gpu[2-4]", leader="gpu2"))
    found = node_states.node_events([said(7, "lost", "gpu[2-4]", "gpu1"), said(8, "lost", "gpu1", "gpu3")], rolls)

    assert short(found) == [(8, "lost", "gpu1"), (10, "leads", "gpu2")]
    assert found[1].text == "gpu1"


def test_what_was_said_stands_where_nothing_followed() -> None:
    """The run ended, or leaders say nothing of who takes part."""
    lost = said(8, "lost", "gpu[2-4]", "gpu1")

    assert node_states.node_events([lost], (roll(0, "gpu[1-4]"),)) == (lost,)
    assert node_states.node_events([lost], (roll(0, "gpu[1-4]"), roll(1, "gpu1", run=1))) == (lost,)
    assert node_states.node_events([lost], ()) == (lost,)


def test_who_comes_back() -> None:
    """At once, or later and waiting for the next attempt, which is said once."""
    rolls = (roll(0, "gpu[1-4]"), roll(1, "gpu[1-4]"), roll(2, "gpu[1-3]"), roll(3, "gpu[1-4]"))
    words = [said(8, "lost", "gpu3"), said(19, "lost", "gpu4"), said(25, "back", "gpu4")]

    assert short(node_states.node_events(words, rolls)) == [
        (8, "lost", "gpu3"),
        (10, "back", "gpu3"),
        (19, "lost", "gpu4"),
        (25, "back", "gpu4"),
    ]


def test_the_fleet() -> None:
    """Who works, who is spare, who was lost, who waits, and who is bad: of the last run."""
    rolls = (
        roll(0, "gpu[1-8]", "gpu9"),
        roll(1, "gpu[1-4]", run=1),
        roll(2, "gpu[2-5]", "gpu[1,6]", run=1),
    )
    events = [
        said(5, "lost", "gpu8"),
        NodeEvent(15, 1, "drained", "gpu1", "gpu2", "is broken (Xid 79)", 1),
        NodeEvent(16, 1, "lost", "gpu7", "gpu2", run=1),
        NodeEvent(21, 2, "back", "gpu7", "gpu2", run=1),
        NodeEvent(22, 2, "lost", "gpu6", "gpu2", run=1),
        NodeEvent(23, 2, "lost", "gpu5", "gpu2", run=1),
    ]

    assert node_states.node_states(history(rolls, *events)) == NodeStates(
        working=("gpu2", "gpu3", "gpu4"),
        spares=("gpu1",),
        lost=("gpu5", "gpu6"),
        waiting=("gpu7",),
        drained={"gpu1": "is broken (Xid 79)"},
    )
    assert node_states.node_states(History(Path("job"))) == NodeStates()
    assert node_states.lost_in(history(rolls, *events), 2) == {"gpu5", "gpu6"}
