"""The sessions of a coordinator: which agents are connected to it, and what each has said of itself. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Set as AbstractSet
from dataclasses import dataclass

from hpc_launch import hostlist
from hpc_launch.rendezvous.membership import Knowledge, Membership
from hpc_launch.rendezvous.messages import Hello, Ready

_NOTHING = Knowledge(Membership(-1, ()))


@dataclass(eq=False)
class AgentSession:
    """An agent's authenticated connection.

    Attributes:
        hello: what it said of itself in the handshake.
        agent: its number, once it is ready for a round.
        ready: what it said last, if it is ready for another round.
        known: what it knows of memberships.
        closed: its end was closed; otherwise it fell silent.
        outside: it was refused, or the run was over when it came.
    """

    hello: Hello
    agent: int | None = None
    ready: Ready | None = None
    known: Knowledge = _NOTHING
    closed: bool = False
    outside: bool = False

    @property
    def place(self) -> tuple[str, int]:
        """Where it listens; an empty address where it does not."""
        return (self.ready.address, self.ready.port) if self.ready is not None else self._place

    _place: tuple[str, int] = ("", 0)

    def rest(self) -> None:
        """Note that it takes part in a round, and is not ready for another."""
        self._place, self.ready = self.place, None


class AgentSessions:
    """All sessions of a coordinator; those of *members* are of agents that were ready once.

    Args:
        hosts: the node of each agent, as far as it is known before the agents have said it.

    Attributes:
        hosts: the node of each agent.
        members: the session of each agent that is there.
        gone: the agents whose connections were closed, not silent: these need not be waited for.
        newest: the newest agreed membership that any agent has spoken of.
    """

    def __init__(self, hosts: Mapping[int, str]) -> None:
        self.hosts = {**hosts}
        self.members: dict[int, AgentSession] = {}
        self.gone: AbstractSet[int] = frozenset()
        self.newest = Membership(-1, ())
        self._all: dict[AgentSession, None] = {}

    def __iter__(self) -> Iterator[AgentSession]:
        """All sessions at this moment."""
        return iter([*self._all])

    def __contains__(self, session: object) -> bool:
        """Whether a session is open."""
        return session in self._all

    @property
    def callers(self) -> frozenset[int]:
        """The agents that are there."""
        return frozenset(self.members)

    @property
    def ready(self) -> dict[int, Ready]:
        """The agents that are ready for another round, and what they have said."""
        return {agent: one.ready for agent, one in self.members.items() if one.ready is not None}

    @property
    def busy(self) -> frozenset[int]:
        """The agents that are there, and not ready."""
        return frozenset(agent for agent, one in self.members.items() if one.ready is None)

    def of(self, agents: Iterable[int]) -> list[AgentSession]:
        """The sessions of those of these agents that are there."""
        wanted = {*agents}
        return [one for agent, one in self.members.items() if agent in wanted]

    def names(self, agents: Iterable[int]) -> str:
        """The nodes of agents, as people read them."""
        return hostlist.display([self.hosts[agent] for agent in sorted(agents)])

    def open(self, session: AgentSession) -> None:
        """An agent is connected."""
        self._all[session] = None

    def note_ready(self, session: AgentSession, ready: Ready) -> None:
        """Note that an agent is ready for another round, and what it knows."""
        session.agent, session.ready, session.known = ready.agent, ready, ready.known
        self.members[ready.agent] = session
        self.hosts.setdefault(ready.agent, ready.host)
        self.gone = {*self.gone, *ready.gone} - {ready.agent}
        if ready.agreed.number > self.newest.number:
            self.newest = ready.agreed

    def note_gone(self, agents: AbstractSet[int]) -> None:
        """Note that agents do not listen any more; those that are there do."""
        self.gone = self.gone | (agents - self.callers)

    def forget(self, session: AgentSession) -> None:
        """A session is over."""
        self._all.pop(session, None)
        if session.agent is not None and self.members.get(session.agent) is session:
            del self.members[session.agent]
