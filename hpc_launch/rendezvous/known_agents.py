"""The agents that one knows of: where they listen, and what they answer to the question who coordinates.

A listening agent answers in a thread that does nothing else (`coordinator_service`), however busy the agent is.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

from hpc_launch import codec
from hpc_launch.rendezvous import messages
from hpc_launch.rendezvous.messages import Answer, Hello, Purpose, Verdict
from hpc_launch.rendezvous.transport.client import ConnectionFailure, FailureKind, connect_to_agent, server_answers
from hpc_launch.rendezvous.transport.connection import Connection
from hpc_launch.rendezvous.transport.keys import Keyring
from hpc_launch.rendezvous.transport.peer_faults import MessageError

CALL_SECONDS = 1.5
"""How long an agent waits for another that does not answer."""
# How many are asked at a time at most.
_AT_ONCE = 64

_ANSWER = codec.known(Answer)


def read_answer(data: bytes) -> Answer | None:
    """The answer to a hello; None where it is unusable."""
    try:
        found: Answer = messages.decode(data, _ANSWER)
    except MessageError:
        return None
    return found


@dataclass(frozen=True)
class Reply:
    """What an agent answers to the question who coordinates.

    Attributes:
        coordinator: itself if it does, or the agent that it is with; -1 while it looks for one.
        number: of the membership whose round it coordinates; -1 where none has begun.
        connection: to it, if it coordinates.
    """

    coordinator: int
    number: int
    connection: Connection | None

    def close(self) -> None:
        """Hang up."""
        if self.connection is not None:
            self.connection.close()


@dataclass
class KnownAgents:
    """What an agent knows of where the others are.

    Attributes:
        hello: what this agent says of itself.
        keyring: its secrets.
        places: where each agent listens: address and port.
        gone: those that have closed their connection, or do not listen any more.
    """

    hello: Hello
    keyring: Keyring
    places: dict[int, tuple[str, int]] = field(default_factory=dict)
    gone: set[int] = field(default_factory=set)

    def first(self, agents: Iterable[int]) -> Reply | None:
        """Ask one after the other; what the first says that answers, None where none does.

        Those that are gone are left out. While none answers more of them are asked at a time: a whole rack may be off.
        """
        left, number = [agent for agent in agents if agent not in self.gone], 1
        while left:
            some, left = left[:number], left[number:]
            answers = [answer for answer in self.ask(some).values() if answer is not None]
            for answer in answers[1:]:
                answer.close()
            if answers:
                return answers[0]
            number = min(2 * number, _AT_ONCE)
        return None

    def ask(self, agents: Sequence[int]) -> dict[int, Reply | None]:
        """Ask agents at the same time whether they coordinate, or the agent that they name; None if unreachable."""
        if len(agents) < 2:  # noqa: PLR2004 - one needs no threads
            return {agent: self._coordinator_by(agent) for agent in agents}
        with ThreadPoolExecutor(min(len(agents), _AT_ONCE)) as pool:
            return dict(zip(agents, pool.map(self._coordinator_by, agents), strict=True))

    def coordinators(self, agents: Sequence[int]) -> list[Reply]:
        """Those of these agents, and of the ones that they name, that coordinate; all with their connections."""
        return [found for found in self.ask(agents).values() if found is not None and found.connection is not None]

    def silent(self, place: tuple[str, int]) -> bool:
        """Whether the agent there does not answer; of a node that is gone the kernel says so where it is connected."""
        return server_answers(*place, CALL_SECONDS) is False

    def _coordinator_by(self, agent: int) -> Reply | None:
        found = self._ask(agent)
        if found is not None and found.connection is None and found.coordinator not in (-1, agent, self.hello.agent):
            return self._ask(found.coordinator) or found
        return found

    def _ask(self, agent: int) -> Reply | None:
        if agent not in self.places:
            return None
        hello = replace(self.hello, purpose=Purpose.ASK)
        address, port = self.places[agent]
        reached = connect_to_agent(
            address, port, self.keyring, codec.encode(hello), connect_timeout=CALL_SECONDS, patience=CALL_SECONDS
        )
        if isinstance(reached, ConnectionFailure) and reached.kind is FailureKind.REFUSED:
            self.gone.add(agent)  # it has listened for as long as it lived
        answer = read_answer(reached.answer)
        if answer is not None and answer.verdict is Verdict.SIMILAR and answer.agent == agent:
            return Reply(-1, -1, None)  # it is of this run, and will say more in a moment
        if answer is None or answer.verdict not in (Verdict.WELCOME, Verdict.FOLLOWS) or answer.agent != agent:
            if isinstance(reached, Connection):
                reached.close()
            return None
        self.gone.discard(agent)
        if isinstance(reached, Connection):
            return Reply(agent, answer.number, reached)
        return Reply(answer.coordinator, -1, None)
