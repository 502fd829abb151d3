"""Where an agent of a run that may lose nodes is called by the others: sessions that last, and words to all of them.

Every agent listens from the beginning, so that anyone can lead when the leader is lost.
"""

from __future__ import annotations

import socket
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hpc_launch.elastic import calls, lines
from hpc_launch.elastic.calls import Calls
from hpc_launch.elastic.membership import Knowledge, Membership
from hpc_launch.elastic.party import Party
from hpc_launch.elastic.story import Caller

# Why an agent is lost, mostly and otherwise.
GONE = "it was killed, or its node is gone"
SILENT = "it does not answer, though its node does"

_NOTHING = Knowledge(Membership(-1, ()))


@dataclass
class Session(calls.Session):
    """A connection to an agent.

    Attributes:
        ready: what it said last, if it is ready for another round.
        place: where it listens.
        known: what it knows of memberships.
    """

    ready: Caller | None = None
    place: tuple[str, int] = ("", 0)
    known: Knowledge = _NOTHING


class Post(Calls[Session]):
    """What listens for other agents; what they say is for `Leader`.

    Args:
        party: what this agent brings along.
        listener: where it listens.
    """

    def __init__(self, party: Party, listener: socket.socket) -> None:
        super().__init__(party.run_id, listener, Session, name="post", silence=party.node_timeout)
        self.leader = -1
        """Whom this agent is with, for others to hear; -1 while it looks for one."""
        self.sought = False
        """Whether another agent looks for a leader, perhaps because this one's does not answer."""
        self._party = party
        self._leads = False

    @property
    def leads(self) -> bool:
        """Whether it leads."""
        return self._leads

    # ---- what to do about it

    @property
    @abstractmethod
    def _number(self) -> int:
        """The number of the membership whose round is led here; -1 where none has begun."""

    @abstractmethod
    def _obey(self, connection: socket.socket, session: Session, said: Mapping[str, Any]) -> None:
        """An agent has said something."""

    def _hear(self, connection: socket.socket, session: Session, said: Mapping[str, Any]) -> None:
        if "run" in said:
            self._answer(connection, session, said)
        elif said["do"] != lines.HERE:  # what it is here for follows
            self._obey(connection, session, said)

    def _answer(self, connection: socket.socket, session: Session, said: Mapping[str, Any]) -> None:
        """Who calls asks whether this agent leads its run."""
        mine = self._is_ours(said)
        self.sought = self.sought or (mine and not self._leads)
        if mine and (self._leads or said.get("again")):
            about = {"leads": self._leads, "leader": self.leader, "number": self._number}
            self._reply(session, run=self._run_id, port=self.port, **about)
        else:
            self._reply(session, run="")
        if not self._leads or not mine:
            self._forget(connection)

    # ---- words

    def _broadcast(self, word: str, **facts: Any) -> None:
        self._tell(None, word, **facts)

    def _tell(self, agents: Sequence[int] | None, word: str, **facts: Any) -> None:
        line, among = lines.encode(word, **facts), None if agents is None else {*agents}
        for session in [*self._sessions.values()]:
            if session.agent is not None and (among is None or session.agent in among):
                session.lines.pass_on(line)
