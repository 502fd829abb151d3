"""The server of an agent's coordinator: connections, time and everything that may block.

The `Coordinator` runs in the server's thread, which waits for the network only. Console lines, events, tokens, the job
directory and the workers' stores are made in threads that may block, and their results come back as calls in the
server's thread: so a console that takes nothing, or a log directory that hangs, keeps no agent waiting for an answer.
"""

from __future__ import annotations

import contextlib
import functools
import os
import socket
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Set as AbstractSet
from pathlib import Path
from typing import Any, TypeVar

from hpc_launch.console import say
from hpc_launch.node import limits
from hpc_launch.rendezvous import codec
from hpc_launch.rendezvous.coordinator import Coordinator
from hpc_launch.rendezvous.effects import View
from hpc_launch.rendezvous.membership import Half
from hpc_launch.rendezvous.messages import FROM_AGENTS, Hello, Purpose
from hpc_launch.rendezvous.preparations import OpenStore, Preparations
from hpc_launch.rendezvous.rendezvous_config import RendezvousConfig
from hpc_launch.rendezvous.rounds import NEVER
from hpc_launch.rendezvous.sessions import Session
from hpc_launch.rendezvous.suspend_aware_clock import SuspendAwareClock
from hpc_launch.rendezvous.tie_breaker import TieBreaker
from hpc_launch.rendezvous.transport.connection import Connection, pair
from hpc_launch.rendezvous.transport.faults import MessageError
from hpc_launch.rendezvous.transport.keys import Keyring
from hpc_launch.rendezvous.transport.server import Server
from hpc_launch.rendezvous.transport.service import Greeting

_Found = TypeVar("_Found")

_HELLO = codec.known(Hello)


@functools.lru_cache(maxsize=1)
def _hello(data: bytes) -> Hello:
    """Read a hello; it is asked for twice where its connection is kept.

    Raises:
        MessageError: when it is none.
    """
    found: Hello = codec.decode(data, _HELLO)
    return found


# How old the copy may be that other threads see.
_VIEW_SECONDS = 0.05
# How long the sending of what is left may take.
_LINGER_SECONDS = 1.0
# Unknown connections at a time: all agents may knock at once, and others besides.
STRANGERS = 512


class CoordinatorServer:
    """Serves other agents, and coordinates them if it is told to.

    Args:
        config: what this agent brings along.
        instance: tells this process from another one with the same number.
        listener: where other agents connect; None where there are none.
        preparations: makes what a round needs, in threads.
        observe: records events; it must not block.
    """

    def __init__(
        self,
        config: RendezvousConfig,
        instance: str,
        listener: socket.socket | None,
        preparations: Preparations,
        observe: Callable[..., None],
    ) -> None:
        self._config, self._preparations, self._observe = config, preparations, observe
        self._coordinator = Coordinator(config, instance, self)
        self._own = Hello(Purpose.JOIN, config.agent, config.host, instance, config.identity.program)
        self._sessions: dict[Connection, Session] = {}
        self._connections: dict[Session, Connection] = {}
        self._tie_breaker = TieBreaker()
        self._clock = SuspendAwareClock()
        self._view, self._viewed = View(), 0.0
        self._urgent = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.leads = False
        """Whether this agent coordinates, as its main thread has decided."""
        keyring = config.keyring or Keyring(config.identity.place, ())
        limit = min(STRANGERS, limits.open_files() // 4) + config.agents
        self._server = Server(listener, keyring, self, name="coordinator", silence=config.silence, limit=limit)
        self._coordinator.port = self._server.port
        self._server.start()

    # ---- for the main thread

    @property
    def port(self) -> int:
        """Where it listens; 0 where it does not."""
        return self._server.port

    @property
    def error(self) -> BaseException | None:
        """A fault of our own that has ended the coordinator."""
        return self._preparations.fault or self._server.error

    @property
    def urgent(self) -> int:
        """A descriptor that can be read when others have begun to wait for an agent (`awaited`, `sought`)."""
        return self._urgent

    def attend(self) -> None:
        """The main thread looks at what others wait for: `urgent` has done its work."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._urgent)

    @property
    def sought(self) -> bool:
        """Whether another agent looks for a coordinator, perhaps because this agent's does not answer."""
        return self._view.sought

    @property
    def callers(self) -> frozenset[int]:
        """The agents that are connected to it."""
        return self._view.callers if self.leads else frozenset()

    @property
    def awaited(self) -> Mapping[int, tuple[str, int]]:
        """Other agents that all wait for, and where they listen."""
        return self._view.awaited if self.leads else {}

    def lead(self) -> Connection:
        """Begin to coordinate; gives this agent's own connection."""
        served, own = pair(codec.encode(self._own))
        self.leads = True

        def begin() -> None:
            self._coordinator.now = self._clock.now()
            session = self._session(served)
            self._coordinator.lead(session)
            self._server.adopt(served)

        self._server.call(begin)
        return own

    def resign(self) -> None:
        """Coordinate no more: all agents look for another one."""
        self.leads = False
        self._settle(self._coordinator.resign)

    def resign_unformed(self) -> bool:
        """Coordinate no more, unless a round has begun; whether that is so."""
        resigned: list[bool] = []

        def resign() -> None:
            if not self._coordinator.formed:
                self._coordinator.resign()
                resigned.append(True)

        self._settle(resign)
        self.leads = not resigned
        return bool(resigned)

    def follow(self, agent: int) -> None:
        """Tell others which agent this one is with; -1 while it looks for one."""
        self._server.call(lambda: setattr(self._coordinator, "following", agent))

    def join_round(self) -> None:
        """Forget that others looked for a coordinator before the round."""
        self._server.call(self._coordinator.forget_seekers)

    def miss(self, agents: AbstractSet[int]) -> None:
        """Wait no more for agents that do not listen any more."""
        gone = frozenset(agents)
        self._server.call(lambda: self._coordinator.miss(gone))

    def give_up(self, agent: int) -> None:
        """Lose an agent that is awaited and does not answer, though its node does."""
        self._server.call(lambda: self._coordinator.give_up(agent))

    def refresh(self) -> None:
        """See to it that what the properties say is not older than this call."""
        self._settle(lambda: None)

    def clear(self) -> None:
        """Remove what no agent needs when the run has ended."""
        found: list[Path] = []

        def look() -> None:
            directory = self._coordinator.tokens_to_clear()
            if directory is not None:
                found.append(directory)

        self._settle(look)
        for directory in found:
            self._tie_breaker.clear(directory)

    def close(self) -> None:
        """End the thread, send what is left, and let the workers' store go."""
        self._server.close(linger=_LINGER_SECONDS)
        self._preparations.keep(None)
        os.close(self._urgent)

    def _settle(self, action: Callable[[], object]) -> None:
        """Have something done in the server's thread, and wait for it."""
        done = threading.Event()

        def run() -> None:
            try:
                action()
                self._look(refresh=True)
            finally:
                done.set()

        self._server.call(run)
        while not done.wait(_VIEW_SECONDS) and self._server.alive:
            pass

    # ---- Service, in the server's thread

    def greet(self, hello: bytes) -> Greeting:
        """Answer an agent's hello."""
        self._coordinator.now = self._clock.now()
        answer, stay = self._coordinator.greet(_hello(hello))
        return Greeting(codec.encode(answer), stay)

    def opened(self, connection: Connection) -> None:
        """An agent's connection is kept."""
        if connection not in self._sessions:  # this agent's own has a session already
            self._coordinator.opened(self._session(connection))

    def received(self, connection: Connection, payload: bytes) -> None:
        """An agent has sent a message."""
        session = self._sessions.get(connection)
        if session is None:
            return
        self._coordinator.now = self._clock.now()
        try:
            self._coordinator.receive(session, codec.decode(payload, FROM_AGENTS))
        except MessageError as error:
            if session.hello.instance == self._own.instance:
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
            self._coordinator.now = self._clock.now()
            self._coordinator.lost(session)

    def refused(self, connection: Connection | None, why: str) -> None:
        """Something unusable was refused."""
        session = self._sessions.get(connection) if connection is not None else None
        if session is not None or self._config.verbose:
            who = f"a message of the agent on {session.hello.host}" if session is not None else "a connection"
            self.say(f"refused {who}: {why}")

    def turn(self, _: float) -> float:
        """Let the coordinator decide what is due."""
        self._coordinator.now = self._clock.now()
        self._clock.rest = min(self._coordinator.turn(), self._look(refresh=False))
        return self._clock.rest

    def _look(self, *, refresh: bool) -> float:
        """Copy what other threads may see; seconds until the copy is too old."""
        now = time.monotonic()
        if refresh or now - self._viewed >= _VIEW_SECONDS:
            before, self._view, self._viewed = self._view, self._coordinator.view(), now
            self._coordinator.changed = False
            if self._view.urgent and not before.urgent:
                os.eventfd_write(self._urgent, 1)
        return _VIEW_SECONDS if self._coordinator.changed else NEVER

    def _session(self, connection: Connection) -> Session:
        session = Session(_hello(connection.hello))
        self._sessions[connection], self._connections[session] = session, connection
        return session

    # ---- Effects, in the server's thread

    def send(self, sessions: Iterable[Session], message: Any) -> None:
        """Send a message to agents."""
        data = codec.encode(message)
        for session in sessions:
            connection = self._connections.get(session)
            if connection is not None:
                connection.send(data)

    def drop(self, session: Session) -> None:
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
        rounds = self._coordinator.rounds
        self._preparations.claim_job(
            self._hand_over(lambda found: rounds.job_opened(found.job, found.first_attempt, found.run_id)),
            self._hand_over(rounds.preparation_failed),
        )

    def open_store(self, round_number: int) -> None:
        """Open the workers' store of a round."""
        rounds = self._coordinator.rounds

        def then(found: OpenStore) -> None:
            self._preparations.keep(found)
            rounds.store_opened(round_number, found.address, found.port)

        self._preparations.open_store(self._hand_over(then), self._hand_over(rounds.preparation_failed))

    def put_token(self, directory: Path, number: int) -> None:
        """Make the token of a membership."""
        self._tie_breaker.put(
            directory, number, lambda name: self._server.call(lambda: self._coordinator.rounds.token_put(number, name))
        )

    def take_tokens(self, directory: Path, halves: Iterable[Half]) -> None:
        """Begin to take the tokens of halves."""
        self._tie_breaker.take(directory, halves)

    def remove_tokens(self, directory: Path, before: int) -> None:
        """Begin to remove the tokens of memberships before this number."""
        self._tie_breaker.remove(directory, before)

    @property
    def taken(self) -> frozenset[Half]:
        """The halves with this agent that have taken their tokens."""
        return self._tie_breaker.taken

    @property
    def refused_halves(self) -> frozenset[Half]:
        """The halves whose token was not to be had."""
        return self._tie_breaker.refused

    def time(self) -> float:
        """This node's time."""
        return time.time()

    def _hand_over(self, then: Callable[[_Found], object]) -> Callable[[_Found], None]:
        """What tells the coordinator of a result, in the server's thread, unless it has resigned by then."""
        generation = self._coordinator.generation

        def tell(found: _Found) -> None:
            if self._coordinator.generation == generation:
                then(found)

        return lambda found: self._server.call(lambda: tell(found))
