"""The rendezvous of a run that may lose nodes, its agents in threads with real connections on loopback."""

from __future__ import annotations

import contextlib
import math
import select
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from torch.distributed.elastic.rendezvous import RendezvousInfo
from torch.distributed.elastic.rendezvous.api import RendezvousClosedError

from hpc_launch.errors import RendezvousError, RoundRefused
from hpc_launch.records import events
from hpc_launch.records.directory import JobDirectory
from hpc_launch.rendezvous import failure_detector, known_agents
from hpc_launch.rendezvous.handler import SlurmRendezvous, SpareReleased
from hpc_launch.rendezvous.messages import Message
from hpc_launch.settings import Origin
from hpc_launch.world import of_nodes
from tests.support import mentions, wait_for
from tests.unit.agents_support import (
    DEADLINE,
    Task,
    begin,
    callers,
    config,
    configs,
    connection_of,
    end_of,
    errors,
    finish,
    is_connected,
    server_of,
    together,
)

Group = list[SlurmRendezvous]


@pytest.fixture
def group(tmp_path: Path) -> Iterator[Callable[..., Group]]:
    """Return what makes the agents of a run, which are gone in the end."""
    made: Group = []

    def make(agents: int, **changes: Any) -> Group:
        usual = {"elastic": True, "minimum": 1, "node_timeout": 3.0}
        handlers = [SlurmRendezvous(one) for one in configs(config(tmp_path, agents, **{**usual, **changes}))]
        made.extend(handlers)
        return handlers

    yield make
    for handler in made:
        die(handler)


def die(handler: SlurmRendezvous) -> None:
    """Be killed: the kernel closes everything."""
    follower = handler._follower
    server, election, connection = follower.server, follower.search.election, follower.client.connection
    # First, for the thread that may be in it.
    follower.server = follower.search.election = follower.client.connection = None
    if election is not None:
        election.close()
    if server is not None:
        server.resign()
        server.close()
    if connection is not None:
        connection.close()


@contextlib.contextmanager
def frozen(handler: SlurmRendezvous, after: Callable[[], object] = lambda: None) -> Iterator[None]:
    """Let an agent be stopped, as by SIGSTOP, while nothing is asked of it here: it answers no calls.

    Args:
        handler: of the agent.
        after: what its server does before.
    """
    server = server_of(handler)
    assert server is not None
    thaw = threading.Event()

    def freeze() -> None:
        after()
        thaw.wait(DEADLINE)

    server._server.call(freeze)
    try:
        yield
    finally:
        thaw.set()


def elected(handler: SlurmRendezvous) -> int:
    """Return the agent that an agent is with."""
    return handler._follower.search.coordinator


def hang_up(handler: SlurmRendezvous) -> None:
    """Let an agent's connection to its coordinator be closed."""
    connection = connection_of(handler)
    assert connection is not None
    connection.close()


def waiting_agents(handler: SlurmRendezvous) -> Mapping[str, Any]:
    """Return the agents that wait for the next round, as an agent has heard."""
    return handler._state.run.waiting


def meet(handlers: Sequence[SlurmRendezvous]) -> list[RendezvousInfo]:
    """Let all join the next round."""
    return together([handler.next_rendezvous for handler in handlers])


def places(handlers: Sequence[SlurmRendezvous]) -> list[tuple[int, int, int]]:
    """Return round, rank and number of nodes of each."""
    found = []
    for handler in handlers:
        world = handler.world(of_nodes(handler._config.hosts, handler._config.agent, Origin.STEP))
        found.append((handler.round_number, world.node_rank, len(world.hosts)))
    return found


def lost(handlers: Sequence[SlurmRendezvous], host: str) -> None:
    """See that all hear of a loss, which costs no restart."""
    ends = together([partial(end_of, handler) for handler in handlers])
    assert {(end.ending, end.lost) for end in ends} == {("restart", host)}, ends


def spare(handler: SlurmRendezvous) -> Task:
    """Let an agent join that is to be a spare."""
    task = begin(handler.next_rendezvous, "spare")
    wait_for(lambda: handler.start, DEADLINE, "it does not join")
    assert not task.ended.is_set()
    return task


def test_the_leader_s_loss_and_others(group: Callable[..., Group]) -> None:
    """Of five nodes, one after another is lost, leaders too; the others go on with new ranks, as long as they may."""
    handlers = group(5)
    meet(handlers)
    assert places(handlers) == [(0, number, 5) for number in range(5)]
    for number, dead in enumerate([3, 0, 1], start=1):
        gone = next(handler for handler in handlers if handler._config.agent == dead)
        handlers.remove(gone)
        die(gone)
        lost(handlers, f"node{dead + 1}")
        meet(handlers)
        assert places(handlers) == [(number, rank, len(handlers)) for rank in range(len(handlers))]
        assert {handler.plan.master_port for handler in handlers} == {handlers[0].plan.master_port}
        assert list(handlers[0].plan.workers) == [handler._config.workers for handler in handlers]
    for handler in handlers:
        handler.report_done()
    assert [end_of(handler).ending for handler in handlers] == ["done"] * 2
    together([handler.shutdown for handler in handlers])


def test_the_new_leader_s_loss_before_its_round_begins(group: Callable[..., Group]) -> None:
    """Whoever takes over is lost while the others come: the next one takes over, and no round is counted for it."""
    handlers = group(6)
    meet(handlers)
    die(handlers[0])
    lost(handlers[1:], "node1")
    tasks = [begin(handler.next_rendezvous) for handler in handlers[1:5]]  # and one is late
    wait_for(
        lambda: len(callers(handlers[1])) == 4,
        DEADLINE,
        "nobody comes",
    )
    die(handlers[1])
    handlers[5].next_rendezvous()
    finish(tasks)

    assert [task.error for task in tasks[1:]] == [None] * 3
    assert places(handlers[2:]) == [(1, rank, 4) for rank in range(4)]


def test_what_outlives_the_leader(group: Callable[..., Group]) -> None:
    """Notices, the budget of restarts, the job directory and its attempts are what they were."""
    handlers = group(4, max_restarts=1)
    meet(handlers)
    handlers[2].tell_notice("SIGUSR1", 2)
    wait_for(lambda: all(handler.notices() == {"SIGUSR1": 2} for handler in handlers), DEADLINE, "no notice")
    tasks = [begin(partial(handler.report_failure, 7, "it broke")) for handler in handlers[3:]]
    ends = together([partial(end_of, handler) for handler in handlers[:3]])
    finish(tasks)
    assert {(end.ending, end.status, end.agent) for end in ends} == {("restart", 7, 3)}
    meet(handlers)
    die(handlers.pop(0))
    lost(handlers, "node1")
    meet(handlers)
    assert [handler.notices() for handler in handlers] == [{"SIGUSR1": 2}] * 3
    assert (handlers[0].round_number, handlers[0].plan.job, handlers[0].plan.first_attempt) == (2, "1.0", 0)
    tasks = [begin(partial(handlers[0].report_failure, 9, "again"))]
    ends = together([partial(end_of, handler) for handler in handlers[1:]])
    finish(tasks)

    assert {(end.ending, end.status, end.cause) for end in ends} == {("failed", 9, "again")}
    assert {type(error) for error in errors([handler.next_rendezvous for handler in handlers])} == {
        RendezvousClosedError
    }


def test_a_failure_that_comes_of_a_lost_node_costs_nothing(group: Callable[..., Group]) -> None:
    """Workers elsewhere fail because a node dies, and are heard of first: it is a loss all the same."""
    handlers = group(4)
    meet(handlers)
    tasks = [begin(partial(handler.report_failure, 1, "connection reset")) for handler in handlers[1:3]]
    die(handlers.pop(3))
    finish(tasks)

    assert {task.value.lost for task in tasks} == {"node4"}
    lost(handlers, "node4")


def test_a_spare_takes_the_place_of_a_lost_node(group: Callable[..., Group]) -> None:
    """The world keeps its size, then shrinks; a spare whose run ends is told how."""
    handlers = group(5, spares=2)
    waiting = [begin(handler.next_rendezvous) for handler in handlers[3:]]
    meet(handlers[:3])
    assert places(handlers[:3]) == [(0, 0, 3), (0, 1, 3), (0, 2, 3)]
    assert handlers[0].spares == 2
    die(handlers[0])
    lost(handlers[1:3], "node1")
    meet(handlers[1:3])
    finish(waiting[:1])
    assert places(handlers[1:4]) == [(1, 0, 3), (1, 1, 3), (1, 2, 3)]
    for handler in handlers[1:4]:
        handler.report_done()
    finish(waiting[1:])

    assert isinstance(waiting[1].error, SpareReleased)
    assert waiting[1].error.end.ending == "done"


def fail(handlers: Group, leader: SlurmRendezvous, *failures: tuple[int, dict[str, Any]]) -> None:
    """Let an attempt fail on some nodes, one report after the other, and see that another one is to follow."""
    tasks = []
    for position, facts in failures:
        tasks.append(begin(partial(handlers[position].report_failure, 1, f"{position} broke", **facts)))
        agent = handlers[position]._config.agent
        wait_for(partial(reported, leader, agent), DEADLINE, "it is not heard")
    failed = {position for position, _ in failures}
    others = [handler for position, handler in enumerate(handlers) if position not in failed]
    ends = together([partial(end_of, handler) for handler in others])
    finish(tasks)
    assert {end.ending for end in [*ends, *(task.value for task in tasks)]} == {"restart"}


def reported(leader: SlurmRendezvous, agent: int) -> bool:
    """Whether a leader has heard of a failure, or the round is over for it."""
    server = server_of(leader)
    running = server._coordinator.rounds.running if server is not None else None
    return running is None or running.end is not None or agent in running.failures


def test_a_node_that_fails_alone_again_and_again_goes_behind_the_spares(group: Callable[..., Group]) -> None:
    """After two attempts that it has ended alone another one has its place; who only followed, or hangs, has not."""
    handlers = group(4, spares=1, max_restarts=9)
    seen: list[tuple[str, dict[str, Any]]] = []
    handlers[0].observer = lambda event, **facts: seen.append((event, facts)) if event != events.NODES else None
    waiting = begin(handlers[3].next_rendezvous)
    stories: list[list[tuple[int, dict[str, Any]]]] = [
        [(2, {"own": False})],
        [(2, {"own": False}), (0, {"own": False})],
        [(1, {}), (2, {})],
        [(2, {}), (1, {}), (0, {})],
        [(1, {}), (2, {"own": False})],
        [(1, {})],
    ]
    for failures in stories:
        assert not seen
        meet(handlers[:3])
        fail(handlers[:3], handlers[0], *failures)
    behind = begin(handlers[1].next_rendezvous)
    meet([handlers[0], handlers[2]])
    finish([waiting])

    assert places([handlers[0], handlers[2], handlers[3]]) == [(6, 0, 3), (6, 1, 3), (6, 2, 3)]
    assert not behind.ended.is_set()
    why = "has ended 2 attempts alone"
    assert seen == [("node drained", {"hosts": "node2", "why": why, "stays": False, "attempt": 5})]


def test_a_device_does_not_break_for_a_lost_node(group: Callable[..., Group]) -> None:
    """Where one is lost at the same time, the evidence counts, and failures without any do not."""
    handlers = group(4, max_restarts=9)
    meet(handlers)
    tasks = [
        begin(partial(handlers[1].report_failure, 1, "it broke", own=True)),
        begin(partial(handlers[2].report_failure, 1, "it broke", fault="Xid 79")),
    ]
    for agent in (1, 2):
        wait_for(partial(reported, handlers[0], agent), DEADLINE, "it is not heard")
    die(handlers.pop(3))
    finish(tasks)
    lost(handlers[:1], "node4")
    meet(handlers)

    assert (handlers[0]._state.run.drained, handlers[0]._state.run.trouble) == ({"2": "is broken (Xid 79)"}, {"2": 1})


def test_a_broken_node_is_drained_at_once_and_named_once(
    group: Callable[..., Group], capfd: pytest.CaptureFixture[str]
) -> None:
    """The first node is, and leads on as a spare; the next one stays for want of another; the next leader knows it."""
    handlers = group(4, spares=1, max_restarts=9)
    seen: list[tuple[str, Any, bool]] = []
    for handler in handlers:
        handler.observer = lambda event, **facts: seen.append((event, facts.get("why"), facts.get("stays", False)))
    waiting = begin(handlers[3].next_rendezvous)
    meet(handlers[:3])
    fail(handlers[:3], handlers[0], (1, {}), (0, {"fault": "Xid 79"}))
    behind = begin(handlers[0].next_rendezvous)
    meet(handlers[1:3])
    finish([waiting])
    for number in range(2):
        assert places(handlers[1:]) == [(number + 1, 0, 3), (number + 1, 1, 3), (number + 1, 2, 3)]
        fail(handlers[1:], handlers[0], (0, {"fault": "Xid 48"}))
        if number == 0:
            meet(handlers[1:])
    die(handlers[0])
    finish([behind])
    meet(handlers[1:])

    assert [event for event in seen if event[0] == "node drained"] == [
        ("node drained", "is broken (Xid 79)", False),
        ("node drained", "is broken (Xid 48)", True),
    ]
    assert [*handlers[1]._state.run.drained] == ["0", "1"]
    assert capfd.readouterr().err.count("--exclude=node2") == 1


def test_a_notice_that_comes_to_a_spare(group: Callable[..., Group]) -> None:
    """All hear of it, and so does who leads next where the one that led is lost with it."""
    handlers = group(4, spares=1)
    asked: list[int] = []

    def idle() -> None:
        """In the thread that waits: no two threads use an agent's end at a time."""
        while asked:
            handlers[3].tell_notice("SIGUSR1", asked.pop())

    handlers[3].idle = idle
    waiting = begin(handlers[3].next_rendezvous)
    meet(handlers[:3])
    asked.append(1)
    wait_for(lambda: all(handler.notices() for handler in handlers[:3]), DEADLINE, "no notice")
    leader = server_of(handlers[0])
    assert leader is not None
    leader._coordinator._on_run_message = lambda *_: None  # type: ignore[method-assign]  # what is sent to it is lost with it
    asked.append(2)
    wait_for(lambda: handlers[3]._state.run.notices == {"SIGUSR1": 2}, DEADLINE, "it does not tell")
    die(handlers[0])
    lost(handlers[1:3], "node1")
    meet(handlers[1:3])
    finish([waiting])

    assert waiting.error is None
    assert [handler.notices() for handler in handlers[1:]] == [{"SIGUSR1": 2}] * 3


def test_who_waits_is_not_forgotten_with_the_leader(group: Callable[..., Group]) -> None:
    """The first node has come back, and another comes late; the leader is lost that has heard of them: all begin."""
    handlers = group(5, join_timeout=3.0)
    late = handlers.pop()
    meet(handlers)
    assert places(handlers) == [(0, rank, 4) for rank in range(4)]
    server = server_of(handlers[0])
    assert server is not None
    server.leads = False
    with frozen(handlers[0], after=server._coordinator.resign):
        lost(handlers, "node1")
        meet(handlers[1:])
    tasks = [begin(handler.next_rendezvous) for handler in (handlers[0], late)]
    wait_for(
        lambda: not handlers[3].notices() and len(handlers[3]._state.run.waiting) == 2, DEADLINE, "they do not come"
    )
    die(handlers.pop(1))
    lost(handlers[1:], "node2")
    meet(handlers[1:])
    finish(tasks)

    assert places([*handlers, late]) == [(2, rank, 4) for rank in range(4)]


def test_who_comes_late_finds_the_others_when_the_first_leader_is_lost(group: Callable[..., Group]) -> None:
    """It has been told where they are, as nobody would be where it came to know the run: all begin together."""
    handlers = group(5, join_timeout=2.0)
    late = handlers.pop()
    meet(handlers)
    task = begin(late.next_rendezvous)
    wait_for(lambda: not handlers[1].notices() and waiting_agents(handlers[1]), DEADLINE, "it does not come")
    # All agents are on one machine here: it is not to find others where it has looked for the first.
    late._follower.search._config = replace(late._config, ports=[1])
    die(handlers.pop(0))
    lost(handlers, "node1")
    meet(handlers)
    finish([task])

    assert places([*handlers, late]) == [(1, rank, 4) for rank in range(4)]


def test_what_is_written_down_about_nodes(group: Callable[..., Group], capfd: pytest.CaptureFixture[str]) -> None:
    """Who takes part, by whoever leads; losses of spares and of leaders; who comes back; a spare is told the plan."""
    handlers = group(5, spares=1, max_restarts=1)
    seen: list[tuple[int, str, dict[str, Any]]] = []
    spared: list[tuple[str, int]] = []
    for number, handler in enumerate(handlers):
        handler.observer = lambda event, number=number, **facts: seen.append((number, event, facts))
        handler.spared = lambda plan: spared.append((plan.job, plan.first_attempt))
    waiting = begin(handlers[4].next_rendezvous)
    meet(handlers[:4])
    wait_for(lambda: spared, DEADLINE, "the spare is not told")
    handlers[4]._follower.refusal = RendezvousError("killed")
    finish([waiting])
    die(handlers[4])
    wait_for(lambda: len(seen) == 2, DEADLINE, lambda: f"{seen}")
    die(handlers[0])
    lost(handlers[1:4], "node1")
    seen[2:] = sorted(seen[2:], key=lambda said: said[0])  # all three at the same time
    meet(handlers[1:4])
    hang_up(handlers[3])
    lost(handlers[1:3], "node4")
    meet(handlers[1:3])
    back = begin(handlers[3].next_rendezvous)
    wait_for(lambda: seen[-1][1] == events.NODE_BACK, DEADLINE, lambda: f"{seen}")
    fail(handlers[1:3], handlers[1], (0, {}), (1, {}))
    meet(handlers[1:3])
    finish([back])

    assert spared == [("1.0", 0)]
    assert (3, "node lost", {"hosts": "node2", "attempt": 1}) in seen  # its own view, which comes to nothing
    assert [said for said in seen if said[0] < 3 or said[2]["attempt"] == 0] == [
        (0, "nodes", {"hosts": "node[1-4]", "spares": "node5", "lost": "", "leader": "node1", "attempt": 0}),
        (0, "node lost", {"hosts": "node5", "attempt": 0}),
        *((number, "node lost", {"hosts": "node1", "attempt": 0}) for number in (1, 2, 3)),
        (1, "nodes", {"hosts": "node[2-4]", "spares": "", "lost": "node[1,5]", "leader": "node2", "attempt": 1}),
        (1, "node lost", {"hosts": "node4", "attempt": 1}),
        (1, "nodes", {"hosts": "node[2-3]", "spares": "", "lost": "node4", "leader": "node2", "attempt": 2}),
        (1, "node back", {"hosts": "node4", "attempt": 2}),
        (1, "nodes", {"hosts": "node[2-4]", "spares": "", "lost": "", "leader": "node2", "attempt": 3}),
    ]
    said = capfd.readouterr().err.splitlines()
    assert [line for line in said if mentions(line, "lost node5")] != []
    assert [line for line in said if mentions(line, "node4") and not mentions(line, "lost")] != []


def test_too_few_say_so_and_end(group: Callable[..., Group]) -> None:
    """Fewer than --nnodes asks for, or no majority: the status is documented, and the words say which it is."""
    handlers = group(4, minimum=3)
    meet(handlers)
    die(handlers[3])
    lost(handlers[:3], "node4")
    meet(handlers[:3])
    die(handlers[0])
    lost(handlers[1:3], "node1")
    refused = errors([handler.next_rendezvous for handler in handlers[1:3]])
    assert {type(error) for error in refused} == {RendezvousError}  # for which a job is run again
    assert mentions(refused[0], "node[2-3] --nnodes 3")

    others = group(3)
    meet(others)
    for dead in others[:2]:
        die(dead)
    end_of(others[2])
    with pytest.raises(RoundRefused, match=r"node3 .*node\[1-2\]") as caught:
        others[2].next_rendezvous()
    assert caught.value.exit_status == 69


def test_any_half_goes_on_if_it_has_the_token(group: Callable[..., Group], tmp_path: Path) -> None:
    """Two of four are lost, the first among them, then one of two; nothing is left of tokens when the run has ended."""
    handlers = group(4)
    meet(handlers)
    for dead in handlers[:2]:
        die(dead)
    together([partial(end_of, handler) for handler in handlers[2:]])
    meet(handlers[2:])
    assert places(handlers[2:]) == [(1, 0, 2), (1, 1, 2)]
    die(handlers[2])
    lost(handlers[3:], "node3")
    meet(handlers[3:])
    assert places(handlers[3:]) == [(2, 0, 1)]
    tokens = JobDirectory(tmp_path, "1.0").memberships
    # Those of the second and the third membership are there; what half has taken is too.
    wait_for(lambda: {path.name[:2] for path in tokens.iterdir()} == {"2-", "3-"}, DEADLINE, "old tokens")
    handlers[3].report_done()
    assert end_of(handlers[3]).ending == "done"
    handlers[3].shutdown()

    assert not tokens.exists()


def test_spares_do_not_go_on_alone(group: Callable[..., Group]) -> None:
    """Though they are more than half: the one node that has workers may do without them."""
    handlers = group(3, spares=2)
    waiting = [begin(handler.next_rendezvous) for handler in handlers[1:]]
    meet(handlers[:1])
    die(handlers[0])
    for task in waiting:
        assert task.ended.wait(DEADLINE)

    assert {type(task.error) for task in waiting} == {RoundRefused}
    assert all(mentions(task.error, "node[2-3] node1") for task in waiting)


def test_half_without_the_token_stops(group: Callable[..., Group], tmp_path: Path) -> None:
    """The other half has it, as far as anybody can know; so this one must not go on."""
    handlers = group(2)
    meet(handlers)
    (token,) = JobDirectory(tmp_path, "1.0").memberships.iterdir()
    token.rename(token.with_name(f"{token.name}.other"))
    die(handlers[0])
    lost(handlers[1:], "node1")

    with pytest.raises(RoundRefused, match=r"node2 .*node1.*/1.0/member"):
        handlers[1].next_rendezvous()


def test_who_comes_back_waits_for_the_next_attempt(group: Callable[..., Group]) -> None:
    """A node that was taken for lost disturbs nobody, and is one of all in the next attempt."""
    handlers = group(4, max_restarts=1)
    meet(handlers)
    hang_up(handlers[2])
    lost([handlers[0], handlers[1], handlers[3]], "node3")
    meet([handlers[0], handlers[1], handlers[3]])
    back = begin(handlers[2].next_rendezvous)
    wait_for(
        lambda: is_connected(handlers[2]),
        DEADLINE,
        "it does not come back",
    )
    assert [handler.end() for handler in (handlers[0], handlers[1], handlers[3])] == [None] * 3
    task = begin(partial(handlers[3].report_failure, 1, "it broke"))
    together([partial(end_of, handler) for handler in handlers[:2]])
    finish([task])
    meet([handlers[0], handlers[1], handlers[3]])
    finish([back])

    assert places(handlers) == [(2, number, 4) for number in range(4)]


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a call that is not answered be short."""
    monkeypatch.setattr(known_agents, "CALL_SECONDS", 0.5)
    monkeypatch.setattr(failure_detector, "_AGAIN_SECONDS", 0.1)


@pytest.mark.usefixtures("impatient")
def test_a_round_does_not_wait_for_a_frozen_agent(group: Callable[..., Group]) -> None:
    """Whether it is to agree, or to start its workers, or to say that they have ended: it is lost, and comes back."""
    handlers = group(5, max_restarts=1, node_timeout=2.0)
    meet(handlers)
    die(handlers.pop())
    lost(handlers, "node5")
    slow = handlers.pop()
    with frozen(slow):
        slow._follower.present()  # that it is ready, and no more
        meet(handlers)
        assert places(handlers) == [(1, rank, 3) for rank in range(3)]
    back = begin(slow.next_rendezvous)
    wait_for(
        lambda: is_connected(slow),
        DEADLINE,
        "it does not come back",
    )
    task = begin(partial(handlers[1].report_failure, 1, "it broke"))
    together([partial(end_of, handler) for handler in handlers if handler is not handlers[1]])
    finish([task])
    meet(handlers)
    finish([back])
    assert places([*handlers, slow]) == [(2, rank, 4) for rank in range(4)]
    with frozen(slow):
        lost(handlers, "node4")  # it has not said anything in this round
    meet(handlers)
    silent = handlers.pop()
    for handler in handlers:
        handler.report_done()
    with frozen(silent):
        lost(handlers, "node3")


@pytest.mark.usefixtures("impatient")
def test_nobody_waits_for_a_frozen_leader(group: Callable[..., Group]) -> None:
    """Those that wait for its word take it for lost; it sees that when it runs again, and is one of all later."""
    handlers = group(4, node_timeout=2.0)
    meet(handlers)
    with frozen(handlers[0]):
        handlers[3].report_done()
        tasks = [begin(partial(handler.report_failure, 1, "connection reset")) for handler in handlers[1:3]]
        finish(tasks)
        assert {task.value.lost for task in tasks} == {"node1"}
        lost(handlers[3:], "node1")
        meet(handlers[1:])
        assert places(handlers[1:]) == [(1, rank, 3) for rank in range(3)]
    end_of(handlers[0])
    back = begin(handlers[0].next_rendezvous)
    wait_for(lambda: elected(handlers[0]) == 1 and is_connected(handlers[0]), DEADLINE, "it does not come back")
    die(handlers.pop(2))
    lost([handlers[1], handlers[2]], "node3")
    meet(handlers[1:])
    finish([back])

    assert places(handlers) == [(2, rank, 3) for rank in range(3)]


@pytest.mark.usefixtures("impatient")
def test_a_leader_that_is_frozen_before_its_workers_start(group: Callable[..., Group]) -> None:
    """Those whose workers have started wait for them, and take it for lost; once all have, it may be frozen."""
    handlers = group(4, node_timeout=2.0, spares=1)
    waiting = begin(handlers[3].next_rendezvous)
    meet(handlers[:3])
    for handler in handlers[1:3]:
        handler.report_begun()
    with frozen(handlers[0]):
        lost(handlers[1:3], "node1")
        meet(handlers[1:3])
        finish([waiting])
    for handler in handlers[1:]:
        handler.report_begun()

    def heard() -> bool:
        return [handler.end() for handler in handlers[1:]] == [None] * 3 and all(
            one._state.begun for one in handlers[1:]
        )

    wait_for(heard, DEADLINE, "not all know that all have begun")


@dataclass(frozen=True)
class Word(Message):
    """Something to share."""

    text: str


def test_agents_look_often_only_while_somebody_waits(group: Callable[..., Group]) -> None:
    """An agent that others wait for may be frozen, which shows by looking; otherwise messages wake those that sleep."""
    handlers = group(3)
    meet(handlers)
    assert [math.isfinite(handler.pause) for handler in handlers] == [True, True, True]  # the workers have not begun
    for handler in handlers:
        handler.report_begun()

    def calm() -> bool:
        return [handler.end() for handler in handlers] == [None] * 3 and {one.pause for one in handlers} == {math.inf}

    wait_for(calm, DEADLINE, "not all hear that all have begun")
    handlers[2].report_done()
    # The leader waits for the end of the others' workers as soon as it has heard of it.
    assert [math.isfinite(handler.pause) for handler in handlers[1:]] == [False, True]
    server = server_of(handlers[1])
    assert server is not None
    server._server.call(lambda: setattr(server._coordinator, "_sought", True))
    server._server.call(lambda: setattr(server._coordinator, "changed", True))
    wait_for(lambda: math.isfinite(handlers[1].pause), DEADLINE, "it does not hear that it is sought")
    assert select.select([server.urgent], [], [], DEADLINE)[0]
    handlers[1].end()
    assert not select.select([server.urgent], [], [], 0)[0]


def test_who_comes_late_and_does_not_fit_is_refused_alone(group: Callable[..., Group]) -> None:
    """Another torch, or something that is wrong on that node: it says so and ends, and the others go on."""
    handlers = group(3, max_restarts=1, join_timeout=1.0, software={"torch": "2.4"})
    late = handlers.pop()
    meet(handlers)
    late._follower._config = replace(late._config, software={"torch": "2.5"})
    with pytest.raises(RoundRefused, match=r"torch.* 2\.4 .*node1.* 2\.5 .*node3") as caught:
        late.next_rendezvous()

    assert (caught.value.exit_status, caught.value.silent) == (69, False)
    assert [handler.end() for handler in handlers] == [None, None]
    for handler in handlers:
        handler.report_done()
    assert [end_of(handler).ending for handler in handlers] == ["done"] * 2


def test_what_agents_ask_the_leader(group: Callable[..., Group]) -> None:
    """What one leaves all can read, counters are everybody's and begin anew in each round, and one is the first."""
    handlers = group(3, max_restarts=1)
    meet(handlers)
    assert [handler.shared("word", Word) for handler in handlers] == [None] * 3
    handlers[1].share("word", Word("said"))
    wait_for(lambda: handlers[2].shared("word", Word) == Word("said"), DEADLINE, "nobody hears it")
    assert sorted(handler.count("activity", 1) for handler in handlers) == [1, 2, 3]
    assert [handler.first("disk") for handler in handlers] == [True, False, False]
    clocks = [handler.clock() for handler in handlers]
    assert all(clock is not None and abs(clock[0]) < 1 for clock in clocks), clocks
    task = begin(partial(handlers[1].report_failure, 1, "it broke"))
    together([partial(end_of, handler) for handler in (handlers[0], handlers[2])])
    finish([task])
    meet(handlers)

    assert handlers[0].count("activity", 0) == 0


def test_a_stop_is_everybody_s_end(group: Callable[..., Group]) -> None:
    """Spares end as well, with the words of whoever was stopped."""
    handlers = group(4, spares=1)
    waiting = begin(handlers[3].next_rendezvous)
    meet(handlers[:3])
    end = handlers[1].report_end(143, "stopped by SIGTERM", "SIGTERM")
    assert [end_of(handler) for handler in handlers[:3]] == [end] * 3
    finish([waiting])

    assert end is not None
    assert (end.ending, end.status, end.signal) == ("failed", 143, "SIGTERM")
    assert isinstance(waiting.error, SpareReleased)
    assert waiting.error.end == end
