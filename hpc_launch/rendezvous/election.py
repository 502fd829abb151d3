"""The election of a coordinator in an elastic run, when its coordinator is lost or was never there.

There is no vote. An agent that looks for a coordinator asks the others in host-list order, and the first that finds
none before itself takes over. Two may coordinate at the same time, for a while: what makes that harmless is the rule of
`membership`. All questions are asked in the background; the agent's main loop looks at the results.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

from hpc_launch.console import say
from hpc_launch.rendezvous.background_call import BackgroundCall
from hpc_launch.rendezvous.coordinator_server import CoordinatorServer
from hpc_launch.rendezvous.known_agents import KnownAgents, Reply
from hpc_launch.rendezvous.membership import Membership
from hpc_launch.rendezvous.rendezvous_config import RendezvousConfig
from hpc_launch.rendezvous.transport.connection import Connection, set_keepalive

# How often those that wait for more agents check whether these have another coordinator.
_SEARCH_SECONDS = 1.0


class Election:
    """The election as one agent sees it: asked again and again, it gives the connection to the coordinator.

    Args:
        config: what this agent brings along.
        agents: knows where the others are.
        server: coordinates, if it is told to.

    Attributes:
        coordinator: the agent that this one is with, or was with last; -1 before.
    """

    def __init__(self, config: RendezvousConfig, agents: KnownAgents, server: CoordinatorServer) -> None:
        self.coordinator = -1
        self._config, self._agents, self._server = config, agents, server
        self._first: BackgroundCall[Reply | None] | None = None
        self._others: BackgroundCall[list[Reply]] | None = None
        self._next = 0.0

    @property
    def looking(self) -> bool:
        """Whether a question is under way."""
        return self._first is not None

    def lead(self) -> Connection:
        """Coordinate; gives this agent's own connection to itself."""
        self.coordinator = self._config.agent
        self._server.follow(self._config.agent)
        return self._server.lead()

    def follow(self, coordinator: int, connection: Connection) -> Connection:
        """Be with another agent that coordinates."""
        set_keepalive(connection.socket, self._config.silence)
        self.coordinator = coordinator
        self._server.follow(coordinator)
        return connection

    def begin(self) -> None:
        """Wait for a round: a coordinator need not look for others at once."""
        self._next = time.monotonic() + _SEARCH_SECONDS

    def end(self, coordinator: int) -> None:
        """A round has begun, and this agent coordinates it."""
        self.coordinator = coordinator
        self.close()

    def close(self) -> None:
        """Look for no agent any more."""
        for question in (self._first, self._others):
            if question is not None:
                question.drop()
        self._first = self._others = None

    def look(self, agreed: Membership, newcomers: Iterable[int]) -> Connection | None:
        """Find the coordinator of those that this agent may go on with, or be it; None where that is not known yet.

        Args:
            agreed: the newest membership that this agent knows to be agreed.
            newcomers: the agents that have come since.
        """
        own = self._config.agent
        before = [agent for agent in self._candidates(agreed, newcomers) if agent < own]
        answered, found = self._ask(before)
        if not answered:
            return None
        if found is None:
            former = self.coordinator
            was = f" from {self._config.hosts[former]}" if former not in (-1, own) else ""
            say(f"{self._config.host} takes over{was}")
            return self.lead()
        # An agent that does not coordinate is looking for a coordinator as well, and comes before this one.
        return self.follow(found.coordinator, found.connection) if found.connection else None

    def join(self, others: Iterable[int]) -> Connection | None:
        """Find the coordinator of a run that this agent has no part in yet, and never coordinate it; None as `look`."""
        _, found = self._ask(sorted(others))
        return self.follow(found.coordinator, found.connection) if found is not None and found.connection else None

    def resign(self, agreed: Membership, newcomers: Iterable[int]) -> Connection | None:
        """Coordinate no more where another agent does whose round has begun without this one, or that comes before it.

        Args:
            agreed: the newest membership that this agent knows to be agreed.
            newcomers: the agents that have come since.

        Returns:
            The connection to that one; None as long as there is none.
        """
        now = time.monotonic()
        if self._others is None and now >= self._next:
            self._next = now + _SEARCH_SECONDS
            missing = [agent for agent in self._candidates(agreed, newcomers) if agent not in self._server.callers]
            self._others = BackgroundCall(lambda: self._agents.coordinators(missing), name="others", discard=_hang_up)
        if self._others is None or not self._others.done:
            return None
        found, self._others = self._others.result(), None
        self._server.miss(self._agents.gone)
        better = [one for one in found if one.number > agreed.number or one.coordinator < self._config.agent]
        chosen = better[0] if better and self._server.resign_unformed() else None
        _hang_up(one for one in found if one is not chosen)
        if chosen is None or chosen.connection is None:
            return None
        return self.follow(chosen.coordinator, chosen.connection)

    def _ask(self, agents: Iterable[int]) -> tuple[bool, Reply | None]:
        """Whether the question has been answered, and how."""
        if self._first is None:
            wanted = list(agents)
            self._first = BackgroundCall(lambda: self._agents.first(wanted), name="election", discard=_hang_up_one)
        if not self._first.done:
            return False, None
        found, self._first = self._first.result(), None
        return True, found

    def _candidates(self, agreed: Membership, newcomers: Iterable[int]) -> list[int]:
        """The agents with which this one may go on, in host-list order."""
        return sorted({*agreed.agents, *newcomers} - {self._config.agent})


def _hang_up(found: Iterable[Reply]) -> None:
    for one in found:
        one.close()


def _hang_up_one(found: Reply | None) -> None:
    _hang_up([found] if found is not None else [])
