"""The server of an agent's coordinator, as the agent's main thread uses it.

All that the coordinator decides is decided in the server's thread (`CoordinatorService`); what is asked for here is
done there, and what is told here is a copy.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Callable, Mapping, Set as AbstractSet
from pathlib import Path

from hpc_launch import codec
from hpc_launch.node import limits
from hpc_launch.rendezvous.coordinator_service import CoordinatorService
from hpc_launch.rendezvous.messages import Hello, Purpose
from hpc_launch.rendezvous.preparations import Preparations
from hpc_launch.rendezvous.rendezvous_config import RendezvousConfig
from hpc_launch.rendezvous.transport.connection import Connection, pair
from hpc_launch.rendezvous.transport.keys import Keyring
from hpc_launch.rendezvous.transport.server import Server

# How often a call checks whether the server's thread has ended, which would not answer it.
_ALIVE_SECONDS = 0.05
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
        self._preparations = preparations
        self._service = CoordinatorService(config, instance, preparations, observe, self._call)
        self._coordinator = self._service.coordinator
        self._own = Hello(Purpose.JOIN, config.agent, config.host, instance, config.identity.program)
        self.leads = False
        """Whether this agent coordinates, as its main thread has decided."""
        keyring = config.keyring or Keyring(config.identity.place, ())
        limit = min(STRANGERS, limits.open_files() // 4) + config.agents
        self._server = Server(listener, keyring, self._service, name="coordinator", silence=config.silence, limit=limit)
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
        return self._service.urgent

    def attend(self) -> None:
        """The main thread looks at what others wait for: `urgent` has done its work."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._service.urgent)

    @property
    def sought(self) -> bool:
        """Whether another agent looks for a coordinator, perhaps because this agent's does not answer."""
        return self._service.view.sought

    @property
    def callers(self) -> frozenset[int]:
        """The agents that are connected to it."""
        return self._service.view.callers if self.leads else frozenset()

    @property
    def awaited(self) -> Mapping[int, tuple[str, int]]:
        """Other agents that all wait for, and where they listen."""
        return self._service.view.awaited if self.leads else {}

    def lead(self) -> Connection:
        """Begin to coordinate; gives this agent's own connection."""
        served, own = pair(codec.encode(self._own))
        self.leads = True

        def begin() -> None:
            self._service.lead(served)
            self._server.adopt(served)

        self._call(begin)
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
        self._call(lambda: setattr(self._coordinator, "following", agent))

    def join_round(self) -> None:
        """Forget that others looked for a coordinator before the round."""
        self._call(self._coordinator.forget_seekers)

    def miss(self, agents: AbstractSet[int]) -> None:
        """Wait no more for agents that do not listen any more."""
        gone = frozenset(agents)
        self._call(lambda: self._coordinator.miss(gone))

    def give_up(self, agent: int) -> None:
        """Lose an agent that is awaited and does not answer, though its node does."""
        self._call(lambda: self._coordinator.give_up(agent))

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
            self._service.tie_breaker.clear(directory)

    def close(self) -> None:
        """End the thread, send what is left, and let the workers' store go."""
        self._server.close(linger=_LINGER_SECONDS)
        self._preparations.keep(None)
        os.close(self._service.urgent)

    def _call(self, action: Callable[[], None]) -> None:
        """Run something soon in the server's thread."""
        self._server.call(action)

    def _settle(self, action: Callable[[], object]) -> None:
        """Have something done in the server's thread, and wait for it."""
        done = threading.Event()

        def run() -> None:
            try:
                action()
                self._service.look(refresh=True)
            finally:
                done.set()

        self._call(run)
        while not done.wait(_ALIVE_SECONDS) and self._server.alive:
            pass
