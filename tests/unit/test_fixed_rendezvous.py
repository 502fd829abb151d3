"""The store part of the `slurm` rendezvous, against real stores."""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from torch.distributed import TCPStore  # type: ignore[attr-defined]
from torch.distributed.elastic.rendezvous.api import RendezvousClosedError, RendezvousInfo, RendezvousParameters

from hpc_launch.errors import HpcLaunchError, LogDirError, RendezvousError, RendezvousTimeout, RoundRefused
from hpc_launch.records.directory import JobDirectory
from hpc_launch.rendezvous import coordinator_service, torchrun_plugin
from hpc_launch.rendezvous.handler import SlurmRendezvous
from hpc_launch.rendezvous.messages import Message, RoundEnd
from hpc_launch.rendezvous.rendezvous_config import RendezvousConfig
from tests.support import lines_mention, mentions, wait_for
from tests.unit.agents_support import (
    DEADLINE,
    PLACE,
    PLACE_VARIABLE,
    begin,
    callers,
    config,
    configs,
    end_of,
    errors,
    finish,
    identity,
    server_of,
    together,
)

Group = list[SlurmRendezvous]


@pytest.fixture
def group() -> Iterator[Callable[[RendezvousConfig], Group]]:
    """Return what makes the agents of a run, which take their leave in the end."""
    made: Group = []

    def make(first: RendezvousConfig) -> Group:
        handlers = [SlurmRendezvous(one, agents_store=True) for one in configs(first)]
        made.extend(handlers)
        return handlers

    yield make
    together([handler.shutdown for handler in made])


def meet(handlers: Sequence[SlurmRendezvous]) -> list[RendezvousInfo]:
    """Let all join the next round."""
    return together([handler.next_rendezvous for handler in handlers])


def fail(handler: SlurmRendezvous, status: int = 1, cause: str = "it broke") -> RoundEnd:
    """Report a failure, and see that all agents of the handler's run would hear of it from the store."""
    end = handler.report_failure(status, cause)
    assert end is not None
    return end


def joined(leader: SlurmRendezvous) -> int:
    """Return how many agents are ready for the next round."""
    server = server_of(leader)
    return sum(one.ready is not None for one in server._coordinator._sessions) if server is not None else 0


def worker_store(info: RendezvousInfo) -> TCPStore:
    """Connect as a worker does."""
    where = info.bootstrap_store_info
    assert where is not None
    return TCPStore(where.master_addr, where.master_port, is_master=False)


def test_all_agree_on_a_round(group: Callable[[RendezvousConfig], Group], tmp_path: Path) -> None:
    """Every agent gets its own number as its rank, and the same plan as the others."""
    handlers = group(config(tmp_path, 5))
    infos = meet(handlers)

    assert [(info.rank, info.world_size) for info in infos] == [(number, 5) for number in range(5)]
    assert [handler.round_number for handler in handlers] == [0] * 5
    assert [handler.plan for handler in handlers] == [handlers[0].plan] * 5
    assert list(handlers[0].plan.workers) == [2, 3, 2, 3, 2]
    assert (handlers[0].plan.job, handlers[0].plan.first_attempt) == ("1.0", 0)
    infos[4].store.set("word", "said")
    assert infos[1].store.get("word") == b"said"


def test_one_agent_alone_needs_no_address(tmp_path: Path) -> None:
    """A single node meets on loopback, whatever its name and its interfaces are, and whichever was asked for."""
    handler = SlurmRendezvous(config(tmp_path, 1, local_addr=None, interface="none0", leaders=["127.0.0.1"]))
    info = handler.next_rendezvous()

    assert (info.rank, info.world_size, handler.plan.master_addr) == (0, 1, "127.0.0.1")
    assert handler.interface == ""
    handler.shutdown()


def test_one_agent_alone_listens_for_no_others(tmp_path: Path) -> None:
    """Its coordinator has no port, and the workers' store is on loopback."""
    handler = SlurmRendezvous(config(tmp_path, 1, leaders=["127.0.0.1"], keyring=None))
    handler.next_rendezvous()
    server, port = server_of(handler), handler.plan.master_port
    assert server is not None

    assert server.port == 0
    assert _is_free(port, "127.0.0.2")
    assert not _is_free(port, "127.0.0.1")
    handler.shutdown()


def test_a_fault_of_our_own_is_loud(
    group: Callable[[RendezvousConfig], Group], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The coordinator's agent ends with status 70 and the place in the source; no other agent is blamed for it."""
    handlers = group(config(tmp_path, 2))
    meet(handlers)
    server = server_of(handlers[0])
    assert server is not None

    def broken(*_: object) -> None:
        raise KeyError("a fault")

    monkeypatch.setattr(server._coordinator.rounds, "on_round_message", broken)
    handlers[1].report_begun()
    with pytest.raises(HpcLaunchError, match=r"internal error at .*test_fixed_rendezvous.py:\d+: KeyError") as caught:
        end_of(handlers[0])

    assert caught.value.exit_status == 70


def test_agents_of_tasks_are_numbered_by_slurm(tmp_path: Path) -> None:
    """With one task per rank the leader need not be agent 0: ranks are the agents' numbers all the same."""
    first = config(tmp_path, 4, hosts=["node1", "node2"], agents_per_host=None)
    hosts = ["node2", "node1", "node2", "node1"]
    handlers = [
        SlurmRendezvous(replace(first, agent=number, host=host, leader=number == 1, workers=1))
        for number, host in enumerate(hosts)
    ]

    assert [info.rank for info in meet(handlers)] == [0, 1, 2, 3]
    together([handler.shutdown for handler in handlers])


def test_a_late_agent_is_waited_for(group: Callable[[RendezvousConfig], Group], tmp_path: Path) -> None:
    """The round begins when the last agent comes, and not before."""
    handlers = group(config(tmp_path, 3))
    early = [begin(handler.next_rendezvous) for handler in handlers[:2]]
    wait_for(lambda: joined(handlers[0]) == 2, DEADLINE, "they do not join")
    assert [task.ended.is_set() for task in early] == [False, False]
    handlers[2].next_rendezvous()
    finish(early)
    assert [task.value.rank for task in early] == [0, 1]


def test_the_leader_may_be_the_late_one(group: Callable[[RendezvousConfig], Group], tmp_path: Path) -> None:
    """The others look for it until it is there."""
    handlers = group(config(tmp_path, 3))
    early = [begin(handler.next_rendezvous) for handler in handlers[1:]]
    with socket.create_server(("", handlers[0]._config.ports[-1])) as listener:
        listener.accept()[0].close()  # somebody looks, and has found nobody on the ports before
    handlers[0].next_rendezvous()
    finish(early)
    assert [task.value.rank for task in early] == [1, 2]


def test_a_failure_moves_all_to_the_next_round(group: Callable[[RendezvousConfig], Group], tmp_path: Path) -> None:
    """All read the same end, and the number of the next round is the same for all."""
    handlers = group(config(tmp_path, 4, max_restarts=2))
    for number in range(2):
        meet(handlers)
        end = fail(handlers[number + 1], 7, f"failure {number}")
        assert (end.ending, end.agent, end.status) == ("restart", number + 1, 7)
        assert [end_of(handler) for handler in handlers] == [end] * 4
    meet(handlers)
    assert [handler.round_number for handler in handlers] == [2] * 4


def test_the_budget_is_the_job_s(group: Callable[[RendezvousConfig], Group], tmp_path: Path) -> None:
    """Failures on different nodes are counted together: the one after the last restart ends the run for all."""
    handlers = group(config(tmp_path, 3, max_restarts=1))
    meet(handlers)
    assert fail(handlers[1]).ending == "restart"
    meet(handlers)
    end = fail(handlers[2], 42, "rank 5 failed")
    assert (end.ending, end.status, end.cause, end.host) == ("failed", 42, "rank 5 failed", "node3")
    assert [end_of(handler) for handler in handlers] == [end] * 3
    assert [handler.is_closed() for handler in handlers] == [True] * 3
    closed = errors([handler.next_rendezvous for handler in handlers])
    assert [(type(error), str(error)) for error in closed] == [(RendezvousClosedError, "rank 5 failed")] * 3


def test_of_failures_at_the_same_moment_the_first_counts(
    group: Callable[[RendezvousConfig], Group], tmp_path: Path
) -> None:
    """All agents fail at once: there is one end of the round, and one restart is spent."""
    handlers = group(config(tmp_path, 6, max_restarts=5))
    for number in range(5):
        meet(handlers)
        barrier = threading.Barrier(6)

        def all_fail(handler: SlurmRendezvous, barrier: threading.Barrier = barrier) -> RoundEnd:
            barrier.wait()
            return fail(handler, 10 + handler._config.agent)

        ends = together([partial(all_fail, handler) for handler in handlers])
        assert ends == [ends[0]] * 6
        assert (ends[0].ending, ends[0].status) == ("restart", 10 + ends[0].agent)
        assert {handler.round_number for handler in handlers} == {number}


def test_success_is_everybody_s(group: Callable[[RendezvousConfig], Group], tmp_path: Path) -> None:
    """The round is done when the last agent is, and goes on until then."""
    handlers = group(config(tmp_path, 3))
    meet(handlers)
    for handler in handlers[:2]:
        handler.report_done()
    assert [handler.end() for handler in handlers] == [None] * 3
    handlers[2].report_done()
    assert [end_of(handler).ending for handler in handlers] == ["done"] * 3
    assert handlers[0].num_nodes_waiting() == 0


def test_a_failure_after_the_success_of_others_restarts_them(
    group: Callable[[RendezvousConfig], Group], tmp_path: Path
) -> None:
    """Who was done runs again, and its success of the round before does not count in the next one."""
    handlers = group(config(tmp_path, 3, max_restarts=1))
    meet(handlers)
    handlers[0].report_done()
    handlers[1].report_done()
    fail(handlers[2])
    assert [end_of(handler).ending for handler in handlers] == ["restart"] * 3
    meet(handlers)
    handlers[2].report_done()
    assert [handler.end() for handler in handlers] == [None] * 3
    handlers[0].report_done()
    handlers[1].report_done()
    assert [end_of(handler).ending for handler in handlers] == ["done"] * 3


def test_a_stop_is_everybody_s_end(group: Callable[[RendezvousConfig], Group], tmp_path: Path) -> None:
    """An agent that is told to stop takes the others with it, whatever is left of the budget."""
    handlers = group(config(tmp_path, 3, max_restarts=5))
    meet(handlers)
    handlers[1].report_end(143, "node2 was stopped by SIGTERM")
    end = end_of(handlers[0])
    assert (end.ending, end.status, end.cause) == ("failed", 143, "node2 was stopped by SIGTERM")
    assert end_of(handlers[2]) == end


@pytest.mark.parametrize("who", [0, 2])
def test_a_stop_says_which_signal_it_was(group: Callable[[RendezvousConfig], Group], tmp_path: Path, who: int) -> None:
    """The workers of all nodes are to end by the same signal, the first that came; other ends have none."""
    handlers = group(config(tmp_path, 3, max_restarts=5))
    meet(handlers)
    first = handlers[who].report_end(130, "stopped by SIGINT", "SIGINT")
    second = handlers[1].report_end(143, "stopped by SIGTERM", "SIGTERM")
    ends = [end_of(handler) for handler in handlers]
    assert ends == [first] * 3 == [second] * 3
    assert (ends[0].signal, ends[0].status, ends[0].agent) == ("SIGINT", 130, who)


def test_a_failure_has_no_signal(group: Callable[[RendezvousConfig], Group], tmp_path: Path) -> None:
    """Who comes too late to stop a run hears how it really ended."""
    handlers = group(config(tmp_path, 2))
    meet(handlers)
    end = fail(handlers[0], 7)
    assert handlers[1].report_end(143, "stopped by SIGTERM", "SIGTERM") == end
    assert (end.signal, end.status) == ("", 7)


def test_nobody_is_told_before_there_is_a_round(tmp_path: Path) -> None:
    """An agent that stops before it has found the others leaves without a word."""
    assert SlurmRendezvous(config(tmp_path, 2)).report_end(143, "stopped by SIGTERM", "SIGTERM") is None


@pytest.mark.parametrize("early", [True, False], ids=["others wait already", "others come later"])
@pytest.mark.parametrize("who", [0, 2], ids=["the leader", "another"])
def test_a_stop_between_rounds_ends_who_waits_for_the_next(
    group: Callable[[RendezvousConfig], Group], tmp_path: Path, who: int, early: bool
) -> None:
    """The round has ended for another when an agent is stopped: the others do not wait for it to join."""
    handlers = group(config(tmp_path, 4, max_restarts=5))
    meet(handlers)
    fail(handlers[1])
    assert [end_of(handler).ending for handler in handlers] == ["restart"] * 4
    others = [handler for handler in handlers if handler is not handlers[who]]
    waiting = [begin(handler.next_rendezvous) for handler in others] if early else []
    if early:
        leader = handlers[0]
        wait_for(lambda: joined(leader) == 3, DEADLINE, "they do not join")
    cause = "stopped by SIGTERM on some node"
    end = handlers[who].report_end(143, cause, "SIGTERM")
    waiting = waiting or [begin(handler.next_rendezvous) for handler in others]
    finish(waiting)

    assert end is not None
    assert (end.ending, end.status, end.signal) == ("failed", 143, "SIGTERM")
    assert [type(task.error) for task in waiting] == [RoundRefused] * 3
    assert {str(task.error) for task in waiting} == {cause}
    assert [getattr(task.error, "exit_status", None) for task in waiting] == [143] * 3
    # Who was stopped says why.
    assert sum(not getattr(task.error, "silent", None) for task in waiting) <= 1
    assert handlers[who].is_closed()


# ---- what concerns all rounds


def hear(handler: SlurmRendezvous, expected: dict[str, int]) -> None:
    """Wait until an agent knows how often each signal came."""
    wait_for(lambda: dict(handler.notices()) == expected, DEADLINE, lambda: f"{handler.notices()}, not {expected}")


def test_notices_of_all_are_one_number_each(group: Callable[[RendezvousConfig], Group], tmp_path: Path) -> None:
    """Whoever counts most is believed, and a smaller number changes nothing; a new round neither."""
    handlers = group(config(tmp_path, 3, max_restarts=1))
    meet(handlers)
    assert [dict(handler.notices()) for handler in handlers] == [{}] * 3
    handlers[1].tell_notice("SIGUSR1", 2)
    handlers[2].tell_notice("SIGUSR1", 1)
    handlers[0].tell_notice("SIGUSR2", 1)
    for handler in handlers:
        hear(handler, {"SIGUSR1": 2, "SIGUSR2": 1})
    fail(handlers[0])
    together([partial(end_of, handler) for handler in handlers])
    meet(handlers)
    handlers[1].tell_notice("SIGUSR2", 4)
    for handler in handlers:
        hear(handler, {"SIGUSR1": 2, "SIGUSR2": 4})


def test_notices_at_the_same_moment_are_all_kept(group: Callable[[RendezvousConfig], Group], tmp_path: Path) -> None:
    """All agents tell of all signals at once: of each the greatest number stands."""
    handlers = group(config(tmp_path, 6))
    meet(handlers)
    names = ["SIGUSR1", "SIGUSR2", "SIGCONT"]
    barrier = threading.Barrier(6)

    def tell(handler: SlurmRendezvous) -> None:
        number = handler._config.agent
        barrier.wait()
        for count in range(1, 21):
            for position in range(3):
                handler.tell_notice(names[(number + position) % 3], count * 6 + (number * (position + 1)) % 6)

    together([partial(tell, handler) for handler in handlers])
    most = {
        name: max(
            20 * 6 + (number * (position + 1)) % 6
            for number in range(6)
            for position in range(3)
            if names[(number + position) % 3] == name
        )
        for name in names
    }
    for handler in handlers:
        hear(handler, most)


@dataclass(frozen=True)
class Word(Message):
    """Something to share."""

    text: str
    number: float = 0.0


def test_what_is_shared(group: Callable[[RendezvousConfig], Group], tmp_path: Path) -> None:
    """The last that was left under a name is what all read, in the next round as well; before, there is nothing."""
    handlers = group(config(tmp_path, 3, max_restarts=1))
    assert [handler.shared("word", Word) for handler in handlers] == [None] * 3
    meet(handlers)
    assert [handler.shared("word", Word) for handler in handlers] == [None] * 3
    handlers[1].share("word", Word("first", 0.5))
    handlers[2].share("other", Word("another"))
    assert [handler.shared("word", Word) for handler in handlers] == [Word("first", 0.5)] * 3
    handlers[0].share("word", Word("second"))
    fail(handlers[0])
    together([partial(end_of, handler) for handler in handlers])
    meet(handlers)
    assert [handler.shared("word", Word) for handler in handlers] == [Word("second")] * 3
    assert handlers[0].shared("other", Word) == Word("another")


def test_closing_ends_the_run_for_all(group: Callable[[RendezvousConfig], Group], tmp_path: Path) -> None:
    """torch's interface has a way to close the rendezvous, and nobody gets past it."""
    handlers = group(config(tmp_path, 2, max_restarts=5))
    meet(handlers)
    handlers[0].set_closed()
    assert end_of(handlers[1]).ending == "failed"
    assert [type(error) for error in errors([handler.next_rendezvous for handler in handlers])] == [
        RendezvousClosedError
    ] * 2


def test_torch_s_own_agent_restarts_by_asking_for_a_round(
    group: Callable[[RendezvousConfig], Group], tmp_path: Path
) -> None:
    """It says nothing of a failure: who asks for a new round in the middle of one makes the others come too."""
    handlers = group(config(tmp_path, 3, max_restarts=1))
    meet(handlers)
    assert [handler.num_nodes_waiting() for handler in handlers] == [0] * 3
    first = begin(handlers[2].next_rendezvous)
    for handler in handlers[:2]:
        wait_for(handler.num_nodes_waiting, DEADLINE, "nobody hears of the new round")
    meet(handlers[:2])
    finish([first])
    assert first.error is None
    assert [handler.round_number for handler in handlers] == [1] * 3


def test_each_round_has_a_store_of_its_own(group: Callable[[RendezvousConfig], Group], tmp_path: Path) -> None:
    """Workers of an attempt find nothing of the attempt before: another port, and an empty store."""
    handlers = group(config(tmp_path, 2, max_restarts=3))
    ports = set()
    for _ in range(4):
        infos = meet(handlers)
        assert infos[0].bootstrap_store_info == infos[1].bootstrap_store_info
        ports.add(handlers[0].plan.master_port)
        stores = [worker_store(info) for info in infos]
        assert not stores[0].check(["left"])
        stores[0].set("left", "by an attempt")
        assert stores[1].get("left") == b"by an attempt"
        fail(handlers[1])
    assert len(ports) == 4


def test_a_pinned_port_is_used_in_every_round(group: Callable[[RendezvousConfig], Group], tmp_path: Path) -> None:
    """With --master-port the port stays, while the old store still has clients; the store is new."""
    with socket.create_server(("", 0)) as free:
        pinned = free.getsockname()[1]
    handlers = group(config(tmp_path, 2, max_restarts=3, master_port=pinned))
    stores = []
    for _ in range(4):
        infos = meet(handlers)
        assert handlers[1].plan.master_port == pinned
        stores.append(worker_store(infos[1]))
        assert not stores[-1].check(["left"])
        stores[-1].set("left", "by an attempt")
        fail(handlers[1])


def test_a_pinned_port_that_is_taken_is_everybody_s_problem(
    group: Callable[[RendezvousConfig], Group], tmp_path: Path
) -> None:
    """All end with the same words, which name the port."""
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        handlers = group(config(tmp_path, 3, master_port=port))
        refused = errors([handler.next_rendezvous for handler in handlers])
    assert {type(error) for error in refused} == {RoundRefused}
    assert {str(error) for error in refused} == {str(refused[0])}
    assert f"--master-port {port} is taken on node1" in str(refused[0])
    assert [getattr(error, "exit_status", None) for error in refused] == [69] * 3


def test_a_problem_of_one_is_told_to_all(group: Callable[[RendezvousConfig], Group], tmp_path: Path) -> None:
    """A node that cannot take part ends the run for all, with its words and its status; only the leader says them."""
    handlers = group(config(tmp_path, 3))
    handlers[1] = SlurmRendezvous(replace(handlers[1]._config, problem=LogDirError("cannot write in /logs")))
    refused = errors([handler.next_rendezvous for handler in handlers])
    assert [(type(error), str(error)) for error in refused] == [(RoundRefused, "node2: cannot write in /logs")] * 3
    assert [getattr(error, "exit_status", None) for error in refused] == [73] * 3
    assert [getattr(error, "silent", None) for error in refused] == [False, True, True]
    handlers[1].shutdown()


def test_a_job_directory_that_the_leader_cannot_use_is_told_to_all(tmp_path: Path) -> None:
    """A problem that only shows when the leader plans the round is everybody's as well, with the same words."""
    (tmp_path / "file").touch()
    run = config(tmp_path, 3, job=JobDirectory(tmp_path / "file", "1.0"))
    handlers = [SlurmRendezvous(one) for one in configs(run)]
    refused = errors([handler.next_rendezvous for handler in handlers])
    assert {str(error) for error in refused} == {str(refused[0])}
    assert "cannot write in " in str(refused[0])
    assert [getattr(error, "exit_status", None) for error in refused] == [73] * 3
    together([handler.shutdown for handler in handlers])


@pytest.mark.parametrize("name", ["Python", "torch", "script"])
def test_different_software_is_refused(group: Callable[[RendezvousConfig], Group], tmp_path: Path, name: str) -> None:
    """Every node says the same: what differs, and where."""
    same = {"Python": "3.11.7", "torch": "2.13.0", "script": "train.py"}
    handlers = group(config(tmp_path, 4, software=same))
    other = SlurmRendezvous(replace(handlers[2]._config, software={**same, name: "something"}))
    handlers[2].shutdown()
    handlers[2] = other
    refused = errors([handler.next_rendezvous for handler in handlers])
    assert [type(error) for error in refused] == [RoundRefused] * 4
    assert len({str(error) for error in refused}) == 1
    assert mentions(refused[0], f"{name} {same[name]} node[1-2,4] something node3")
    other.shutdown()


def test_who_does_not_come_is_named(group: Callable[[RendezvousConfig], Group], tmp_path: Path) -> None:
    """After the join timeout all that came end with the same words, which name those that did not."""
    handlers = group(config(tmp_path, 5, join_timeout=1))
    refused = errors([handlers[number].next_rendezvous for number in (0, 1, 3)])
    assert len({str(error) for error in refused}) == 1
    assert mentions(refused[0], "node[3,5] 1 3/5")
    assert isinstance(refused[0], RendezvousTimeout)
    assert refused[0].missing == ("node3", "node5")
    assert [getattr(error, "exit_status", None) for error in refused] == [69] * 3
    # As far as shutting down goes the missing have gone.
    together([handlers[number].shutdown for number in (1, 3)])


def test_a_leader_that_does_not_come_is_named(group: Callable[[RendezvousConfig], Group], tmp_path: Path) -> None:
    """The others say whom they looked for, and what they found instead."""
    with contextlib.ExitStack() as stack:
        # Nothing else on this machine can listen on a port that is taken, and nobody listens here.
        taken = [stack.enter_context(socket.socket()) for _ in range(4)]
        for one in taken:
            one.bind(("127.0.0.1", 0))
        ports = [one.getsockname()[1] for one in taken]
        handlers = group(config(tmp_path, 3, join_timeout=1, ports=ports))
        missed = errors([handler.next_rendezvous for handler in handlers[1:]])
    for number, error in enumerate(missed, start=2):
        assert isinstance(error, RendezvousTimeout)
        assert mentions(error, f"node{number} node1 1 127.0.0.1")
        assert error.missing == ("node1",)


def test_a_node_that_stays_away_from_a_later_round_is_named(
    group: Callable[[RendezvousConfig], Group], tmp_path: Path
) -> None:
    """The timeout holds for every round, not only for the first."""
    handlers = group(config(tmp_path, 3, join_timeout=1, max_restarts=1))
    meet(handlers)
    fail(handlers[0])
    refused = errors([handler.next_rendezvous for handler in handlers[:2]])
    assert [getattr(error, "missing", None) for error in refused] == [("node3",)] * 2
    assert [mentions(error, "node3 1 2/3") for error in refused] == [True, True]


def test_the_leader_goes_last(group: Callable[[RendezvousConfig], Group], tmp_path: Path) -> None:
    """The end can be read until everybody has taken leave; then the ports are free and the notice is gone."""
    handlers = group(config(tmp_path, 3))
    meet(handlers)
    notice = handlers[0]._config.job.whereabouts("program")
    assert notice.exists()
    server = server_of(handlers[0])
    assert server is not None
    ports = [server.port, handlers[0].plan.master_port]
    fail(handlers[0], 5)
    leaving = begin(handlers[0].shutdown)
    assert end_of(handlers[1]).status == 5
    handlers[1].shutdown()
    assert not leaving.ended.is_set()
    assert end_of(handlers[2]).status == 5
    handlers[2].shutdown()
    finish([leaving])
    assert not notice.exists()
    wait_for(lambda: all(_is_free(port) for port in ports), DEADLINE, lambda: f"not free: {ports}")


def test_the_leader_waits_for_those_that_came_a_moment_ago(
    group: Callable[[RendezvousConfig], Group], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What other threads see of its server may be a little old; a run may end before it is new."""
    handlers = group(config(tmp_path, 2))
    with monkeypatch.context() as old:
        old.setattr(coordinator_service, "_VIEW_SECONDS", DEADLINE)
        meet(handlers)
        fail(handlers[0], 5)
        assert 1 not in callers(handlers[0])
        leaving = begin(handlers[0].shutdown)
        wait_for(
            lambda: server_of(handlers[0]) is None or 1 in callers(handlers[0]),
            DEADLINE,
            "it is not new",
        )
    assert not leaving.ended.is_set()
    assert end_of(handlers[1]).status == 5
    handlers[1].shutdown()
    finish([leaving])


def _is_free(port: int, address: str = "") -> bool:
    with contextlib.suppress(OSError), socket.create_server((address, port)):
        return True
    return False


def _accept_and_say(listener: socket.socket, words: bytes) -> None:
    """Answer whoever connects with something; with nothing, stay silent and keep the connection."""
    with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
        while True:
            connection = stack.enter_context(listener.accept()[0])
            if words:
                connection.sendall(words)
                connection.close()


@pytest.mark.parametrize("words", [b"", b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n", b"\x00\xff" * 5000])
def test_strangers_on_the_first_ports_are_passed_by(
    group: Callable[[RendezvousConfig], Group], tmp_path: Path, words: bytes
) -> None:
    """A foreign program on a candidate port, whatever it says, costs time at most."""
    handlers = group(config(tmp_path, 3))
    with contextlib.ExitStack() as stack:
        tasks = []
        for port in handlers[0]._config.ports[:2]:
            listener = stack.enter_context(socket.create_server(("", port)))
            tasks.append(begin(partial(_accept_and_say, listener, words)))
            stack.callback(listener.shutdown, socket.SHUT_RDWR)  # ends an accept that waits, which closing does not
        assert [info.rank for info in meet(handlers)] == [0, 1, 2]
    finish(tasks)


def test_a_foreign_store_is_never_joined(group: Callable[[RendezvousConfig], Group], tmp_path: Path) -> None:
    """Another program's TCPStore on the first port hears of us, and keeps nothing."""
    handlers = group(config(tmp_path, 3))
    foreign = TCPStore("127.0.0.1", handlers[0]._config.ports[0], is_master=True, wait_for_workers=False)
    keys = foreign.num_keys()
    assert [info.rank for info in meet(handlers)] == [0, 1, 2]
    assert foreign.num_keys() == keys
    assert foreign.port not in {handlers[0].plan.master_port, getattr(server_of(handlers[0]), "port", None)}


def test_runs_at_the_same_ports_do_not_meet(group: Callable[[RendezvousConfig], Group], tmp_path: Path) -> None:
    """Runs that try the same ports all find their own leaders."""
    ports = config(tmp_path, 1).ports
    runs = [
        group(config(tmp_path / str(number), 2, ports=ports, identity=identity(f"program {number}")))
        for number in range(4)
    ]
    everyone = [handler for handlers in runs for handler in handlers]
    infos = meet(everyone)
    assert [info.rank for info in infos] == [0, 1] * 4
    for handlers, info in zip(runs, infos[::2], strict=True):
        worker_store(info).set("whose", handlers[0].get_run_id())
    for handlers, info in zip(runs, infos[1::2], strict=True):
        assert worker_store(info).get("whose").decode() == handlers[1].get_run_id()


def test_equal_runs_of_one_place_are_refused(group: Callable[[RendezvousConfig], Group], tmp_path: Path) -> None:
    """Nothing tells their agents apart, so that none is paired at random: all end with the line that mends it.

    But a run that has begun before an agent of the other one was there goes on.
    """
    first = config(tmp_path / "one", 3)
    runs = [group(first), group(replace(first, job=config(tmp_path / "two", 3).job))]
    ends = errors([handler.next_rendezvous for handlers in runs for handler in handlers])
    refused = [error for error in ends if error is not None]

    assert [len({type(error) for error in run}) for run in (ends[:3], ends[3:])] == [1, 1], ends
    assert {type(error) for error in refused} == {RoundRefused}
    assert all(mentions(error, "--rdzv-id") for error in refused)


def test_an_equal_run_that_comes_later_leaves_the_first_alone(
    group: Callable[[RendezvousConfig], Group], tmp_path: Path
) -> None:
    """A run that has begun goes on; the second one ends with the line that mends it."""
    first = config(tmp_path / "one", 3)
    handlers = group(first)
    meet(handlers)
    others = group(replace(first, job=config(tmp_path / "two", 3).job))
    refused = errors([handler.next_rendezvous for handler in others])

    assert {type(error) for error in refused} == {RoundRefused}
    assert [handler.end() for handler in handlers] == [None] * 3


def test_the_notice_leads_to_a_leader_whose_name_does_not_resolve(tmp_path: Path) -> None:
    """A file in the job directory says where the leader is; one of another run is not believed."""
    handlers = [SlurmRendezvous(one) for one in configs(config(tmp_path, 2, leaders=["no-such-host.invalid"]))]
    notice = handlers[0]._config.job.whereabouts("program")
    notice.parent.mkdir()
    notice.write_text('{"run": "another", "addresses": ["127.0.0.1"], "port": 1}')
    early = begin(handlers[1].next_rendezvous)
    leader = begin(handlers[0].next_rendezvous)
    finish([early, leader])
    assert [task.error for task in (leader, early)] == [None, None]
    together([handler.shutdown for handler in handlers])


def _started(python: str, program: str, arguments: Sequence[str]) -> subprocess.Popen[bytes]:
    """Start an agent of a run of this process's place."""
    return subprocess.Popen(
        [python, "-c", program, *arguments],
        stdin=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
        env={**os.environ, PLACE_VARIABLE: PLACE},
    )


LEADER = """
import sys
from pathlib import Path
from hpc_launch.rendezvous.handler import SlurmRendezvous
from tests.unit.agents_support import config

leader = SlurmRendezvous(config(Path(sys.argv[1]), 2, run_id=sys.argv[2], ports=[int(sys.argv[3])]))
leader.next_rendezvous()
sys.stdin.read()
"""


@pytest.mark.parametrize("ask", ["end", "report_failure", "next_rendezvous", "notices"])
def test_the_loss_of_the_leader_is_said_in_our_words(tmp_path: Path, python: str, ask: str) -> None:
    """A leader that dies takes the store with it: whatever an agent asks then, it hears that the store is lost."""
    first = config(tmp_path, 2)
    first = replace(first, ports=first.ports[:1])
    arguments = [str(tmp_path), first.run_id, str(first.ports[0])]
    handler = SlurmRendezvous(configs(first)[1])
    with contextlib.ExitStack() as stack:
        stack.callback(handler.shutdown)
        with _started(python, LEADER, arguments) as leader:
            stack.callback(leader.kill)
            handler.next_rendezvous()
            leader.kill()
            leader.wait()
        actions: dict[str, Callable[[], Any]] = {
            "end": lambda: end_of(handler),
            "report_failure": lambda: handler.report_failure(1, "it broke"),
            "next_rendezvous": handler.next_rendezvous,
            "notices": lambda: wait_for(lambda: handler.notices() is None, DEADLINE, "the loss is not noticed"),
        }
        with pytest.raises(RendezvousError, match=r"lost the (store|agent) on node1"):
            actions[ask]()
        assert handler.shared("word", Word) is None


def test_a_leader_that_does_not_answer_is_waited_for(
    tmp_path: Path,
    group: Callable[[RendezvousConfig], Group],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """However long that takes, with one line; being told to leave ends the wait."""
    handlers = group(config(tmp_path, 2, node_timeout=0.05))
    meet(handlers)
    looks, leave = itertools.count(1), threading.Event()
    latest, read = [0], handlers[1]._follower.receive

    def look() -> None:
        latest[0] = next(looks)
        read()

    with monkeypatch.context() as patch:
        patch.setattr(handlers[1]._client, "send", lambda _: None)  # so that it hears nothing
        patch.setattr(handlers[1]._follower, "receive", look)
        task = begin(partial(handlers[1].report_failure, 7, "it broke", stopped=leave.is_set))
        # A look takes 0.1 s: more than four timeouts.
        wait_for(lambda: latest[0] > 10 or task.ended.is_set(), DEADLINE, "it does not look")
        leave.set()
        finish([task])
    assert (latest[0] > 10, task.value, task.error) == (True, None, None)
    ended = handlers[1].report_failure(7, "it broke")

    assert ended is not None
    assert (ended.status, ended.cause) == (7, "it broke")
    assert lines_mention(capfd.readouterr().err.splitlines(), "node2 it broke node1")


AGENT = """
import sys
from pathlib import Path
from dataclasses import replace
from hpc_launch.rendezvous.handler import SlurmRendezvous
from tests.unit.agents_support import configs, config

first = config(Path(sys.argv[1]), 3, run_id=sys.argv[2], ports=[int(sys.argv[3])])
agent = SlurmRendezvous(configs(first)[2])
agent.next_rendezvous()
sys.stdin.read()
"""


def test_the_loss_of_an_agent_ends_the_run(tmp_path: Path, python: str) -> None:
    """An agent that is killed takes no leave: the others hear that it is lost, whatever is left of the budget."""
    first = config(tmp_path, 3, max_restarts=5)
    first = replace(first, ports=first.ports[:1])
    handlers = [SlurmRendezvous(one) for one in configs(first)[:2]]
    arguments = [str(tmp_path), first.run_id, str(first.ports[0])]
    with _started(python, AGENT, arguments) as agent:
        try:
            meet(handlers)
        finally:
            agent.kill()
    ends = together([partial(end_of, handler) for handler in handlers])
    together([handler.shutdown for handler in handlers])

    assert ends == [ends[0]] * 2
    assert (ends[0].ending, ends[0].status) == ("failed", 69)
    assert mentions(ends[0].cause, "node3")


def test_plain_torchrun_has_the_settings_of_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A handler that torchrun makes takes its ports from where the project's file says."""
    (tmp_path / "hpc-launch.toml").write_text("port-range = '30000-30002'\n")
    monkeypatch.chdir(tmp_path)
    handler = torchrun_plugin.create(RendezvousParameters("slurm", "", "run", 1, 1))

    assert isinstance(handler, SlurmRendezvous)
    assert set(handler._config.ports) == {30000, 30001, 30002}
