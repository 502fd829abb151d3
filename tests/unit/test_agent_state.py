"""What an agent knows of its run, by what it hears."""

from __future__ import annotations

from pathlib import Path

import pytest

from hpc_launch.errors import RendezvousError
from hpc_launch.rendezvous.agent_state import AgentState
from hpc_launch.rendezvous.membership import Membership
from hpc_launch.rendezvous.messages import Ended, RoundEnd, RoundEnding, RoundPlan, RunState, Start
from hpc_launch.settings import Origin
from hpc_launch.world import of_nodes
from tests.unit.agents_support import config, configs

RESTART = RoundEnd(RoundEnding.RESTART.value, 0, "node1", 1, "it broke")
STOPPED = RoundEnd(RoundEnding.FAILED.value, 1, "node2", 143, "stopped by SIGTERM", "SIGTERM")
DONE = RoundEnd(RoundEnding.DONE.value, 1, "node2")


def state(tmp_path: Path, agent: int = 2, *, elastic: bool = True) -> AgentState:
    """Return what one of four agents knows at the beginning."""
    return AgentState(configs(config(tmp_path, 4, elastic=elastic, minimum=1))[agent])


def start(active: tuple[int, ...], number: int = 0, **changes: int) -> Start:
    """Return what a coordinator says when a round begins."""
    plan = RoundPlan("10.0.0.1", 20_000, (2,) * len(active), "12.0", 0, "12.0.0")
    hosts = tuple(f"node{agent + 1}" for agent in active)
    run = RunState(number, notices=changes)
    return Start(Membership(number + 1, (0, 1, 2, 3), "", active), hosts, 0, plan, run, {})


def test_a_round_gives_an_agent_its_rank_among_those_with_workers(tmp_path: Path) -> None:
    """In an elastic run they may be fewer than all."""
    one = state(tmp_path)
    one.begin(start((1, 2)))
    world = one.world(of_nodes(["node1", "node2", "node3", "node4"], 2, Origin.STEP))

    assert (one.round, one.rank, one.nodes, one.is_spare) == (0, 1, 2, False)
    assert (world.hosts, world.node_rank, world.agents) == (("node2", "node3"), 1, 2)
    assert one.known.agreed == Membership(1, (0, 1, 2, 3), "", (1, 2))


def test_a_spare_has_no_plan(tmp_path: Path) -> None:
    one = state(tmp_path)
    one.begin(start((0, 1)))

    assert (one.plan, one.is_spare, one.started.hosts) == (None, True, ("node1", "node2"))


def test_nothing_is_known_of_a_round_before_there_is_one(tmp_path: Path) -> None:
    one = state(tmp_path)

    with pytest.raises(RendezvousError, match="rendezvous"):
        _ = one.started


def test_notices_are_never_forgotten(tmp_path: Path) -> None:
    """An earlier word of the coordinator may come after this agent's own count."""
    one = state(tmp_path)
    one.note_notices({"SIGUSR1": 2})
    one.begin(start((0, 1, 2, 3), SIGUSR1=1, SIGUSR2=1))
    one.note_notices({"SIGUSR1": 1})

    assert one.run.notices == {"SIGUSR1": 2, "SIGUSR2": 1}


def test_that_all_have_begun_counts_for_the_round_that_it_is_said_of(tmp_path: Path) -> None:
    one = state(tmp_path)
    one.begin(start((0, 1, 2, 3), 1))
    begun = []
    for number in (0, 1):
        one.note_begun(number)
        begun.append(one.begun)
    one.begin(start((0, 1, 2, 3), 2))

    assert [*begun, one.begun] == [False, True, False]


def test_the_first_end_of_a_round_counts(tmp_path: Path) -> None:
    """What the coordinator says with it of the run is kept."""
    one = state(tmp_path)
    one.begin(start((0, 1, 2, 3)))
    one.note_end(Ended(0, DONE, RunState(0, spent=1)))
    one.note_end(Ended(0, STOPPED, RunState(0)))

    assert (one.end, one.is_closed, one.run.spent) == (DONE, True, 1)


def test_the_end_of_a_run_between_two_rounds_is_heard_by_who_waits_for_the_next(tmp_path: Path) -> None:
    """The round has ended for another attempt, and until the agent joins that is how it ended."""
    one = state(tmp_path)
    one.begin(start((0, 1, 2, 3)))
    one.note_end(Ended(0, RESTART, RunState(0)))
    one.note_end(Ended(0, STOPPED, RunState(0)))
    assert (one.end, one.is_closed) == (RESTART, False)
    one.wait_for_round()

    assert (one.end, one.start, one.plan) == (STOPPED, None, None)


@pytest.mark.parametrize(
    ("heard", "end"),
    [((), None), ((RESTART,), None), ((RESTART, STOPPED), STOPPED), ((DONE,), DONE), ((STOPPED,), STOPPED)],
)
def test_who_leaves_ends_the_run_unless_it_has_ended(
    tmp_path: Path, heard: tuple[RoundEnd, ...], end: RoundEnd | None
) -> None:
    one = state(tmp_path)
    one.begin(start((0, 1, 2, 3)))
    for said in heard:
        one.note_end(Ended(0, said, RunState(0)))
    one.leave()

    assert one.end == end
