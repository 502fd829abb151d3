"""Look for the leader of a run that has lost it: ask agents whether they lead, and whomever they name."""

from __future__ import annotations

import json
import socket
from dataclasses import dataclass, field

# How long an agent waits for another that does not answer.
_CALL_SECONDS = 1.5


@dataclass(frozen=True)
class Answer:
    """What an agent answers to the question whether it leads.

    Attributes:
        leader: itself if it does, or whom it is with; -1 while it looks for a leader.
        number: of the membership whose round it leads; -1 where none has begun.
        connection: to it, if it leads.
    """

    leader: int
    number: int
    connection: socket.socket | None


@dataclass
class Search:
    """What an agent knows of where the others are.

    Attributes:
        run_id: the name of the run.
        agent: the number of this agent.
        key: tells it from one of another run of the same name.
        places: where each agent listens: address and port.
        gone: those that have closed their connection, or do not listen any more.
    """

    run_id: str
    agent: int
    key: str
    places: dict[int, tuple[str, int]] = field(default_factory=dict)
    gone: set[int] = field(default_factory=set)

    def leader_by(self, agent: int) -> Answer | None:
        """Ask an agent whether it leads, or whomever it names; None where it cannot be reached."""
        answer = self._ask(agent)
        if answer is not None and answer.connection is None and answer.leader not in (-1, agent, self.agent):
            return self._ask(answer.leader) or answer
        return answer

    def _ask(self, agent: int) -> Answer | None:
        question = {"run": self.run_id, "agent": self.agent, "key": self.key, "again": True}
        if agent not in self.places:
            return None
        try:
            connection = socket.create_connection(self.places[agent], timeout=_CALL_SECONDS)
        except ConnectionRefusedError:
            self.gone.add(agent)  # it has listened for as long as it lived
            return None
        except OSError:
            return None
        try:
            connection.sendall(json.dumps(question).encode() + b"\n")
            with connection.makefile("rb") as stream:
                said = json.loads(stream.readline(1 << 12))
            if said["run"] == self.run_id:
                self.gone.discard(agent)
                if said["leads"]:
                    return Answer(agent, int(said["number"]), connection)
                connection.close()
                return Answer(int(said["leader"]), -1, None)
        except (OSError, ValueError, KeyError, TypeError):
            pass
        connection.close()
        return None
