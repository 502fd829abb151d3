"""The search for the coordinator: of the first node at the beginning, of whoever coordinates when that one is lost.

All questions are asked in the background; the agent's main loop looks at the results again and again.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

from hpc_launch.errors import RendezvousError, RoundRefused
from hpc_launch.rendezvous import discovery, messages
from hpc_launch.rendezvous.agent_state import AgentState
from hpc_launch.rendezvous.background_call import BackgroundCall
from hpc_launch.rendezvous.coordinator_server import CoordinatorServer
from hpc_launch.rendezvous.discovery import Discovery, ReachedCoordinator
from hpc_launch.rendezvous.election import Election
from hpc_launch.rendezvous.known_agents import KnownAgents
from hpc_launch.rendezvous.messages import Hello, Start
from hpc_launch.rendezvous.rendezvous_config import RendezvousConfig
from hpc_launch.rendezvous.transport.connection import Connection, set_keepalive
from hpc_launch.rendezvous.transport.keys import Keyring

# So often a coordinator is looked for at least before an agent gives up, which may have been stopped most of the time.
_SEARCHES = 3


class CoordinatorSearch:
    """How an agent comes to its coordinator, which it may become itself.

    Args:
        config: what this agent brings along.
        hello: what it says of itself.
        keyring: its secrets.

    Attributes:
        election: decides who coordinates when the coordinator is lost; None where this agent does not listen.
        agents: where the other agents are.
        own_address: of this node, on the way to the others.
    """

    def __init__(self, config: RendezvousConfig, hello: Hello, keyring: Keyring) -> None:
        self.election: Election | None = None
        self.agents = KnownAgents(hello, keyring)
        self.own_address = "127.0.0.1"
        self._config, self._hello, self._keyring = config, hello, keyring
        # Where those are that this agent is to join, if it comes late: the coordinator that it has found says it.
        self._others: Mapping[int, tuple[str, int]] = {}
        self._first: BackgroundCall[ReachedCoordinator] | None = None
        self._discovery: Discovery | None = None
        self._alone_since = 0.0
        self._in_vain = 0

    @property
    def question(self) -> BackgroundCall[ReachedCoordinator] | None:
        """The search for the first node, if it is under way."""
        return self._first

    @property
    def coordinator(self) -> int:
        """The agent that this one is with, or was with last."""
        return self.election.coordinator if self.election is not None else 0

    @property
    def coordinator_host(self) -> str:
        """The node of that agent."""
        hosts = self._config.hosts
        return hosts[self.coordinator] if self._config.elastic and 0 <= self.coordinator < len(hosts) else hosts[0]

    def allow_election(self, server: CoordinatorServer) -> None:
        """Let this agent coordinate, by its server, where none before it does."""
        self.election = Election(self._config, self.agents, server)

    def learn(self, places: Mapping[str, tuple[str, int]]) -> None:
        """The coordinator has said where agents listen."""
        self.agents.places.update(messages.places(places))

    def join_late(self, places: Mapping[str, tuple[str, int]]) -> None:
        """The coordinator has said where those are with whom this agent takes part in the next round."""
        self._others = messages.places(places)
        self.learn(places)

    @property
    def coordinator_place(self) -> Mapping[int, tuple[str, int]]:
        """That agent, and where it listens; empty where that is not known."""
        places = self.agents.places
        return {self.coordinator: places[self.coordinator]} if self.coordinator in places else {}

    def lead(self) -> Connection | None:
        """Coordinate; gives this agent's connection to itself."""
        return self.election.lead() if self.election is not None else None

    def begin(self) -> None:
        """Wait for a round; one that coordinates need not look for others at once."""
        self.found()
        if self.election is not None:
            self.election.begin()

    def begin_round(self, start: Start) -> None:
        """A round begins: all its agents have answered."""
        self.agents.gone.clear()
        self.learn(start.places)
        if self.election is not None:
            self.election.end(start.coordinator)

    def found(self) -> None:
        """This agent is with a coordinator."""
        self._alone_since, self._in_vain = time.monotonic(), 0

    def look(self, state: AgentState) -> Connection | None:
        """The connection to the coordinator, this agent perhaps; None where that is not known yet.

        Args:
            state: what this agent knows of the run.

        Raises:
            RoundRefused: when it has looked for one in vain for long.
            RendezvousError: when there is none any more.
        """
        connection = self._look(state)
        if connection is not None:
            return connection
        if self._first is None and not (self.election is not None and self.election.looking):
            self._in_vain += 1
        if self._in_vain >= _SEARCHES and time.monotonic() - self._alone_since > 3 * self._config.node_timeout:
            raise RoundRefused(f"{self._config.host} finds none of the other nodes, which could go on without it")
        return None

    def look_for_better(self, state: AgentState) -> Connection | None:
        """The connection to another coordinator, if this agent is to follow that one; see `Election.resign`."""
        if self.election is None:
            return None
        return self.election.resign(state.known.agreed, map(int, state.run.waiting))

    def stop(self) -> None:
        """Look for nobody any more."""
        if self._discovery is not None:
            self._discovery.dropped.set()
        if self._first is not None:
            self._first.drop()
        if self.election is not None:
            self.election.close()
        self._first = self.election = None

    def _look(self, state: AgentState) -> Connection | None:
        election = self.election
        if election is None and self._config.elastic:
            raise RendezvousError("the rendezvous is closed")
        if election is not None and state.known.agreed.number:
            return election.look(state.known.agreed, map(int, state.run.waiting))
        if election is not None and self._others:
            return election.join(self._others)
        if not self._config.elastic and state.round >= 0:
            raise RendezvousError(f"lost the agent on {self._config.hosts[0]}, which led the run")
        return self._find_first()

    def _find_first(self) -> Connection | None:
        """The connection to the first node, where the run begins, or to its coordinator when this agent comes late."""
        if self._first is None:
            search = self._discovery = Discovery(self._hello, self._keyring)
            config = self._config
            self._first = BackgroundCall(
                lambda: discovery.find_coordinator(config, search), name="finding", discard=ReachedCoordinator.close
            )
        if not self._first.done:
            return None
        found, self._first = self._first.result(), None
        self.own_address = self.own_address or found.own_address
        coordinator = found.answer.agent
        self.agents.places[coordinator] = found.address, found.answer.port
        if self.election is not None:
            return self.election.follow(coordinator, found.connection)
        set_keepalive(found.connection.socket, self._config.silence)
        return found.connection
