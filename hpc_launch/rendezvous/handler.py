"""The `slurm` rendezvous: fixed ranks, one attempt number on all nodes, and a fresh store for every attempt.

Registered with torch under the name `slurm` (entry-point group `torchrun.handlers`), so plain
`torchrun --rdzv-backend=slurm` uses it too. What differs from torch's c10d backend, and why:

- Ranks are those of the host list in every round. (c10d sorts by address as text.)
- The first coordinator is known from the list, not guessed by comparing names (pytorch/pytorch#73656).
- Agents talk over authenticated connections of their own (`hpc_launch.rendezvous`), not through a store, which any user
  of the network could write, and whose answer an agent would wait for as long as the kernel tries to reach a lost host.
- The workers get a store of their own in each round, on another port. (With c10d they share the agents' store and meet
  the addresses of the attempt before: restarts fail.)
- A round ends by one message, and all agents follow it.

One handler serves runs of fixed size and elastic ones (`--nnodes MIN:MAX`, `--spares`). In the latter every agent
listens, and where the coordinator is lost, the others elect another (`election`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from torch.distributed import (  # type: ignore[attr-defined]  # public, but its types do not export them
    HashStore,
    PrefixStore,
)
from torch.distributed.elastic.rendezvous import RendezvousHandler, RendezvousInfo
from torch.distributed.elastic.rendezvous.api import RendezvousClosedError, RendezvousStoreInfo

from hpc_launch.console import say
from hpc_launch.errors import HpcLaunchError, RendezvousError, RoundRefused
from hpc_launch.node import network
from hpc_launch.rendezvous import messages, worker_store
from hpc_launch.rendezvous.agent_state import is_final
from hpc_launch.rendezvous.follower import PAUSE_SECONDS, CoordinatorFollower
from hpc_launch.rendezvous.messages import (
    Begun,
    Done,
    Failed,
    Message,
    Notice,
    RoundEnd,
    RoundEnding,
    RoundPlan,
    Start,
    Stop,
)
from hpc_launch.rendezvous.rendezvous_config import RendezvousConfig
from hpc_launch.world import World

NAME = "slurm"

_Shared = TypeVar("_Shared", bound=Message)

# How often an agent looks around that waits for nothing but a message.
_MESSAGE_SECONDS = 1.0


class SpareReleased(Exception):
    """The run has ended while this agent was a spare.

    Attributes:
        end: how.
    """

    def __init__(self, end: RoundEnd) -> None:
        super().__init__(end.cause)
        self.end = end


class SlurmRendezvous(RendezvousHandler):
    """The `slurm` rendezvous as one agent uses it.

    The agent of hpc-launch uses `report_failure`, `report_done` and `end` as well; torch's own agent makes do with the
    methods of torch's interface, restarts included.

    Args:
        config: what this agent brings along.
        agents_store: give torch's agent a store that all agents share, for the ranks that it assigns itself.

    Attributes:
        observer: is called with nodes that are missing or lost, as events (`records.events`).
        spared: is called with the plan of a round in which this node has no workers.
        idle: is called again and again as long as it has none.
    """

    def __init__(self, config: RendezvousConfig, *, agents_store: bool = False) -> None:
        self.observer: Callable[..., None] = lambda _, **__: None
        self.spared: Callable[[RoundPlan], object] = lambda _: None
        self.idle: Callable[[], object] = lambda: None
        self._config, self._agents_store = config, agents_store
        self._follower = CoordinatorFollower(config, self._observe, names_job=not agents_store)
        self._state, self._client = self._follower.state, self._follower.client

    def _observe(self, event: str, **facts: Any) -> None:
        self.observer(event, **facts)

    # ---- what the agent asks

    @property
    def round_number(self) -> int:
        """Number of the current round, from 0."""
        return self._state.round

    @property
    def start(self) -> Start | None:
        """What the coordinator said of the current round; None while this agent waits for one."""
        return self._state.start

    @property
    def plan(self) -> RoundPlan:
        """What the coordinator said of the current round, for an agent that has workers in it."""
        if self._state.plan is None:
            raise RendezvousError("there was no rendezvous yet")
        return self._state.plan

    @property
    def interface(self) -> str:
        """The interface by which this node talks to the others; empty on a single node."""
        if self._state.nodes == 1 or len(self._config.hosts) == 1:
            return ""
        return network.interface_of(self._follower.search.own_address, network.interfaces())

    @property
    def descriptors(self) -> tuple[int, ...]:
        """On which news come: messages of the coordinator, and that others wait for an agent."""
        return (*self._client.descriptors, *self._follower.urgent)

    @property
    def pause(self) -> float:
        """Seconds after which this agent looks again, whatever comes: soon while it or others wait for an agent."""
        return self._follower.longest_pause

    @property
    def elastic(self) -> bool:
        """Whether the run goes on when nodes are lost."""
        return self._config.elastic

    def world(self, whole: World) -> World:
        """The nodes that have workers in this round, and the place of this one among them."""
        return self._state.world(whole)

    @property
    def hosts(self) -> Sequence[str]:
        """The nodes of the current round that have workers, one for each agent, as far as this agent needs them."""
        return tuple(self._state.started.hosts or self._config.hosts)

    @property
    def leads(self) -> bool:
        """Whether this agent coordinates the run."""
        return self._follower.leads

    @property
    def spares(self) -> int:
        """How many nodes of the round have no workers."""
        start = self._state.started
        return len(start.agents) - len(start.active)

    # ---- what the agent reports

    def report_failure(
        self,
        status: int,
        cause: str,
        *,
        own: bool = True,
        fault: str = "",
        hang: bool = False,
        stopped: Callable[[], bool] = lambda: False,
    ) -> RoundEnd | None:
        """Say that something failed here; returns how the round really ended (another agent may have been first).

        In a run of fixed size a coordinator that does not answer is waited for until it does, or its node is lost.

        Args:
            status: the exit status that goes with it.
            cause: what happened, one line.
            own: whether workers failed by themselves, and did not follow others.
            fault: what shows that this node, or a device of it, is broken; empty if nothing does.
            hang: whether no worker failed, but the job hangs.
            stopped: whether this agent has been told to leave, and is to wait no longer.

        Returns:
            How the round ended; None where it was told to leave before that was known.

        Raises:
            RendezvousError: when the others are lost.
        """
        cause = messages.one_line(cause)
        self._client.send(Failed(self._state.round, status, cause, own, messages.one_line(fault), hang))
        end = RoundEnd(RoundEnding.RESTART.value, self._state.rank, self._config.host, status, cause, hang=hang)
        if self.elastic:
            return self._await_end(end, 4 * self._config.node_timeout, stopped)
        # Where the first agent is frozen, all others come to wait: a line from each would be too many.
        speaks = own or self._config.agent == 1
        return self._await_end(end, math.inf, stopped, remark=self._config.node_timeout if speaks else math.inf)

    def report_end(self, status: int, cause: str, signal: str = "") -> RoundEnd | None:
        """Say that this agent leaves for good, so that the others do not wait for its workers.

        Args:
            status: the exit status that all are to end with.
            cause: why, one line.
            signal: the name of the signal that made it leave, if one did.

        Returns:
            How the round really ended (another agent may have been first); None when there is none.
        """
        if not self._follower.is_open:
            return None
        end = RoundEnd(
            RoundEnding.FAILED.value, self._state.rank, self._config.host, status, messages.one_line(cause), signal
        )
        self._state.leave()
        if self._state.end is not None:
            return self._state.end
        self._client.send(Stop(end))
        try:
            return self._await_end(end, self._config.node_timeout)
        except HpcLaunchError:
            self._state.end = end  # it leaves, and the others are lost, or there is a fault of our own
            return end

    def report_begun(self) -> None:
        """Say that the workers here have started; until all have, those that have may wait for them."""
        self._client.send(Begun(self._state.round))

    def report_done(self) -> None:
        """Say that all workers here ended well; the last agent to do so ends the round."""
        self._client.send(Done(self._state.round))
        self._state.done = True

    def end(self) -> RoundEnd | None:
        """How the current round ended; None while it goes on. It asks no other agent: the coordinator says it.

        Raises:
            RendezvousError: when the others of a run of fixed size are lost.
        """
        if self._state.end is None:
            self._follower.receive()
        if self._state.end is None:
            self._follower.check_liveness(waits=self._state.done or not self._state.begun)
        return self._state.end

    # ---- what concerns all rounds

    def clock(self) -> tuple[float, float] | None:
        """How many seconds this node's clock is ahead of the coordinator's, and how wrong that can be, if known."""
        return (0.0, 0.0) if self.leads else self._client.clock()

    def tell_notice(self, name: str, count: int) -> None:
        """Tell the other agents that a signal came for the `count`-th time."""
        # It is in what this agent says of itself, too: the next coordinator may hear of it in no other way.
        self._state.note_notices({name: count})
        self._client.send(Notice(name, count))

    def notices(self) -> Mapping[str, int]:
        """How often each signal came to some agent, by name."""
        self._follower.receive()
        return self._state.run.notices

    def share(self, name: str, message: Message) -> None:
        """Leave something for the other agents to read when they need it."""
        self._client.share(name, message)

    def shared(self, name: str, kind: type[_Shared]) -> _Shared | None:
        """What was left; None as long as nothing was, or the coordinator is lost."""
        return self._client.shared(name, kind)

    def count(self, name: str, amount: int) -> int:
        """Add to a counter of this round that all agents share; returns what it is then, -1 where it is unknown."""
        return self._client.count(name, amount)

    def first(self, what: str) -> bool:
        """Whether no other agent has asked this before: it is the one to say something for all."""
        return self._client.first(what)

    # ---- torch's interface

    def get_backend(self) -> str:
        """The name it is registered under."""
        return NAME

    @property
    def use_agent_store(self) -> bool:
        """Workers use the store that the coordinator serves for their round; none of them has to open one."""
        return True

    def get_run_id(self) -> str:
        """The name of the run."""
        return self._config.run_id

    def is_closed(self) -> bool:
        """Whether there will be no further round."""
        return self._state.is_closed

    def set_closed(self) -> None:
        """End the run for all, unless the round has ended already."""
        self.report_end(1, "the rendezvous was closed")

    def num_nodes_waiting(self) -> int:
        """Tells torch's own agent to join the next round: 1 when this one ended for another attempt."""
        end = self.end()
        return int(end is not None and end.ending != RoundEnding.DONE.value)

    def next_rendezvous(self) -> RendezvousInfo:
        """Join the next round and wait until it begins with workers on this node.

        Raises:
            SpareReleased: when the run ended before this node had any.
            RendezvousTimeout: naming the nodes that did not come.
            RoundRefused: when a node has a problem, the nodes do not fit together, or others could go on without these.
            RendezvousClosedError: when the run has ended.
            RendezvousError: when the others are lost, or fewer nodes are left than are wanted at least.
        """
        end = self._state.end
        if end is None and self._state.round >= 0:
            # torch's own agent asks for a new round without saying why.
            end = self.report_failure(1, "a worker failed")
        if end is not None and is_final(end):
            raise RendezvousClosedError(end.cause or "the run has ended")
        self._state.wait_for_round()
        if not self._follower.is_open:
            self._follower.open()
        if self._client.connection is not None:
            self._follower.present()
        plan = self._await_plan()
        where = RendezvousStoreInfo(plan.master_addr, plan.master_port)
        return RendezvousInfo(self._store_of_agents(plan), self._state.rank, self._state.nodes, where)

    def _store_of_agents(self, plan: RoundPlan) -> HashStore | PrefixStore:
        """The store for what torch's own agents tell each other; ours take ranks from the plan and need none."""
        if not self._agents_store:
            return HashStore()
        where = f"{self._config.hosts[0]} ({plan.master_addr})"
        return PrefixStore("agents", worker_store.connect_to_store(plan.master_addr, plan.master_port, where))

    def shutdown(self) -> bool:
        """Leave; the coordinator goes last, so that all can read the end."""
        self._follower.leave()
        return True

    # ---- a round ends

    def _await_end(
        self,
        otherwise: RoundEnd,
        patience: float,
        stopped: Callable[[], bool] = lambda: False,
        *,
        remark: float = math.inf,
    ) -> RoundEnd | None:
        """Wait for the coordinator's word on how the round ended; None where this agent was told to leave before.

        Args:
            otherwise: how it counts as ended if the coordinator does not say it in time.
            patience: seconds until then.
            stopped: whether this agent has been told to leave.
            remark: seconds after which a line says what is waited for.
        """
        begin = time.monotonic()
        while self._state.end is None:
            if stopped():
                return None
            waited = time.monotonic() - begin
            if waited > remark:
                leads = f"the agent on {self._config.hosts[0]}, which leads the run, and does not answer"
                say(f"{self._config.host}: {otherwise.cause}; waiting for {leads}")
                remark = math.inf
            if self._client.connection is None and not self.elastic:
                raise RendezvousError(f"lost the agent on {self._config.hosts[0]}, which led the run")
            if self._client.connection is None or waited > patience:
                self._state.end = otherwise
                break
            self._follower.receive()
            self._follower.check_liveness(waits=True)
            if self._state.end is None:
                self._follower.pause()
        if otherwise.ending == RoundEnding.FAILED.value and self._state.end.lost:
            self._state.end = otherwise  # it leaves, whichever else does
        return self._state.end

    # ---- a round begins

    def _await_plan(self) -> RoundPlan:
        """Wait for a round in which this agent has workers; gives its plan."""
        told, state = False, self._state
        self._follower.search.begin()
        while True:
            self._follower.ensure_coordinator()
            self._follower.receive()
            if state.plan is not None:
                return state.plan  # the round may have ended by now, which is for `end` to say
            if self._follower.refusal is not None:
                raise self._follower.refusal
            self._check_end_of_run()
            self._follower.check_liveness(waits=state.start is None or not state.begun)
            if state.start is not None:
                if not told:
                    say(f"{self._config.host} is a spare")
                    told = True
                    self.spared(state.start.plan)
                self.idle()
            elif self.leads and state.known.agreed.number:
                self._follower.yield_to_another()
            self._follower.present_if_delayed()
            self._follower.pause(PAUSE_SECONDS if self.leads and state.start is None else _MESSAGE_SECONDS)

    def _check_end_of_run(self) -> None:
        """See whether the run, or the round in which this node is a spare, has ended.

        Raises:
            SpareReleased: when the run has ended, and this agent has nothing more to do.
            RoundRefused: when it has ended otherwise.
        """
        state, end = self._state, self._state.end
        if end is None:
            return
        if is_final(end):
            if state.is_spare or end.ending == RoundEnding.DONE.value:
                raise SpareReleased(end)
            # The agent that left says why.
            raise RoundRefused(end.cause, exit_status=end.status, silent=True)
        state.wait_for_round()
        if self._client.connection is not None:
            self._follower.present()
