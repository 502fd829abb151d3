"""The coordinator in the thread of its server: what other agents send goes in, and what follows goes out.

The thread waits for the network only. Console lines, events, tokens, the job directory and the workers' stores are made
in threads that may block, and their results come back as calls in the server's thread: so a console that takes nothing,
or a log directory that hangs, keeps no agent waiting for an answer.
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

from hpc_launch import codec
from hpc_launch.console import say
from hpc_launch.rendezvous import messages
from hpc_launch.rendezvous.coordinator import Coordinator
from hpc_launch.rendezvous.coordinator_interface import CoordinatorView
from hpc_launch.rendezvous.membership import Half
from hpc_launch.rendezvous.messages import FROM_AGENTS, Hello
from hpc_launch.rendezvous.preparations import OpenStore, Preparations
from hpc_launch.rendezvous.rendezvous_config import RendezvousConfig
from hpc_launch.rendezvous.rounds import NEVER
from hpc_launch.rendezvous.sessions import AgentSession
from hpc_launch.rendezvous.suspend_aware_clock import SuspendAwareClock
from hpc_launch.rendezvous.tie_breaker import TieBreaker
from hpc_launch.rendezvous.transport.connection import Connection
from hpc_launch.rendezvous.transport.peer_faults import MessageError
from hpc_launch.rendezvous.transport.service import Greeting

_Found = TypeVar("_Found")

# How old the copy may be that other threads see.
_VIEW_SECONDS = 0.05

_HELLO = codec.known(Hello)


@functools.lru_cache(maxsize=1)
def _hello(data: bytes) -> Hello:
    """Read a hello; it is asked for twice where its connection is kept.

    Raises:
        MessageError: when it is none.
    """
    found: Hello = messages.decode(data, _HELLO)
    return found


class CoordinatorService:
    """What a server works for: a `Coordinator`, whose agents are connections, and whose effects are real.

    Args:
        config: what this agent brings along.
        instance: tells this process from another one with the same number.
        preparations: makes what a round needs, in threads.
        observe: records events; it must not block.
        call: runs something soon in the server's thread.

    Attributes:
        coordinator: decides.
        tie_breaker: has the tokens.
        view: a copy of what other threads may know.
        urgent: a descriptor that can be read when others have begun to wait for an agent.
    """

    def __init__(
        self,
        config: RendezvousConfig,
        instance: str,
        preparations: Preparations,
        observe: Callable[..., None],
        call: Callable[[Callable[[], None]], None],
    ) -> None:
        self.coordinator = Coordinator(config, instance, self)
        self.tie_breaker = TieBreaker()
        self.view = CoordinatorView()
        self.urgent = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._config, self._instance, self._preparations = config, instance, preparations
        self._observe, self._call = observe, call
        self._sessions: dict[Connection, AgentSession] = {}
        self._connections: dict[AgentSession, Connection] = {}
        self._clock = SuspendAwareClock()
        self._viewed = 0.0

    # ---- for the agent itself

    def lead(self, served: Connection) -> None:
        """Begin to coordinate.

        Args:
            served: the coordinator's end of this agent's own connection.
        """
        self.coordinator.now = self._clock.now()
        self.coordinator.lead(self._session(served))

    def look(self, *, refresh: bool) -> float:
        """Copy what other threads may see; seconds until the copy is too old."""
        now = time.monotonic()
        if refresh or now - self._viewed >= _VIEW_SECONDS:
            before, self.view, self._viewed = self.view, self.coordinator.view(), now
            self.coordinator.changed = False
            if self.view.urgent and not before.urgent:
                os.eventfd_write(self.urgent, 1)
        return _VIEW_SECONDS if self.coordinator.changed else NEVER

    # ---- what the server hands on (`Service`)

    def greet(self, hello: bytes) -> Greeting:
        """Answer an agent's hello."""
        self.coordinator.now = self._clock.now()
        answer, stay = self.coordinator.greet(_hello(hello))
        return Greeting(codec.encode(answer), stay)

    def opened(self, connection: Connection) -> None:
        """An agent's connection is kept."""
        if connection not in self._sessions:  # this agent's own has a session already
            self.coordinator.opened(self._session(connection))

    def received(self, connection: Connection, payload: bytes) -> None:
        """An agent has sent a message."""
        session = self._sessions.get(connection)
        if session is None:
            return
        self.coordinator.now = self._clock.now()
        try:
            self.coordinator.receive(session, messages.decode(payload, FROM_AGENTS))
        except MessageError as error:
            if session.hello.instance == self._instance:
                raise RuntimeError(f"a message of this agent itself: {error}") from error
            raise

    def received_bulk(self, connection: Connection, payload: bytes) -> None:
        """No agent sends bulk data to a coordinator."""
        raise MessageError(f"{len(payload)} bytes of bulk data from {connection.peer}")

    def lost(self, connection: Connection) -> None:
        """An agent's connection is gone."""
        session = self._sessions.pop(connection, None)
        if session is not None:
            self._connections.pop(session, None)
            session.closed = connection.closed
            self.coordinator.now = self._clock.now()
            self.coordinator.lost(session)

    def refused(self, connection: Connection | None, why: str) -> None:
        """Something unusable was refused."""
        session = self._sessions.get(connection) if connection is not None else None
        if session is not None or self._config.verbose:
            who = f"a message of the agent on {session.hello.host}" if session is not None else "a connection"
            self.say(f"refused {who}: {why}")

    def turn(self, _: float) -> float:
        """Let the coordinator decide what is due."""
        self.coordinator.now = self._clock.now()
        self._clock.rest = min(self.coordinator.turn(), self.look(refresh=False))
        return self._clock.rest

    def _session(self, connection: Connection) -> AgentSession:
        session = AgentSession(_hello(connection.hello))
        self._sessions[connection], self._connections[session] = session, connection
        return session

    # ---- what the coordinator has done (`Effects`)

    def send(self, sessions: Iterable[AgentSession], message: Any) -> None:
        """Send a message to agents."""
        data = codec.encode(message)
        for session in sessions:
            connection = self._connections.get(session)
            if connection is not None:
                connection.send(data)

    def drop(self, session: AgentSession) -> None:
        """Close a connection."""
        connection = self._connections.pop(session, None)
        if connection is not None:
            self._sessions.pop(connection, None)
            connection.close()

    def say(self, line: str) -> None:
        """Show a line on the console."""
        say(line)  # it has a queue: no console keeps this thread waiting

    def observe(self, event: str, **facts: Any) -> None:
        """Record an event."""
        self._observe(event, **facts)

    def open_job(self) -> None:
        """Choose the job directory."""
        rounds = self.coordinator.rounds
        self._preparations.claim_job(
            self._hand_over(lambda found: rounds.job_opened(found.job, found.first_attempt, found.run_id)),
            self._hand_over(rounds.preparation_failed),
        )

    def open_store(self, round_number: int) -> None:
        """Open the workers' store of a round."""
        rounds = self.coordinator.rounds

        def then(found: OpenStore) -> None:
            self._preparations.keep(found)
            rounds.store_opened(round_number, found.address, found.port)

        self._preparations.open_store(self._hand_over(then), self._hand_over(rounds.preparation_failed))

    def put_token(self, directory: Path, number: int) -> None:
        """Make the token of a membership."""
        self.tie_breaker.put(
            directory, number, lambda name: self._call(lambda: self.coordinator.rounds.token_put(number, name))
        )

    def take_tokens(self, directory: Path, halves: Iterable[Half]) -> None:
        """Begin to take the tokens of halves."""
        self.tie_breaker.take(directory, halves)

    def remove_tokens(self, directory: Path, before: int) -> None:
        """Begin to remove the tokens of memberships before this number."""
        self.tie_breaker.remove(directory, before)

    @property
    def taken(self) -> frozenset[Half]:
        """The halves with this agent that have taken their tokens."""
        return self.tie_breaker.taken

    @property
    def refused_halves(self) -> frozenset[Half]:
        """The halves whose token was not to be had."""
        return self.tie_breaker.refused

    def time(self) -> float:
        """This node's time."""
        return time.time()

    def _hand_over(self, then: Callable[[_Found], object]) -> Callable[[_Found], None]:
        """What tells the coordinator of a result, in the server's thread, unless it has resigned by then."""
        generation = self.coordinator.generation

        def tell(found: _Found) -> None:
            if self.coordinator.generation == generation:
                then(found)

        return lambda found: self._call(lambda: tell(found))
