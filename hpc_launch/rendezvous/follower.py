"""The follower: an agent that hears its coordinator, notices when that one is lost, and finds another.

Every agent is one; who coordinates follows itself. In an elastic run every agent listens, and where the coordinator is
lost, the others elect another (`election`).
"""

from __future__ import annotations

import math
import time
import traceback
import uuid
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from hpc_launch.errors import HpcLaunchError, RendezvousError, RoundRefused
from hpc_launch.node import network
from hpc_launch.records import events
from hpc_launch.rendezvous import discovery, messages, round_checks, worker_store
from hpc_launch.rendezvous.agent_state import AgentState
from hpc_launch.rendezvous.background_call import BackgroundCall
from hpc_launch.rendezvous.coordinator_client import CoordinatorClient
from hpc_launch.rendezvous.coordinator_search import CoordinatorSearch
from hpc_launch.rendezvous.coordinator_server import CoordinatorServer
from hpc_launch.rendezvous.failure_detector import FailureDetector
from hpc_launch.rendezvous.messages import (
    Accept,
    AllBegun,
    Bye,
    Ended,
    Hello,
    Notices,
    Ping,
    Places,
    Pong,
    Propose,
    Purpose,
    Ready,
    Refused,
    RoundEnd,
    RoundEnding,
    Start,
    Waiting,
)
from hpc_launch.rendezvous.preparations import Preparations
from hpc_launch.rendezvous.rendezvous_config import RendezvousConfig
from hpc_launch.rendezvous.rounds import GONE, SILENT
from hpc_launch.rendezvous.transport.connection import Connection
from hpc_launch.rendezvous.transport.keys import Keyring
from hpc_launch.rendezvous.transport.peer_faults import MessageError
from hpc_launch.slow_storage import Act

# How often an agent that waits looks around, if no news wakes it.
PAUSE_SECONDS = 0.1
# How often an agent checks on those that it waits for.
_CHECK_SECONDS = 0.1
# How long the coordinator waits for the others to leave, and how often it looks whether they have.
_FAREWELL_SECONDS = 15.0
_LOOK_SECONDS = 0.02
# So long the removal of files may take at the end.
_FILES_SECONDS = 2.0


class CoordinatorFollower:
    """An agent that is with a coordinator, or looks for one.

    Args:
        config: what this agent brings along.
        observe: records events about nodes.
        names_job: whether this agent, if it is the first, chooses the job directory.

    Attributes:
        state: what this agent knows of the run.
        client: the connection to the coordinator, and the questions that it answers.
        search: how the coordinator is found.
        server: serves other agents, and coordinates them where this one is elected; None where it does not listen.
        refusal: why no round begins, if the coordinator has said so.
    """

    def __init__(self, config: RendezvousConfig, observe: Callable[..., None], *, names_job: bool) -> None:
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
        self._config, self._observe, self._names_job = config, observe, names_job
        self.state = AgentState(config)
        self.client = CoordinatorClient(self.receive, self.pause)
        self.search = CoordinatorSearch(config, self._hello, config.keyring or Keyring(config.identity.place, ()))
        self.server: CoordinatorServer | None = None
        self.refusal: RendezvousError | None = None
        self._whereabouts = discovery.CoordinatorFile(config)
        self._failure_detector = FailureDetector(self.search.agents.silent, config.node_timeout)
        self._next_check = 0.0
        self._equal_run: BackgroundCall[str] | None = None
        self._problem = config.problem
        # The loss of a coordinator that cannot be replaced.
        self._lost: RendezvousError | None = None

    @property
    def leads(self) -> bool:
        """Whether this agent coordinates the run."""
        return self.server is not None and self.server.leads

    @property
    def is_open(self) -> bool:
        """Whether this agent has begun to listen, or is with a coordinator."""
        return self.server is not None or self.client.connection is not None

    @property
    def urgent(self) -> tuple[int, ...]:
        """The descriptors on which comes that others wait for an agent."""
        return (self.server.urgent,) if self.server is not None else ()

    @property
    def longest_pause(self) -> float:
        """Seconds after which this agent looks again, whatever comes: soon while it or others wait for an agent.

        The agent that is waited for may be frozen, which only a look finds out (`check_liveness`).
        """
        server, state = self.server, self.state
        waits = not state.begun or state.done or (server is not None and (server.awaited or server.sought))
        return _CHECK_SECONDS if self._config.elastic and waits else math.inf

    # ---- with a coordinator

    def open(self) -> None:
        """Listen if others are to connect, and begin to look for the coordinator, or be it."""
        config = self._config
        asked = network.asked_address(config.local_addr, config.interface) if config.agents > 1 else None
        if config.leader:
            self.search.own_address = discovery.own_address_of_first(config)
        elif config.elastic:
            self.search.own_address = (
                asked or network.derive_own_address(config.host, config.hosts, [config.host]) or ""
            )
        else:
            self.search.own_address = asked or ""
        if config.leader or config.elastic:
            self.server = self._listen()
        if config.leader and self.server is not None:
            self.client.connection = self.search.lead()
            self._whereabouts.write(self.server.port)

    def _listen(self) -> CoordinatorServer:
        """Serve other agents, and coordinate them once that is asked for."""
        config = self._config
        listener = worker_store.listen_for_agents(config.ports) if config.agents > 1 else None
        preparations = Preparations(config, lambda: self.search.own_address, names_job=self._names_job)
        server = CoordinatorServer(
            config, self._hello.instance, listener, preparations=preparations, observe=self._observe
        )
        self.search.allow_election(server)
        if config.leader and server.port in config.ports:
            self._look_for_equal_run(config.ports[: config.ports.index(server.port)])
        return server

    def _look_for_equal_run(self, taken: Sequence[int]) -> None:
        """See whether a port before ours is that of another run of the same command, before this agent is ready."""
        if taken:
            hello, address = replace(self._hello, purpose=Purpose.CALL), self.search.own_address
            self._equal_run = BackgroundCall(
                partial(discovery.equal_run, self._config, hello, tuple(taken), address), name="equal-run"
            )

    def ensure_coordinator(self) -> None:
        """Be with a coordinator, if there is one."""
        if self.client.connection is None:
            self.client.connection = self.search.look(self.state)
            if self.client.connection is not None:
                self.present()
        if self.client.connection is not None:
            self.search.found()

    def present(self) -> None:
        """Tell the coordinator that this agent is there and ready, and what it knows."""
        if self._equal_run is not None:
            if not self._equal_run.done:
                return  # the answer decides whether this agent can take part
            words, self._equal_run = self._equal_run.result(), None
            if words and self._problem is None:
                self._problem = RoundRefused(words)
        config, problem, state = self._config, self._problem, self.state
        self.client.send(
            Ready(
                agent=config.agent,
                host=config.host,
                address=self.search.own_address if self.server is not None else "",
                port=self.server.port if self.server is not None else 0,
                workers=config.workers,
                software=config.software,
                problem=messages.one_line(str(problem)) if problem else "",
                status=problem.exit_status if problem else 0,
                agreed=state.known.agreed,
                accepted=state.known.accepted,
                state=state.run,
                gone=sorted(self.search.agents.gone),
            )
        )

    def present_if_delayed(self) -> None:
        """Tell the coordinator so as soon as it is known whether there is an equal run."""
        if self._equal_run is not None and self._equal_run.done:
            self.present()

    def yield_to_another(self) -> None:
        """Follow another coordinator, if a round of its has begun without this one, or it comes before this one."""
        connection = self.search.look_for_better(self.state)
        if connection is not None:
            self.client.close()
            self.client.connection = connection
            self.present()

    # ---- messages

    def pause(self, seconds: float = PAUSE_SECONDS) -> None:
        """Wait for news, so long at most: a message, or the answer to a question, ends it."""
        question = self.search.question or self._equal_run
        if question is not None:
            question.wait(seconds)
        else:
            self.client.wait(min(seconds, self.longest_pause), self.urgent)

    def receive(self) -> None:
        """Deal with what the coordinator has said; notice that it is gone, or has a fault of our own."""
        if self.server is not None:
            self.server.attend()
            if self.server.error is not None:
                raise _internal_error(self.server.error)
        if self._lost is not None:
            raise self._lost
        connection = self.client.connection
        if connection is None:
            return
        try:
            for message in self.client.messages():
                self._on_message(message)
        except MessageError as error:
            if self.leads:
                raise _internal_error(error) from error
            self._lose_coordinator(connection, f"it sent a message that cannot be meant ({error})")
        if connection.broken and self.client.connection is connection:
            self._lose_coordinator(connection)

    def _on_message(self, message: Any) -> None:
        state = self.state
        if isinstance(message, Propose):
            state.accept(message.membership)
            self.client.send(Accept(message.membership))
        elif isinstance(message, Start):
            self._begin(message)
        elif isinstance(message, Ping):
            self.client.send(Pong(state.round))
        elif isinstance(message, AllBegun):
            state.note_begun(message.round)
        elif isinstance(message, Ended):
            state.note_end(message)
        elif isinstance(message, Refused):
            self.refusal = round_checks.error_of(message, coordinates=self.leads)
        elif isinstance(message, Notices):
            state.note_notices(message.counts)
        elif isinstance(message, Waiting):
            state.note_waiting(message.agents)
            self.search.learn(message.agents)
        elif isinstance(message, Places):
            self.search.join_late(message.agents)
        else:
            self.client.note_answer(message)

    def _begin(self, start: Start) -> None:
        """A round begins."""
        self.state.begin(start)
        self.search.begin_round(start)
        if self.server is not None:
            self.server.join_round()
            if self.leads and start.state.round:
                self._whereabouts.write(self.server.port)  # for agents that come late, and do not find the first node

    def _lose_coordinator(self, connection: Connection, why: str = GONE) -> None:
        """The coordinator is gone: the round is over, and with it a run of fixed size."""
        state, host, closed = self.state, self.search.coordinator_host, connection.closed
        self.client.close()
        if state.end is not None and (self._config.elastic or state.is_closed):
            return
        cause = f"lost the agent on {host}, which led the run: {why}"
        if closed:  # otherwise it may have given this agent up
            self.search.agents.gone.add(self.search.coordinator)
        self._observe(events.NODE_LOST, hosts=host, **(state.run.where if self._config.elastic else {}))
        if not self._config.elastic:
            self._lost = RendezvousError(cause)
            raise self._lost
        status = RendezvousError.exit_status
        state.end = RoundEnd(
            RoundEnding.RESTART.value, -1, self._config.host, status, messages.one_line(cause), lost=host
        )

    def check_liveness(self, *, waits: bool) -> None:
        """Give up agents that are waited for and do not answer: others, if this one coordinates, or its coordinator.

        Only an elastic run goes on without them; in a run of fixed size a frozen agent is waited for.

        Args:
            waits: whether this agent waits for a word of the coordinator.
        """
        now, server, connection = time.monotonic(), self.server, self.client.connection
        if not self._config.elastic or server is None or connection is None or now < self._next_check:
            return
        self._next_check = now + _CHECK_SECONDS
        if server.leads:
            silent = self._failure_detector.turn(server.awaited, now)
            if silent is not None:
                server.give_up(silent)
            return
        awaited = self.search.coordinator_place if waits or server.sought else {}
        if self._failure_detector.turn(awaited, now) is not None:
            self._lose_coordinator(connection, SILENT)

    # ---- the end

    def leave(self) -> None:
        """Take leave; the coordinator goes last, so that all can read the end."""
        connection = self.client.connection
        if connection is not None and (self.state.is_closed or self.refusal is not None):
            self.client.send(Bye())
            connection.flush()
        self.search.stop()
        if self.server is not None:
            if self.server.leads:
                self._await_farewells(self.server)
                # The key stays: other runs of the same place may need it, and it is worth nothing when that is gone.
                Act(self._whereabouts.remove).over(_FILES_SECONDS)
                self.server.clear()
            self.server.close()
        self.client.close()
        self.server = None

    def _await_farewells(self, server: CoordinatorServer) -> None:
        """Wait until all others have read the end, and have left; not for ever."""
        deadline = time.monotonic() + _FAREWELL_SECONDS
        server.refresh()  # an agent that has just come is to read the end, too
        while server.callers - {self._config.agent} and server.error is None and time.monotonic() < deadline:
            time.sleep(_LOOK_SECONDS)


def _internal_error(error: BaseException) -> HpcLaunchError:
    """A fault of our own, for all to see: what it was, and where."""
    if isinstance(error, HpcLaunchError):
        return error
    last = traceback.extract_tb(error.__traceback__)[-1:]
    where = f" at {last[0].filename}:{last[0].lineno}" if last else ""
    found = HpcLaunchError(f"internal error{where}: {type(error).__name__}: {error}; please report it")
    found.__cause__ = error
    return found
