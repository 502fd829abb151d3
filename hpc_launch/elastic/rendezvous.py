"""The `slurm` rendezvous: fixed ranks, one attempt number for everybody, and a fresh store for every attempt.

Registered with torch under the name `slurm` (entry-point group `torchrun.handlers`), so plain
`torchrun --rdzv-backend=slurm` uses it too. What differs from torch's c10d backend, and why:

- Ranks are those of the host list in every round. (c10d sorts by address as text.)
- The leader is known from the list, not guessed by comparing names (pytorch/pytorch#73656).
- The agents' store lives as long as the run; the workers get another one, on another port, in each round. (With c10d
  they share the agents' store and meet the addresses of the attempt before: restarts fail.)
- A round ends by one record in the store, the first that is written, and all agents follow it (`rounds`).

Each agent does a number of store operations per round that does not grow with the number of agents.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import torch
from torch.distributed import (  # type: ignore[attr-defined]  # public, but its types do not export them
    PrefixStore,
    TCPStore,
)
from torch.distributed.elastic.rendezvous import RendezvousHandler, RendezvousInfo
from torch.distributed.elastic.rendezvous.api import RendezvousClosedError, RendezvousStoreInfo

from hpc_launch import hostlist
from hpc_launch.elastic import locator, rounds
from hpc_launch.elastic.console import Pace, say
from hpc_launch.elastic.party import Party
from hpc_launch.elastic.rounds import Ending, Member, Message, RoundEnd, RoundPlan
from hpc_launch.errors import HpcLaunchError, LogDirError, RendezvousError, RendezvousTimeout, RoundRefused
from hpc_launch.node import network
from hpc_launch.plan import derive
from hpc_launch.records import directory, events
from hpc_launch.records.directory import JobDirectory

NAME = "slurm"

_Shared = TypeVar("_Shared", bound=Message)

# Blocking calls into torch hold back Python's signal handlers, so they are made in slices of this length.
_SLICE = timedelta(seconds=1)
_STORE_TIMEOUT = timedelta(seconds=60)
# How long the leader waits for the others to have read the end before it takes the store away.
_FAREWELL_SECONDS = 15.0
# How often an agent asks whether others have got a notice signal: they come minutes before they matter.
_NOTICE_SECONDS = 0.5
# At most so many questions a second does the store get from all agents together while workers run.
_QUESTIONS_PER_SECOND = 5000


class SlurmRendezvous(RendezvousHandler):
    """One agent's end of the rendezvous.

    The agent of hpc-launch uses `report_failure`, `report_done` and `end` as well; torch's own agent makes do with the
    methods of torch's interface, restarts included.

    Attributes:
        observer: is told of nodes that are missing or lost, as events (`records.events`).
    """

    def __init__(self, party: Party) -> None:
        self._party = party
        self._control: TCPStore | None = None
        self._locator: locator.Locator | None = None
        self._lifeline: locator.Lifeline | None = None
        self._worker_server: TCPStore | None = None
        self._leader_address = "127.0.0.1"
        self._own_address = "127.0.0.1"
        self._round = -1
        self._plan: RoundPlan | None = None
        self._end: RoundEnd | None = None
        self._next_question = self._next_notices = 0.0
        self._observed = ""
        self._notices: Mapping[str, int] = {}
        # Where each agent is; with several tasks on a node this is known when they have joined.
        self._hosts = dict(enumerate(party.hosts)) if party.agents_per_host is not None else {}
        self.observer: Callable[..., None] = lambda _, **__: None

    # ---- what the agent asks

    @property
    def round_number(self) -> int:
        """Number of the current round, from 0."""
        return self._round

    @property
    def plan(self) -> RoundPlan:
        """What the leader said of the current round."""
        if self._plan is None:
            raise RendezvousError("there was no rendezvous yet")
        return self._plan

    @property
    def hosts(self) -> Sequence[str]:
        """Where the agents of the current round are; only the leader knows of all."""
        return tuple(self._hosts.values())

    @property
    def interface(self) -> str:
        """The interface by which this node talks to the others; empty on a single node."""
        if len(self._party.hosts) == 1:
            return ""
        return network.interface_of(self._own_address, network.interfaces())

    def report_failure(self, status: int, cause: str, *, own: bool = True, fault: str = "") -> RoundEnd:  # noqa: ARG002 - here all nodes stay
        """Say that something failed here; returns how the round really ended (somebody may have been first).

        Args:
            status: the exit status that goes with it.
            cause: what happened, one line.
            own: whether workers failed by themselves, and did not follow others.
            fault: what shows that this node, or a device of it, is broken; empty if nothing does.
        """
        end = rounds.end_after_failure(
            round_number=self._round,
            max_restarts=self._party.max_restarts,
            agent=self._party.agent,
            host=self._party.host,
            status=status,
            cause=cause,
        )
        return self._propose(end)

    def report_end(self, status: int, cause: str, signal: str = "") -> RoundEnd | None:
        """Say that this agent leaves for good, so that the others do not wait for its workers.

        Args:
            status: the exit status that all are to end with.
            cause: why, one line.
            signal: the name of the signal that made it leave, if one did.

        Returns:
            How the round really ended (somebody may have been first); None when there is none.
        """
        if self._control is None or self._round < 0:
            return None
        end = RoundEnd(Ending.FAILED.value, self._party.agent, self._party.host, status, cause, signal)
        with contextlib.suppress(RendezvousError):
            if self._end is None:
                self._propose(end)
            if self._end is not None and self._end.ending == Ending.RESTART.value:
                # The round has ended for another: that one is to end before it begins.
                self._round += 1
                self._propose(end)
        return self._end

    def report_done(self) -> None:
        """Say that all workers here ended well; the last agent to do so ends the round."""
        self._mind_the_leader()
        with self._translated():
            last = self._store().add(f"{self._key}/done", 1) == self._party.agents
        if last:
            self._propose(RoundEnd(Ending.DONE.value, self._party.agent, self._party.host))

    def end(self) -> RoundEnd | None:
        """How the current round ended; None while it goes on.

        It asks the store at most every `agents / _QUESTIONS_PER_SECOND` seconds, however often it is called.

        Raises:
            RendezvousError: when the store is lost.
        """
        now = time.monotonic()
        if self._end is None and now >= self._next_question:
            self._next_question = now + self._party.agents / _QUESTIONS_PER_SECOND
            self._mind_the_leader()
            with self._translated():
                if self._store().check([f"{self._key}/end"]):
                    self._end = RoundEnd.decode(self._store().get(f"{self._key}/end"))
            lost = self._lost_agents()
            if self._end is None and lost:
                # Nobody can take its place, so another attempt would wait for it in vain.
                self._propose(RoundEnd(Ending.FAILED.value, self._party.agent, self._party.host, 69, lost))
        return self._end

    # ---- what concerns all rounds

    def clock(self) -> tuple[float, float] | None:
        """How many seconds this node's clock is ahead of the leader's, and how wrong that can be; None if unknown.

        It asks on the connection to the leader, at no cost for the store.
        """
        if self._party.leader:
            return 0.0, 0.0
        return self._lifeline.clock() if self._lifeline is not None else None

    def tell_notice(self, name: str, count: int) -> None:
        """Tell the other agents that a signal came for the `count`-th time."""
        with self._translated():
            said = ""
            while True:
                counts: dict[str, int] = json.loads(said or "{}")
                if counts.get(name, 0) >= count:
                    return
                wanted = json.dumps({**counts, name: count})
                said = self._store().compare_set("notices", said, wanted).decode()
                if said == wanted:
                    return

    def notices(self) -> Mapping[str, int]:
        """How often each signal came to some agent, by name; asked of the store at most twice a second."""
        now = time.monotonic()
        if now >= self._next_notices:
            self._next_notices = now + _NOTICE_SECONDS + self._party.agents / _QUESTIONS_PER_SECOND
            self._mind_the_leader()
            with self._translated():
                if self._store().check(["notices"]):
                    self._notices = json.loads(self._store().get("notices"))
        return self._notices

    def count(self, name: str, amount: int) -> int:
        """Add to a counter of this round that all agents share, which begins at 0; returns what it is then."""
        self._mind_the_leader()
        with self._translated():
            return int(self._store().add(f"{self._key}/count/{name}", amount))

    def share(self, name: str, message: Message) -> None:
        """Leave something for the other agents to read when they need it."""
        with self._translated():
            self._store().set(f"shared/{name}", message.encode())

    def shared(self, name: str, kind: type[_Shared]) -> _Shared | None:
        """What was left; None as long as nothing was, or the store is lost."""
        key = f"shared/{name}"
        with contextlib.suppress(RendezvousError), self._translated():
            self._mind_the_leader()
            if self._control is not None and self._control.check([key]):
                return kind.decode(self._control.get(key))
        return None

    def first(self, what: str) -> bool:
        """Whether no other agent has asked this before: it is the one to say something for all."""
        with contextlib.suppress(RendezvousError), self._translated():
            self._mind_the_leader()
            return self._store().add(f"first/{what}", 1) == 1
        return True

    # ---- torch's interface

    def get_backend(self) -> str:
        """The name it is registered under."""
        return NAME

    @property
    def use_agent_store(self) -> bool:
        """Workers use the store that the leader serves for their round; none of them has to open one."""
        return True

    def get_run_id(self) -> str:
        """The name of the run."""
        return self._party.run_id

    def num_nodes_waiting(self) -> int:
        """Tells torch's own agent to join the next round: 1 when this one ended for another attempt."""
        end = self.end()
        return int(end is not None and end.ending != Ending.DONE.value)

    def is_closed(self) -> bool:
        """Whether there will be no further round."""
        return self._end is not None and self._end.ending != Ending.RESTART.value

    def set_closed(self) -> None:
        """End the run for everybody, unless the round has ended already."""
        self.report_end(1, "the rendezvous was closed")

    def next_rendezvous(self) -> RendezvousInfo:
        """Join the next round and wait until all have.

        Raises:
            RendezvousTimeout: naming the nodes that did not come.
            RoundRefused: when a node has a problem or the nodes do not fit together.
            RendezvousClosedError: when the run has ended.
            RendezvousError: when the store is lost.
        """
        if self._control is None:
            self._control = self._open()
        if self._round >= 0:
            end = self._end or self._propose(
                # torch's own agent asks for a new round without saying why.
                rounds.end_after_failure(
                    round_number=self._round,
                    max_restarts=self._party.max_restarts,
                    agent=self._party.agent,
                    host=self._party.host,
                    status=1,
                    cause="a worker failed",
                )
            )
            if end.ending != Ending.RESTART.value:
                raise RendezvousClosedError(end.cause or "the run has ended")
        self._round += 1
        self._end = None
        with self._translated():
            self._join()
            self._plan = self._gather() if self._party.leader else self._await_plan()
            if self._plan.problem:
                # The leader says it for all.
                raise RoundRefused(self._plan.problem, exit_status=self._plan.status, silent=not self._party.leader)
            store = TCPStore(
                self._leader_address if self._party.leader else self._plan.master_addr,
                self._plan.master_port,
                is_master=False,
                timeout=_STORE_TIMEOUT,
            )
        # The agents' own words (torch's rank assignment) stay apart from the workers'.
        return RendezvousInfo(
            PrefixStore("agents", store),
            self._party.agent,
            self._party.agents,
            RendezvousStoreInfo(self._plan.master_addr, self._plan.master_port),
        )

    def shutdown(self) -> bool:
        """Leave; the leader goes last, so that all can read the end.

        An agent that leaves while the run goes on (something unforeseen went wrong in it) does so without a word, and
        so is missed.
        """
        if self._lifeline is not None:
            refused = self._plan is not None and bool(self._plan.problem)
            self._lifeline.close(ended=refused or self.is_closed())
        if self._locator is not None:
            deadline = time.monotonic() + _FAREWELL_SECONDS
            while self._locator.present and time.monotonic() < deadline:
                time.sleep(0.02)
            self._locator.close()
            self._remove_notice()
        self._control = self._worker_server = self._locator = self._lifeline = None
        return True

    # ---- how it works

    @property
    def _key(self) -> str:
        return f"round/{self._round}"

    def _store(self) -> TCPStore:
        if self._control is None:
            raise RendezvousError("the rendezvous is not open")
        return self._control

    def _propose(self, end: RoundEnd) -> RoundEnd:
        """Write the end of the round, unless somebody has; returns the one that stands."""
        with self._translated():
            # An empty expectation means "only if nobody has": TCPStore sets a key that is missing.
            self._end = RoundEnd.decode(self._store().compare_set(f"{self._key}/end", "", end.encode()))
        return self._end

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        """Say in our words that the store was lost; torch says it in many ways, all of them RuntimeErrors."""
        try:
            yield
        except RuntimeError as error:
            where = "this node" if self._party.leader else f"{self._party.hosts[0]} ({self._leader_address})"
            reason = str(error).splitlines()[0]
            raise RendezvousError(f"lost the store on {where}: {reason}") from error

    def _mind_the_leader(self) -> None:
        """See that the leader is there before asking its store, which would wait long for an answer."""
        if self._lifeline is not None and self._lifeline.broken():
            self._observe_lost(self._party.hosts[0])
            raise RendezvousError(
                f"lost the agent on {self._party.hosts[0]}, which hosts the store: it was killed, or its node is gone"
            )

    def _lost_agents(self) -> str:
        """Words about agents that are gone without having said so; empty while all are there."""
        lost = self._locator.lost if self._locator is not None else ()
        if not lost:
            return ""
        hosts = hostlist.display({self._hosts[agent] for agent in lost if agent in self._hosts})
        self._observe_lost(hosts)
        return f"lost the agent on {hosts or 'some node'}: it was killed, or its node is gone"

    def _observe_lost(self, hosts: str) -> None:
        if hosts != self._observed:
            self._observed = hosts
            self.observer(events.NODE_LOST, hosts=hosts)

    def _mind_an_early_end(self) -> None:
        """See that nobody has left while this agent waits for the round to begin."""
        lost = self._lost_agents()
        if lost:
            raise RendezvousError(lost)
        if self._store().check([f"{self._key}/end"]):
            self._end = RoundEnd.decode(self._store().get(f"{self._key}/end"))
            # Who left says why.
            raise RoundRefused(self._end.cause, exit_status=self._end.status, silent=True)

    def _open(self) -> TCPStore:
        if self._party.leader:
            return self._serve()
        return self._find()

    def _serve(self) -> TCPStore:
        """Start the agents' store and answer those who look for it."""
        party = self._party
        self._own_address = self._leader_own_address()
        listener, rest = first_free(party.ports)
        store, port = _first_store(rest, _STORE_TIMEOUT)
        self._locator = locator.Locator(party.run_id, listener, port)
        self._write_notice(self._locator.port)
        return store

    def _write_notice(self, port: int) -> None:
        """Say in the job directory where the leader is."""
        if self._notice is not None:
            addresses = [address for interface in network.interfaces() for address in interface.addresses]
            note = {"run": self._party.run_id, "addresses": addresses, "port": port}
            with contextlib.suppress(LogDirError):
                directory.write_json(self._notice, note)

    def _remove_notice(self) -> None:
        if self._notice is not None:
            with contextlib.suppress(OSError):
                self._notice.unlink()

    @property
    def _notice(self) -> Path | None:
        """A file in which the leader says where it is, for nodes on which its name does not resolve."""
        party = self._party
        return party.job.path / "rendezvous.json" if party.job.job and len(party.hosts) > 1 else None

    def _noticed(self) -> Sequence[tuple[str, Sequence[int]]]:
        """What that file says, if it is of this run."""
        if self._notice is None:
            return []
        try:
            note = json.loads(self._notice.read_text())
            return [
                (str(address), [int(note["port"])])
                for address in note["addresses"]
                if note["run"] == self._party.run_id
            ]
        except (OSError, ValueError, KeyError, TypeError):
            return []

    def _leader_own_address(self) -> str:
        """The leader's address: the one that the user chose, else what its name or the way to the others gives."""
        party = self._party
        # A node that is alone talks to nobody by an interface.
        interface = party.interface if len(party.hosts) > 1 else "auto"
        found = network.asked_address(party.local_addr, interface)
        found = found or network.own_address(party.host, party.hosts, party.leaders)
        if found is None:
            raise RendezvousError(
                f"{party.host} has no address by which other nodes could reach it: name one with --local-addr"
            )
        return found

    def _find(self) -> TCPStore:
        """Find the leader's store."""
        found = self._locate()
        self._lifeline = found.lifeline
        self._leader_address = found.leader_address
        self._own_address = network.asked_address(self._party.local_addr, self._party.interface) or found.own_address
        with self._translated():
            return TCPStore(found.leader_address, found.port, is_master=False, timeout=_STORE_TIMEOUT)

    def _locate(self, key: str = "") -> locator.Found:
        """Find the leader, saying from time to time that it is not there yet.

        Args:
            key: as `locator.find` has it.
        """
        party = self._party
        begin, pace = time.monotonic(), Pace(30, 120)

        def places() -> Sequence[tuple[str, Sequence[int]]]:
            if pace.due():
                say(f"{party.host}: waiting for {party.hosts[0]} ({time.monotonic() - begin:.0f} s)")
            return [*((name, party.ports) for name in party.leaders), *self._noticed()]

        found = locator.find(party.run_id, party.agent, places, begin + party.join_timeout, key)
        if isinstance(found, str):
            raise RendezvousTimeout(
                f"{party.host} did not find {party.hosts[0]} in {party.join_timeout:.0f} s ({found}); "
                "see --master-addr, --port-range and --join-timeout",
                missing=(party.hosts[0],),
            )
        return found

    def _join(self) -> None:
        party = self._party
        member = Member(
            agent=party.agent,
            host=party.host,
            workers=party.workers,
            software=party.software if self._round == 0 else {},
            problem=str(party.problem) if party.problem else "",
            status=party.problem.exit_status if party.problem else 0,
        )
        store = self._store()
        store.set(f"{self._key}/member/{party.agent}", member.encode())
        store.add(f"{self._key}/joined", 1)

    def _gather(self) -> RoundPlan:
        """The leader's part: publish the plan of the round, or why there is none."""
        try:
            plan = self._plan_round()
        except HpcLaunchError as error:
            refusal = RoundPlan("", 0, (), "", 0, problem=str(error), status=error.exit_status)
            self._store().set(f"{self._key}/plan", refusal.encode())
            raise
        self._store().set(f"{self._key}/plan", plan.encode())
        return plan

    def _plan_round(self) -> RoundPlan:
        """Wait for all, and open the workers' store."""
        party = self._party
        self._await_members()
        members = [Member.decode(text) for text in self._store().multi_get(self._member_keys())]
        self._hosts = {member.agent: member.host for member in members}
        refused = rounds.refusal(members)
        if refused is not None:
            raise RoundRefused(refused[0], exit_status=refused[1])
        last = self._plan
        named = last.job if last else party.job.job or derive.local_job_name(time.time(), os.getpid())
        job = JobDirectory(party.job.root, named)
        first_attempt = last.first_attempt if last else job.next_attempt()
        self._worker_server = None  # nobody uses that of the round before any more
        self._worker_server, port = self._open_worker_store(self._round)
        return RoundPlan(
            master_addr=self._own_address,
            master_port=port,
            workers=[member.workers for member in members],
            job=job.job,
            first_attempt=first_attempt,
        )

    def _member_keys(self) -> list[str]:
        return [f"{self._key}/member/{agent}" for agent in range(self._party.agents)]

    def _await_members(self) -> None:
        party, store = self._party, self._store()
        begin, pace = time.monotonic(), Pace(10, 60)
        while (joined := store.add(f"{self._key}/joined", 0)) < party.agents:
            self._mind_an_early_end()
            waited = time.monotonic() - begin
            late = waited > party.join_timeout
            if late or pace.due():
                missing = self._missing()
                names = hostlist.display(missing) if missing else f"{party.agents - joined} tasks"
                about = {"joined": joined, "expected": party.agents, "waited": round(waited, 1)}
                self.observer(events.NODE_MISSING, hosts=hostlist.display(missing), **about)
                if late:
                    raise RendezvousTimeout(
                        f"{names} did not join in {party.join_timeout:.0f} s ({joined}/{party.agents} joined): look at "
                        "the node's own output, exclude it, or wait longer with --join-timeout",
                        missing=missing,
                    )
                say(f"waiting for {names} ({joined}/{party.agents} joined, {waited:.0f} s)")
            time.sleep(0.01)

    def _missing(self) -> tuple[str, ...]:
        party, store = self._party, self._store()
        here = [key for key in self._member_keys() if store.check([key])]
        joined = [Member.decode(store.get(key)).host for key in here]
        return rounds.missing_hosts(party.hosts, party.agents_per_host or (1,) * len(party.hosts), joined)

    def _await_plan(self) -> RoundPlan:
        """The others' part: the leader gives up after the join timeout, so this needs only a little longer."""
        store, key = self._store(), f"{self._key}/plan"
        deadline = time.monotonic() + self._party.join_timeout + _FAREWELL_SECONDS
        while time.monotonic() < deadline:
            self._mind_the_leader()
            with contextlib.suppress(torch.distributed.DistStoreError):
                store.wait([key], _SLICE)
                plan: RoundPlan = RoundPlan.decode(store.get(key))
                return plan
            self._mind_an_early_end()
        raise RendezvousTimeout(f"{self._party.hosts[0]} did not begin round {self._round}; see --join-timeout")

    def _open_worker_store(self, number: int) -> tuple[TCPStore, int]:
        pinned = self._party.master_port
        if pinned is not None:
            try:
                return _store_server(pinned, _STORE_TIMEOUT), pinned
            except RuntimeError as error:
                raise RoundRefused(
                    f"--master-port {pinned} is taken on {self._party.host}: choose another, or leave it out"
                ) from error
        used = number + 2  # past the ports that the locator and the stores before may have
        return _first_store([*self._party.ports[used:], *self._party.ports[:used]], _STORE_TIMEOUT)


def first_free(ports: Sequence[int]) -> tuple[socket.socket, Sequence[int]]:
    """Listen on the first port that is free; also gives the ports after it."""
    for position, port in enumerate(ports):
        try:
            return network.listen(port), ports[position + 1 :]
        except OSError:
            continue
    listing = str(ports[0]) if len(ports) == 1 else f"{len(ports)} ports from {ports[0]} on"
    raise RendezvousError(f"port taken: {listing} cannot be listened on; see --port-range and --rdzv-endpoint")


def _first_store(ports: Sequence[int], timeout: timedelta) -> tuple[TCPStore, int]:
    """Serve a store on the first port that is free; where a single port was named, on any."""
    for port in ports:
        with contextlib.suppress(RuntimeError):
            return _store_server(port, timeout), port
    store = _store_server(0, timeout)
    return store, store.port


def _store_server(port: int, timeout: timedelta) -> TCPStore:
    return TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False, timeout=timeout)
