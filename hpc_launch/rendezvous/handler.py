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

import contextlib
import math
import select
import time
import traceback
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeVar

from torch.distributed import (  # type: ignore[attr-defined]  # public, but its types do not export them
    HashStore,
    PrefixStore,
)
from torch.distributed.elastic.rendezvous import RendezvousHandler, RendezvousInfo
from torch.distributed.elastic.rendezvous.api import RendezvousClosedError, RendezvousStoreInfo

from hpc_launch.console import say
from hpc_launch.errors import HpcLaunchError, RendezvousError, RendezvousTimeout, RoundRefused
from hpc_launch.node import network
from hpc_launch.patience import Act
from hpc_launch.records import events
from hpc_launch.rendezvous import codec, discovery, job_claim, membership, messages, worker_store
from hpc_launch.rendezvous.background_call import Inquiry
from hpc_launch.rendezvous.coordinator_server import CoordinatorServer, OpenStore
from hpc_launch.rendezvous.discovery import Finding, Reached
from hpc_launch.rendezvous.election import Election
from hpc_launch.rendezvous.failure_detector import FailureDetector, Search
from hpc_launch.rendezvous.membership import Knowledge, Membership
from hpc_launch.rendezvous.messages import (
    FROM_COORDINATOR,
    Accept,
    AllBegun,
    Ask,
    Begun,
    Bye,
    Done,
    Ended,
    Ending,
    Failed,
    Hello,
    Message,
    Notice,
    Notices,
    Ping,
    Places,
    Pong,
    Propose,
    Purpose,
    Question,
    Ready,
    RefusalKind,
    Refused,
    RoundEnd,
    RoundPlan,
    RunState,
    Share,
    Start,
    Stop,
    Told,
    Waiting,
)
from hpc_launch.rendezvous.rendezvous_config import RendezvousConfig
from hpc_launch.rendezvous.rounds import GONE, SILENT
from hpc_launch.rendezvous.transport.connection import Connection, set_keepalive
from hpc_launch.rendezvous.transport.faults import MessageError
from hpc_launch.rendezvous.transport.keys import Keyring
from hpc_launch.world import World

NAME = "slurm"

_Shared = TypeVar("_Shared", bound=Message)

# How often an agent that waits looks around, if no news wakes it: where it minds others, or is asked to stop; where it
# waits for nothing but a message; and where nothing can wake it.
_PAUSE_SECONDS = 0.1
_MESSAGE_SECONDS = 1.0
_LOOK_SECONDS = 0.02
# So often a coordinator is looked for at least before an agent gives up, which may have been stopped most of the time.
_SEARCHES = 3
# How often an agent checks on those that it waits for.
_DOUBT_SECONDS = 0.1
_FAREWELL_SECONDS = 15.0
# The quickest of so many answers tells the time best.
_CLOCK_TURNS = 3
# So long the removal of files may take at the end.
_FILES_SECONDS = 2.0
# An answer that takes longer is none.
_ANSWER_SECONDS = 1.0


@dataclass
class _Alone:
    """The time without a coordinator.

    Attributes:
        since: when it began (time.monotonic).
        searches: how often one has been looked for since, in vain.
    """

    since: float = field(default_factory=time.monotonic)
    searches: int = 0


class SpareReleased(Exception):
    """The run has ended while this agent was a spare.

    Attributes:
        end: how.
    """

    def __init__(self, end: RoundEnd) -> None:
        super().__init__(end.cause)
        self.end = end


class SlurmRendezvous(RendezvousHandler):
    """One agent's end of the rendezvous.

    The agent of hpc-launch uses `report_failure`, `report_done` and `end` as well; torch's own agent makes do with the
    methods of torch's interface, restarts included.

    Args:
        config: what this agent brings along.
        agents_store: give torch's agent a store that all agents share, for the ranks that it assigns itself.

    Attributes:
        observer: is called with nodes that are missing or lost, as events (`records.events`).
        start: what the coordinator said of the current round.
        spared: is called with the plan of a round in which this node has no workers.
        idle: is called again and again as long as it has none.
    """

    def __init__(self, config: RendezvousConfig, *, agents_store: bool = False) -> None:
        self.observer: Callable[..., None] = lambda _, **__: None
        self.spared: Callable[[RoundPlan], object] = lambda _: None
        self.idle: Callable[[], object] = lambda: None
        self.start: Start | None = None
        self._config = self._whole = config
        self._agents_store = agents_store
        self._own_address = "127.0.0.1"
        self._round = -1
        self._plan: RoundPlan | None = None
        self._end: RoundEnd | None = None
        # The run ended for all between two rounds: for the agent that is about to join the next one.
        self._late_end: RoundEnd | None = None
        self._whereabouts = discovery.Whereabouts(config)
        self._server: CoordinatorServer | None = None
        self._election: Election | None = None
        self._link: Connection | None = None
        command = config.identity.command
        self._hello = messages.fitting(
            Hello(
                purpose=Purpose.JOIN,
                agent=config.agent,
                host=config.host,
                instance=uuid.uuid4().hex,
                program=config.identity.program,
                words=messages.shown_words(config.identity.words),
                digests=command.digests,
                texts=command.texts or {},
                task=command.task,
            )
        )
        self._keyring = config.keyring or Keyring(config.identity.place, ())
        self._search = Search(self._hello, self._keyring)
        self._failure_detector = FailureDetector(self._search.silent, config.node_timeout)
        self._next_doubt = 0.0
        self._found: Inquiry[Reached] | None = None
        self._finding: Finding | None = None
        self._equal: Inquiry[str] | None = None
        self._problem = config.problem
        self._writing: Act[None] | None = None
        self._begun = self._done = False
        self._known = Knowledge(Membership(0, tuple(range(config.agents))))
        self._state = RunState()
        # Where those are that this agent is to join, if it comes late: the coordinator that it has found says it.
        self._others: Mapping[int, tuple[str, int]] = {}
        self._asked = 0
        self._answers: dict[int, float | str | bool] = {}
        self._refusal: RendezvousError | None = None
        # The loss of a coordinator that cannot be replaced.
        self._lost: RendezvousError | None = None

    # ---- what the agent asks

    @property
    def round_number(self) -> int:
        """Number of the current round, from 0."""
        return self._round

    @property
    def plan(self) -> RoundPlan:
        """What the coordinator said of the current round."""
        if self._plan is None:
            raise RendezvousError("there was no rendezvous yet")
        return self._plan

    @property
    def interface(self) -> str:
        """The interface by which this node talks to the others; empty on a single node."""
        if len(self._config.hosts) == 1:
            return ""
        return network.interface_of(self._own_address, network.interfaces())

    @property
    def descriptors(self) -> tuple[int, ...]:
        """On which news come: messages of the coordinator, and that others wait for an agent."""
        link = () if self._link is None or self._link.broken else (self._link.fileno(),)
        return link if self._server is None else (*link, self._server.urgent)

    @property
    def pause(self) -> float:
        """Seconds after which this agent looks again, whatever comes: soon while it or others wait for an agent.

        The agent that is waited for may be frozen, which only a look finds out (`_mind_the_silent`).
        """
        server = self._server
        waits = not self._begun or self._done or (server is not None and (server.awaited or server.sought))
        return _DOUBT_SECONDS if self.elastic and waits else math.inf

    @property
    def elastic(self) -> bool:
        """Whether the run goes on when nodes are lost."""
        return self._whole.elastic

    def world(self, whole: World) -> World:
        """The nodes that have workers in this round, and the place of this one among them."""
        if not self.elastic:
            return whole
        start = self._started()
        rank = list(start.active).index(self._whole.agent)
        return replace(whole, hosts=tuple(start.hosts), node_rank=rank, agents=len(start.active), agent_rank=rank)

    @property
    def hosts(self) -> Sequence[str]:
        """The nodes of the current round that have workers, one for each agent, as far as this agent needs them."""
        return tuple(self._started().hosts or self._whole.hosts)

    @property
    def leads(self) -> bool:
        """Whether this agent coordinates the run."""
        return self._server is not None and self._server.leads

    @property
    def spares(self) -> int:
        """How many nodes of the round have no workers."""
        return len(self._started().agents) - len(self._started().active)

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
        cause = messages.line(cause)
        self._send(Failed(self._round, status, cause, own, messages.line(fault), hang))
        end = RoundEnd(Ending.RESTART.value, self._config.agent, self._config.host, status, cause, hang=hang)
        if self.elastic:
            return self._await_end(end, 4 * self._whole.node_timeout, stopped)
        # Where the first agent is frozen, all others come to wait: a line from each would be too many.
        speaks = own or self._whole.agent == 1
        return self._await_end(end, math.inf, stopped, remark=self._whole.node_timeout if speaks else math.inf)

    def report_end(self, status: int, cause: str, signal: str = "") -> RoundEnd | None:
        """Say that this agent leaves for good, so that the others do not wait for its workers.

        Args:
            status: the exit status that all are to end with.
            cause: why, one line.
            signal: the name of the signal that made it leave, if one did.

        Returns:
            How the round really ended (another agent may have been first); None when there is none.
        """
        if self._server is None and self._link is None:
            return None
        end = RoundEnd(Ending.FAILED.value, self._config.agent, self._config.host, status, messages.line(cause), signal)
        if self._late_end is not None:
            self._end, self._late_end = self._late_end, None
        if self._end is not None and self._end.ending != Ending.RESTART.value:
            return self._end
        self._end = None
        self._send(Stop(end))
        try:
            return self._await_end(end, self._whole.node_timeout)
        except HpcLaunchError:
            self._end = end  # it leaves, and the others are lost, or there is a fault of our own
            return end

    def report_begun(self) -> None:
        """Say that the workers here have started; until all have, those that have may wait for them."""
        self._send(Begun(self._round))

    def report_done(self) -> None:
        """Say that all workers here ended well; the last agent to do so ends the round."""
        self._send(Done(self._round))
        self._done = True

    def end(self) -> RoundEnd | None:
        """How the current round ended; None while it goes on. It asks no other agent: the coordinator says it.

        Raises:
            RendezvousError: when the others of a run of fixed size are lost.
        """
        if self._end is None:
            self._read()
        if self._end is None:
            self._mind_the_silent(waits=self._done or not self._begun)
        return self._end

    # ---- what concerns all rounds

    def clock(self) -> tuple[float, float] | None:
        """How many seconds this node's clock is ahead of the coordinator's, and how wrong that can be; None if unknown.

        The coordinator has read its clock at some moment between question and answer (F. Cristian, Probabilistic clock
        synchronization, Distributed Computing 3, 1989): half of that time is the error.
        """
        if self.leads:
            return 0.0, 0.0
        found = [measured for _ in range(_CLOCK_TURNS) if (measured := self._ask_clock()) is not None]
        return min(found, key=lambda measured: measured[1], default=None)

    def _ask_clock(self) -> tuple[float, float] | None:
        asked = time.time()
        told = self._inquire(Question.CLOCK)
        now = time.time()
        return None if told is None else ((asked + now) / 2 - float(told), max(0.0, now - asked) / 2)

    def tell_notice(self, name: str, count: int) -> None:
        """Tell the other agents that a signal came for the `count`-th time."""
        # It is in what this agent says of itself, too: the next coordinator may hear of it in no other way.
        self._state = replace(self._state, notices=membership.merged([self._state.notices, {name: count}]))
        self._send(Notice(name, count))

    def notices(self) -> Mapping[str, int]:
        """How often each signal came to some agent, by name."""
        self._read()
        return self._state.notices

    def share(self, name: str, message: Message) -> None:
        """Leave something for the other agents to read when they need it."""
        self._send(Share(name, message.encode()))

    def shared(self, name: str, kind: type[_Shared]) -> _Shared | None:
        """What was left; None as long as nothing was, or the coordinator is lost."""
        told = self._inquire(Question.SHARED, name)
        try:
            return kind.decode(told) if isinstance(told, str) and told else None
        except MessageError as error:
            say(f"ignored what an agent has shared as {name}: {error}")
            return None

    def count(self, name: str, amount: int) -> int:
        """Add to a counter of this round that all agents share; returns what it is then, -1 where it is unknown."""
        told = self._inquire(Question.COUNT, name, amount)
        return -1 if told is None else int(told)

    def first(self, what: str) -> bool:
        """Whether no other agent has asked this before: it is the one to say something for all."""
        told = self._inquire(Question.FIRST, what)
        return told is None or bool(told)

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
        return self._end is not None and self._end.ending != Ending.RESTART.value

    def set_closed(self) -> None:
        """End the run for all, unless the round has ended already."""
        self.report_end(1, "the rendezvous was closed")

    def num_nodes_waiting(self) -> int:
        """Tells torch's own agent to join the next round: 1 when this one ended for another attempt."""
        end = self.end()
        return int(end is not None and end.ending != Ending.DONE.value)

    def next_rendezvous(self) -> RendezvousInfo:
        """Join the next round and wait until it begins with workers on this node.

        Raises:
            SpareReleased: when the run ended before this node had any.
            RendezvousTimeout: naming the nodes that did not come.
            RoundRefused: when a node has a problem, the nodes do not fit together, or others could go on without these.
            RendezvousClosedError: when the run has ended.
            RendezvousError: when the others are lost, or fewer nodes are left than are wanted at least.
        """
        if self._end is not None and self._end.ending != Ending.RESTART.value:
            raise RendezvousClosedError(self._end.cause or "the run has ended")
        if self._round >= 0 and self._end is None:
            # torch's own agent asks for a new round without saying why.
            end = self.report_failure(1, "a worker failed")
            if end is not None and end.ending != Ending.RESTART.value:
                raise RendezvousClosedError(end.cause or "the run has ended")
        self._end = self._plan = self.start = None
        if self._late_end is not None:
            self._end, self._late_end = self._late_end, None
        if self._server is None and self._link is None:
            self._open()
        if self._link is not None:
            self._present()
        start = self._await_start()
        where = RendezvousStoreInfo(start.plan.master_addr, start.plan.master_port)
        return RendezvousInfo(self._store_of_agents(start.plan), self._config.agent, self._config.agents, where)

    def _store_of_agents(self, plan: RoundPlan) -> HashStore | PrefixStore:
        """The store for what torch's own agents tell each other; ours take ranks from the plan and need none."""
        if not self._agents_store:
            return HashStore()
        store = worker_store.connect(plan.master_addr, plan.master_port, f"{self._whole.hosts[0]} ({plan.master_addr})")
        return PrefixStore("agents", store)

    def shutdown(self) -> bool:
        """Leave; the coordinator goes last, so that all can read the end."""
        if self._link is not None and (self.is_closed() or self._refusal is not None):
            self._send(Bye())
            self._link.flush()
        if self._finding is not None:
            self._finding.dropped.set()
        if self._found is not None:
            self._found.drop()
        if self._server is not None:
            if self._server.leads:
                deadline = time.monotonic() + _FAREWELL_SECONDS
                others = {self._whole.agent}
                self._server.refresh()  # an agent that has just come is to read the end, too
                while self._server.callers - others and self._server.error is None and time.monotonic() < deadline:
                    time.sleep(_LOOK_SECONDS)
                Act(self._remove_files).over(_FILES_SECONDS)
                self._server.clear()
            self._server.close()
        if self._election is not None:
            self._election.close()
        if self._link is not None:
            self._link.close()
        self._server = self._election = self._link = self._found = None
        return True

    def _remove_files(self) -> None:
        """Remove what was left for the other agents.

        The key stays: other runs of the same place may need it, and it is worth nothing when the place is gone.
        """
        if self._writing is not None:
            self._writing.result()
        self._whereabouts.remove()

    # ---- messages

    def _started(self) -> Start:
        if self.start is None:
            raise RendezvousError("there was no rendezvous yet")
        return self.start

    def _send(self, message: Any) -> None:
        if self._link is not None and not self._link.broken:
            self._link.send(codec.encode(message))

    def _inquire(self, what: Question, name: str = "", amount: int = 0) -> float | str | bool | None:
        """Ask the coordinator; None where it does not answer soon."""
        self._asked, deadline = self._asked + 1, time.monotonic() + _ANSWER_SECONDS
        self._answers.clear()  # late ones, to other questions
        self._send(Ask(self._asked, what, name, amount))
        with contextlib.suppress(RendezvousError):  # a loss is for `end` to say
            while self._asked not in self._answers and self._link is not None and time.monotonic() < deadline:
                self._read()
                if self._asked not in self._answers:
                    self._pause()
        return self._answers.get(self._asked)

    def _pause(self, seconds: float = _PAUSE_SECONDS) -> None:
        """Wait for news, so long at most: a message, or the answer to a question, ends it."""
        question = self._found or self._equal
        if question is not None:
            question.wait(seconds)
        elif self._link is None or self._link.broken:
            time.sleep(_LOOK_SECONDS)
        else:
            poll = select.poll()
            for descriptor in self.descriptors:
                poll.register(descriptor, select.POLLIN)
            poll.poll(min(seconds, self.pause) * 1000)

    def _read(self) -> None:
        """Hear what the coordinator has said, and notice that it is gone, or has a fault of our own."""
        if self._server is not None:
            self._server.attend()
            if self._server.error is not None:
                raise _internal(self._server.error)
        if self._lost is not None:
            raise self._lost
        link = self._link
        if link is None:
            return
        link.flush()
        try:
            for frame in link.receive():
                self._take(codec.decode(frame.payload, FROM_COORDINATOR))
        except MessageError as error:
            if self.leads:
                raise _internal(error) from error
            self._lose_coordinator(link, f"it sent a message that cannot be meant ({error})")
        if link.broken and self._link is link:
            self._lose_coordinator(link)

    def _take(self, message: Any) -> None:
        if isinstance(message, Propose):
            self._known = self._known.accept(message.membership)
            self._send(Accept(message.membership))
        elif isinstance(message, Start):
            self._begin(message)
        elif isinstance(message, Ping):
            self._send(Pong(self._round))
        elif isinstance(message, AllBegun):
            self._begun = self._begun or message.round == self._round
        elif isinstance(message, Ended):
            self._state = messages.merge([self._state, message.state])
            self._hear_end(message.end)
        elif isinstance(message, Refused):
            self._refusal = self._refused(message)
        else:
            self._note(message)

    def _hear_end(self, end: RoundEnd) -> None:
        if self._end is None:
            self._end = end
        elif self._end.ending == Ending.RESTART.value and end.ending != Ending.RESTART.value:
            self._late_end = end

    def _refused(self, refused: Refused) -> RendezvousError:
        """The error that says why the round does not begin; one agent shows it for all."""
        quiet = not self.leads
        if refused.kind is RefusalKind.MISSING:
            error: RendezvousError = RendezvousTimeout(refused.why, missing=tuple(refused.missing))
        elif refused.kind is RefusalKind.LOST:
            error = RendezvousError(refused.why)
        else:
            quiet = quiet and refused.kind is not RefusalKind.ALONE
            error = RoundRefused(refused.why, exit_status=refused.status)
        error.silent = quiet
        return error

    def _note(self, message: Notices | Waiting | Places | Told) -> None:
        """What has nothing to do with rounds."""
        if isinstance(message, Notices):
            # An earlier word of the coordinator may come after this agent's own count.
            self._state = replace(self._state, notices=membership.merged([self._state.notices, message.counts]))
        elif isinstance(message, Waiting):
            self._state = replace(self._state, waiting=message.agents)
            self._search.places.update(messages.places(message.agents))
        elif isinstance(message, Places):
            self._others = messages.places(message.agents)
            self._search.places.update(self._others)
        else:
            self._answers[message.id] = message.value

    def _begin(self, start: Start) -> None:
        self._known = self._known.agree(start.membership)
        self._search.gone.clear()  # they have all answered
        notices = membership.merged([self._state.notices, start.state.notices])
        self.start, self._state, self._round = start, replace(start.state, notices=notices), start.state.round
        self._end = self._plan = None
        self._begun = self._done = False
        self._search.places.update(messages.places(start.places))
        if self._server is not None:
            self._server.join_round()
        if self._election is not None:
            self._election.end(start.coordinator)
        if self.leads and start.state.round and self._server is not None:
            self._tell_whereabouts(self._server.port)  # for agents that come late, and do not find the first node
        if self._whole.agent in start.active:
            rank = list(start.active).index(self._whole.agent)
            if self.elastic:
                self._config = replace(self._whole, agent=rank, agents=len(start.active), hosts=start.hosts)
            self._plan = start.plan

    def _host_of(self, agent: int) -> str:
        """The node of the coordinator."""
        hosts = self._whole.hosts
        return hosts[agent] if self.elastic and 0 <= agent < len(hosts) else hosts[0]

    def _lose_coordinator(self, link: Connection, why: str = GONE) -> None:
        """The coordinator is gone: the round is over, and with it a run of fixed size."""
        coordinator = self._election.coordinator if self._election is not None else 0
        host, closed = self._host_of(coordinator), link.closed
        link.close()
        self._link = None
        if self._end is not None and (self.elastic or self.is_closed()):
            return
        cause = f"lost the agent on {host}, which led the run: {why}"
        if closed:  # otherwise it may have given this agent up
            self._search.gone.add(coordinator)
        self.observer(events.NODE_LOST, hosts=host, **(self._state.where if self.elastic else {}))
        if not self.elastic:
            self._lost = RendezvousError(cause)
            raise self._lost
        self._end = RoundEnd(
            Ending.RESTART.value, -1, self._whole.host, RendezvousError.exit_status, messages.line(cause), lost=host
        )

    def _mind_the_silent(self, *, waits: bool) -> None:
        """Give up agents that are waited for and do not answer: others, if this one coordinates, or its coordinator.

        Only an elastic run goes on without them; in a run of fixed size a frozen agent is waited for.

        Args:
            waits: whether this agent waits for a word of the coordinator.
        """
        now, server, link = time.monotonic(), self._server, self._link
        if not self.elastic or server is None or link is None or self._election is None or now < self._next_doubt:
            return
        self._next_doubt = now + _DOUBT_SECONDS
        if server.leads:
            silent = self._failure_detector.turn(server.awaited, now)
            if silent is not None:
                server.give_up(silent)
            return
        coordinator, waits = self._election.coordinator, waits or server.sought
        places = {coordinator: self._search.places[coordinator]} if waits and coordinator in self._search.places else {}
        if self._failure_detector.turn(places, now) is not None:
            self._lose_coordinator(link, SILENT)

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
        while self._end is None:
            if stopped():
                return None
            waited = time.monotonic() - begin
            if waited > remark:
                leads = f"the agent on {self._whole.hosts[0]}, which leads the run, and does not answer"
                say(f"{self._config.host}: {otherwise.cause}; waiting for {leads}")
                remark = math.inf
            if self._link is None and not self.elastic:
                raise RendezvousError(f"lost the agent on {self._whole.hosts[0]}, which led the run")
            if self._link is None or waited > patience:
                self._end = otherwise
                break
            self._read()
            self._mind_the_silent(waits=True)
            if self._end is None:
                self._pause()
        if otherwise.ending == Ending.FAILED.value and self._end.lost:
            self._end = otherwise  # it leaves, whichever else does
        return self._end

    # ---- the round begins

    def _open(self) -> None:
        """Listen if others are to connect, and begin to look for the coordinator, or be it."""
        config = self._whole
        asked = network.asked_address(config.local_addr, config.interface) if config.agents > 1 else None
        if config.leader:
            self._own_address = discovery.own_address_of_first(config)
        elif config.elastic:
            self._own_address = asked or network.own_address(config.host, config.hosts, [config.host]) or ""
        else:
            self._own_address = asked or ""
        if config.leader or config.elastic:
            listener = worker_store.listen(config.ports) if config.agents > 1 else None
            own = listener.getsockname()[1] if listener is not None else 0
            self._server = CoordinatorServer(
                config,
                self._hello.instance,
                listener,
                open_store=self._open_round_store,
                open_job=self._open_job,
                observe=self._observe,
            )
            self._election = Election(config, self._search, self._server)
            if config.leader:
                self._look_for_equal(config.ports[: config.ports.index(own)] if own in config.ports else ())
        if config.leader and self._election is not None and self._server is not None:
            self._link = self._election.lead()
            self._tell_whereabouts(self._server.port)

    def _tell_whereabouts(self, port: int) -> None:
        """Write down where this agent listens; no round waits for the file system."""
        self._writing = Act(lambda: self._whereabouts.write(port))

    def _look_for_equal(self, taken: Sequence[int]) -> None:
        """See whether a port before ours is that of another run of the same command, before this agent is ready."""
        if taken:
            hello, address = replace(self._hello, purpose=Purpose.CALL), self._own_address
            self._equal = Inquiry(
                partial(discovery.equal_run, self._whole, hello, tuple(taken), address), name="equal-run"
            )

    def _observe(self, event: str, **facts: Any) -> None:
        self.observer(event, **facts)

    def _connect(self, alone: _Alone) -> _Alone:
        """Be with a coordinator, if there is one; returns since when there is none."""
        if self._link is not None:
            return _Alone()
        self._link = self._look_for_coordinator()
        if self._link is not None:
            self._present()
            return _Alone()
        if self._found is None and not (self._election is not None and self._election.looking):
            alone.searches += 1
        if alone.searches >= _SEARCHES and time.monotonic() - alone.since > 3 * self._whole.node_timeout:
            raise RoundRefused(f"{self._whole.host} finds none of the other nodes, which could go on without it")
        return alone

    def _await_start(self) -> Start:
        """Wait for the word to begin here."""
        told, alone = False, _Alone()
        if self._election is not None:
            self._election.begin()
        while True:
            alone = self._connect(alone)
            self._read()
            if self.start is not None and self._plan is not None:
                return self.start  # it may have ended by now, which is for `end` to say
            if self._refusal is not None:
                raise self._refusal
            self._mind_end_of_run()
            self._mind_the_silent(waits=self.start is None or not self._begun)
            if self.start is not None:
                if not told:
                    say(f"{self._whole.host} is a spare")
                    told = True
                    self.spared(self.start.plan)
                self.idle()
            elif self.leads and self._known.agreed.number:
                self._yield_to_another()
            if self._equal is not None and self._equal.done:
                self._present()
            self._pause(_PAUSE_SECONDS if self.leads and self.start is None else _MESSAGE_SECONDS)

    def _mind_end_of_run(self) -> None:
        """See whether the run, or the round in which this node is a spare, has ended."""
        end = self._end
        if end is None:
            return
        if end.ending != Ending.RESTART.value:
            if (self.start is not None and self._plan is None) or end.ending == Ending.DONE.value:
                raise SpareReleased(end)
            # The agent that left says why.
            raise RoundRefused(end.cause, exit_status=end.status, silent=True)
        self._end = self.start = None
        if self._link is not None:
            self._present()

    def _present(self) -> None:
        """Tell the coordinator that this agent is there and ready, and what it knows."""
        if self._equal is not None:
            if not self._equal.done:
                return  # the answer decides whether this agent can take part
            words, self._equal = self._equal.result(), None
            if words and self._problem is None:
                self._problem = RoundRefused(words)
        config, problem = self._whole, self._problem
        self._send(
            Ready(
                agent=config.agent,
                host=config.host,
                address=self._own_address if self._server is not None else "",
                port=self._server.port if self._server is not None else 0,
                workers=config.workers,
                software=config.software,
                problem=messages.line(str(problem)) if problem else "",
                status=problem.exit_status if problem else 0,
                agreed=self._known.agreed,
                accepted=self._known.accepted,
                state=self._state,
                gone=sorted(self._search.gone),
            )
        )

    # ---- the coordinator

    def _look_for_coordinator(self) -> Connection | None:
        """The connection to the coordinator, this agent perhaps; None where that is not known yet."""
        if self.elastic and self._election is None:
            raise RendezvousError("the rendezvous is closed")
        if self._election is not None and self._known.agreed.number:
            return self._election.look(self._known.agreed, map(int, self._state.waiting))
        if self._election is not None and self._others:
            return self._election.join(self._others)
        if not self.elastic and self._round >= 0:
            raise RendezvousError(f"lost the agent on {self._whole.hosts[0]}, which led the run")
        return self._find_first()

    def _find_first(self) -> Connection | None:
        """The connection to the first node, where the run begins, or to its coordinator when this one comes late."""
        if self._found is None:
            search = self._finding = Finding(self._hello, self._keyring)
            config = self._whole
            self._found = Inquiry(
                lambda: discovery.find_coordinator(config, search), name="finding", discard=Reached.close
            )
        if not self._found.done:
            return None
        found, self._found = self._found.result(), None
        self._own_address = self._own_address or found.own_address
        coordinator = found.answer.agent
        self._search.places[coordinator] = found.address, found.answer.port
        if self._election is not None:
            return self._election.follow(coordinator, found.connection)
        set_keepalive(found.connection.socket, self._whole.silence)
        return found.connection

    def _yield_to_another(self) -> None:
        """Follow another coordinator, if a round of its has begun without this one, or it comes before this one."""
        if self._election is None:
            return
        link = self._election.resign(self._known.agreed, map(int, self._state.waiting))
        if link is not None:
            if self._link is not None:
                self._link.close()
            self._link = link
            self._present()

    # ---- in threads of the coordinator's server

    def _open_round_store(self) -> OpenStore:
        server = worker_store.worker_store(self._whole, self._own_address)
        return OpenStore(self._own_address, server.port, server)

    def _open_job(self) -> tuple[str, int, str]:
        if self._agents_store:  # torchrun writes its logs elsewhere, and makes its own id for the workers
            return self._whole.job.job or "torchrun", 0, self._whole.run_id
        claimed = job_claim.claim(self._whole.job, self._whole.identity, self._whole.run_id)
        return claimed.job, claimed.first_attempt, claimed.run_id


def _internal(error: BaseException) -> HpcLaunchError:
    """A fault of our own, for all to see: what it was, and where."""
    if isinstance(error, HpcLaunchError):
        return error
    last = traceback.extract_tb(error.__traceback__)[-1:]
    where = f" at {last[0].filename}:{last[0].lineno}" if last else ""
    found = HpcLaunchError(f"internal error{where}: {type(error).__name__}: {error}; please report it")
    found.__cause__ = error
    return found
