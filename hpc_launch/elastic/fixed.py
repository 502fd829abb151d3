"""The `slurm` rendezvous of a run whose nodes all stay: they talk through a store that the first of them hosts.

Each agent does a number of store operations per round that does not grow with the number of agents.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Mapping, Sequence
from typing import TypeVar

from torch.distributed import (  # type: ignore[attr-defined]  # public, but its types do not export them
    PrefixStore,
    TCPStore,
)
from torch.distributed.elastic.rendezvous import RendezvousInfo
from torch.distributed.elastic.rendezvous.api import RendezvousClosedError, RendezvousStoreInfo

from hpc_launch import hostlist
from hpc_launch.elastic import claiming, finding, rounds, stores
from hpc_launch.elastic.joining import Joining
from hpc_launch.elastic.locator import Lifeline, Locator
from hpc_launch.elastic.party import Party
from hpc_launch.elastic.rendezvous import SlurmRendezvous
from hpc_launch.elastic.rounds import Ending, Message, RoundEnd, RoundPlan
from hpc_launch.elastic.stores import AgentsStore
from hpc_launch.errors import HpcLaunchError, RendezvousError, RoundRefused
from hpc_launch.node import network
from hpc_launch.records import events

_Shared = TypeVar("_Shared", bound=Message)

# How long the leader waits for the others to have read the end before it takes the store away.
_FAREWELL_SECONDS = 15.0
# How often an agent asks whether others have got a notice signal: they come minutes before they matter.
_NOTICE_SECONDS = 0.5
# At most so many questions a second does the store get from all agents together while workers run.
_QUESTIONS_PER_SECOND = 5000


class FixedRendezvous(SlurmRendezvous):
    """One agent's end of it."""

    def __init__(self, party: Party) -> None:
        super().__init__(party)
        self._opened: AgentsStore | None = None
        self._locator: Locator | None = None
        self._lifeline: Lifeline | None = None
        self._worker_server: TCPStore | None = None
        self._whereabouts = finding.Whereabouts(party)
        self._leader_address = "127.0.0.1"
        self._next_question = self._next_notices = 0.0
        self._observed = ""
        self._notices: Mapping[str, int] = {}
        # Where each agent is; with several tasks on a node this is known when they have joined.
        self._hosts = dict(enumerate(party.hosts)) if party.agents_per_host is not None else {}

    # ---- what the agent asks

    @property
    def leads(self) -> bool:
        """Whether this agent leads the run."""
        return self._party.leader

    @property
    def hosts(self) -> Sequence[str]:
        """Where the agents are; only the leader knows of all."""
        return tuple(self._hosts.values())

    def report_failure(self, status: int, cause: str, *, own: bool = True, fault: str = "") -> RoundEnd:  # noqa: ARG002 - here all nodes stay
        """Say that something failed here; returns how the round really ended."""
        return self._propose(self._failure(status, cause))

    def report_end(self, status: int, cause: str, signal: str = "") -> RoundEnd | None:
        """Say that this agent leaves for good, so that the others do not wait for its workers."""
        if self._opened is None or self._round < 0:
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
        if self._store.add(self._key("done"), 1) == self._party.agents:
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
            self._end = self._written()
            lost = self._lost_agents()
            if self._end is None and lost:
                # Nobody can take its place, so another attempt would wait for it in vain.
                self._propose(RoundEnd(Ending.FAILED.value, self._party.agent, self._party.host, 69, lost))
        return self._end

    # ---- what concerns all rounds

    def clock(self) -> tuple[float, float] | None:
        """How far this node's clock is ahead; asked on the connection to the leader, at no cost for the store."""
        if self._party.leader:
            return 0.0, 0.0
        return self._lifeline.clock() if self._lifeline is not None else None

    def tell_notice(self, name: str, count: int) -> None:
        """Tell the other agents that a signal came for the `count`-th time."""
        said = ""
        while True:
            counts: dict[str, int] = json.loads(said or "{}")
            if counts.get(name, 0) >= count:
                return
            wanted = json.dumps({**counts, name: count})
            said = self._store.propose("notices", wanted, said).decode()
            if said == wanted:
                return

    def notices(self) -> Mapping[str, int]:
        """How often each signal came to some agent, by name; asked of the store at most twice a second."""
        now = time.monotonic()
        if now >= self._next_notices:
            self._next_notices = now + _NOTICE_SECONDS + self._party.agents / _QUESTIONS_PER_SECOND
            self._notices = json.loads(self._store.get("notices") or "{}")
        return self._notices

    def count(self, name: str, amount: int) -> int:
        """Add to a counter of this round that all agents share, which begins at 0; returns what it is then."""
        return self._store.add(self._key(f"count/{name}"), amount)

    def share(self, name: str, message: Message) -> None:
        """Leave something for the other agents to read when they need it."""
        self._store.set(f"shared/{name}", message.encode())

    def shared(self, name: str, kind: type[_Shared]) -> _Shared | None:
        """What was left; None as long as nothing was, or the store is lost."""
        with contextlib.suppress(RendezvousError):
            text = self._store.get(f"shared/{name}")
            return kind.decode(text) if text is not None else None
        return None

    def first(self, what: str) -> bool:
        """Whether no other agent has asked this before: it is the one to say something for all."""
        with contextlib.suppress(RendezvousError):
            return self._store.add(f"first/{what}", 1) == 1
        return True

    # ---- torch's interface

    def num_nodes_waiting(self) -> int:
        """Tells torch's own agent to join the next round: 1 when this one ended for another attempt."""
        end = self.end()
        return int(end is not None and end.ending != Ending.DONE.value)

    def next_rendezvous(self) -> RendezvousInfo:
        """Join the next round and wait until all have.

        Raises:
            RendezvousTimeout: naming the nodes that did not come.
            RoundRefused: when a node has a problem or the nodes do not fit together.
            RendezvousClosedError: when the run has ended.
            RendezvousError: when the store is lost.
        """
        if self._opened is None:
            self._opened = self._serve() if self._party.leader else self._find()
        if self._round >= 0:
            # torch's own agent asks for a new round without saying why.
            end = self._end or self._propose(self._failure(1, "a worker failed"))
            if end.ending != Ending.RESTART.value:
                raise RendezvousClosedError(end.cause or "the run has ended")
        self._round += 1
        self._end = None
        self._plan = plan = self._begin_round()
        if plan.problem:
            # The leader says it for all.
            raise RoundRefused(plan.problem, exit_status=plan.status, silent=not self._party.leader)
        address = self._leader_address if self._party.leader else plan.master_addr
        store = stores.connect(address, plan.master_port, self._leader_s_node)
        # The agents' own words (torch's rank assignment) stay apart from the workers'.
        where = RendezvousStoreInfo(plan.master_addr, plan.master_port)
        return RendezvousInfo(PrefixStore("agents", store), self._party.agent, self._party.agents, where)

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
            while self._locator.callers and time.monotonic() < deadline:
                time.sleep(0.02)
            self._locator.close()
            self._whereabouts.remove()
        self._opened = self._worker_server = self._locator = self._lifeline = None
        return True

    # ---- the store

    @property
    def _store(self) -> AgentsStore:
        if self._opened is None:
            raise RendezvousError("the rendezvous is not open")
        return self._opened

    @property
    def _leader_s_node(self) -> str:
        """The node of the store, for messages."""
        return "this node" if self._party.leader else f"{self._party.hosts[0]} ({self._leader_address})"

    def _key(self, name: str) -> str:
        return f"round/{self._round}/{name}"

    def _serve(self) -> AgentsStore:
        """Start the agents' store and answer those who look for it."""
        party = self._party
        self._own_address = finding.leader_address(party)
        listener = stores.listen(party.ports)
        own = listener.getsockname()[1]
        store, port = stores.first_store(party.ports[party.ports.index(own) + 1 :])
        self._locator = Locator(party.run_id, listener, port)
        self._whereabouts.write(own)
        return AgentsStore(store, self._leader_s_node, self._mind_the_leader)

    def _find(self) -> AgentsStore:
        """Find the leader's store."""
        party, found = self._party, finding.find_leader(self._party)
        self._lifeline = found.lifeline
        self._leader_address = found.leader_address
        self._own_address = network.asked_address(party.local_addr, party.interface) or found.own_address
        store = stores.connect(found.leader_address, found.port, self._leader_s_node)
        return AgentsStore(store, self._leader_s_node, self._mind_the_leader)

    # ---- how a round ends

    def _failure(self, status: int, cause: str) -> RoundEnd:
        """How the round ends where something failed here."""
        return rounds.end_after_failure(
            round_number=self._round,
            max_restarts=self._party.max_restarts,
            agent=self._party.agent,
            host=self._party.host,
            status=status,
            cause=cause,
        )

    def _propose(self, end: RoundEnd) -> RoundEnd:
        """Write the end of the round, unless somebody has; returns the one that stands."""
        self._end = RoundEnd.decode(self._store.propose(self._key("end"), end.encode()))
        return self._end

    def _written(self) -> RoundEnd | None:
        """The end of the round, if somebody has written it."""
        text = self._store.get(self._key("end"))
        return RoundEnd.decode(text) if text is not None else None

    def _mind_the_leader(self) -> None:
        """See that the leader is there before asking its store."""
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

    # ---- how it begins

    def _begin_round(self) -> RoundPlan:
        """Join, and wait for the plan; or be the one who makes it."""
        joining = Joining(self._party, self._store, self._round, self._mind_an_early_end, self.observer)
        joining.join()
        if not self._party.leader:
            return joining.await_plan()
        try:
            plan = self._plan_round(joining)
        except HpcLaunchError as error:
            joining.publish(RoundPlan("", 0, (), "", 0, problem=str(error), status=error.exit_status))
            raise
        joining.publish(plan)
        return plan

    def _plan_round(self, joining: Joining) -> RoundPlan:
        """The leader's part: wait for all, and open the workers' store."""
        members = joining.await_members()
        self._hosts = {member.agent: member.host for member in members}
        refused = rounds.refusal(members)
        if refused is not None:
            raise RoundRefused(refused[0], exit_status=refused[1])
        party, last = self._party, self._plan
        # Later rounds go on in the directory of the first.
        run = last or claiming.claim(party.job, party.identity, party.run_id)
        self._worker_server = None  # nobody uses that of the round before any more
        self._worker_server, port = stores.worker_store(party, self._round)
        return RoundPlan(
            master_addr=self._own_address,
            master_port=port,
            workers=[member.workers for member in members],
            job=run.job,
            first_attempt=run.first_attempt,
            run_id=run.run_id,
        )

    def _mind_an_early_end(self) -> None:
        """See that nobody has left while this agent waits for the round to begin."""
        lost = self._lost_agents()
        if lost:
            raise RendezvousError(lost)
        self._end = self._written()
        if self._end is not None:
            # Who left says why.
            raise RoundRefused(self._end.cause, exit_status=self._end.status, silent=True)
