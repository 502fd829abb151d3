"""Where an agent of a run that may lose nodes is called by the others: a thread with their connections.

Every agent listens from the beginning, so that anyone can lead when the leader is lost.
"""

from __future__ import annotations

import contextlib
import json
import selectors
import socket
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hpc_launch.elastic.lines import Lines, encode, notice_silence
from hpc_launch.elastic.membership import Knowledge, Membership
from hpc_launch.elastic.party import Party
from hpc_launch.elastic.story import Caller

# A caller that has not said who it is by then is a stranger.
_STRANGER_SECONDS = 30.0
# How often all connections are looked at: of a thousand nodes something comes more often.
_CARE_SECONDS = 0.05

_NOTHING = Knowledge(Membership(-1, ()))


@dataclass
class Session:
    """A connection to an agent.

    Attributes:
        lines: the connection.
        since: when it came (time.monotonic).
        agent: its number, once it has said so.
        ready: what it said last, if it is ready for another round.
        place: where it listens.
        known: what it knows of memberships.
    """

    lines: Lines
    since: float
    agent: int | None = None
    ready: Caller | None = None
    place: tuple[str, int] = ("", 0)
    known: Knowledge = _NOTHING


class Post(ABC):
    """What listens for other agents; what they say is for `Leader`.

    Args:
        party: what this agent brings along.
        listener: where it listens.
    """

    def __init__(self, party: Party, listener: socket.socket) -> None:
        self.port: int = listener.getsockname()[1]
        self.leader = -1
        """Whom this agent is with, for others to hear; -1 while it looks for one."""
        self._party = party
        self._leads = False
        self._listener = listener
        self._sessions: dict[socket.socket, Session] = {}
        self._keys: dict[int, str] = {}
        self._next_care = 0.0
        self._lock = threading.Lock()
        self._ending = threading.Event()
        self._selector = selectors.DefaultSelector()
        listener.setblocking(False)
        self._selector.register(listener, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._serve, name="post", daemon=True)

    def open(self) -> None:
        """Begin to listen."""
        self._thread.start()

    def close(self) -> None:
        """End the thread and free the port."""
        self._ending.set()
        self._thread.join()

    @property
    def leads(self) -> bool:
        """Whether it leads."""
        return self._leads

    @property
    def callers(self) -> frozenset[int]:
        """The agents that have a connection to it."""
        return frozenset(one.agent for one in [*self._sessions.values()] if one.agent is not None)

    # ---- what to do about it

    @property
    @abstractmethod
    def _number(self) -> int:
        """The number of the membership whose round is led here; -1 where none has begun."""

    @abstractmethod
    def _obey(self, connection: socket.socket, session: Session, said: Mapping[str, Any]) -> None:
        """An agent has said something."""

    @abstractmethod
    def _lose(self, connection: socket.socket) -> None:
        """An agent is gone."""

    @abstractmethod
    def _go_on(self, now: float) -> None:
        """All that was said has been heard."""

    # ---- the thread

    def _serve(self) -> None:
        try:
            while not self._ending.is_set():
                ready = self._selector.select(timeout=_CARE_SECONDS)
                with self._lock:
                    for key, _ in ready:
                        if key.fileobj is self._listener:
                            self._accept()
                        elif isinstance(key.fileobj, socket.socket) and key.fileobj in self._sessions:
                            self._listen(key.fileobj)
                    self._turn(time.monotonic())
        finally:  # whatever becomes of this thread, nobody waits for it
            with self._lock:
                for connection in [*self._sessions]:
                    self._forget(connection)
            self._selector.close()
            self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            connection, _ = self._listener.accept()
            notice_silence(connection, self._party.node_timeout)
            self._adopt(connection)

    def _adopt(self, connection: socket.socket) -> None:
        self._sessions[connection] = Session(Lines(connection), time.monotonic())
        self._selector.register(connection, selectors.EVENT_READ)

    def _forget(self, connection: socket.socket) -> None:
        session = self._sessions.pop(connection)
        self._selector.unregister(connection)
        session.lines.close()

    def _listen(self, connection: socket.socket) -> None:
        session = self._sessions[connection]
        for said in session.lines.hear():
            if connection not in self._sessions:
                return
            try:
                self._hear(connection, session, said)
            except (KeyError, TypeError, ValueError, IndexError, AttributeError):
                session.lines.broken = True  # none of ours

    def _turn(self, now: float) -> None:
        if now >= self._next_care:
            self._next_care = now + _CARE_SECONDS
            self._look_after(now)
        self._go_on(now)

    def _look_after(self, now: float) -> None:
        """Say on what could not be said at once, and part with those that are gone."""
        for connection, session in [*self._sessions.items()]:
            if session.lines.waiting:
                session.lines.flush()
            stranger = session.agent is None and now - session.since > _STRANGER_SECONDS
            if connection in self._sessions and (session.lines.broken or stranger):
                self._lose(connection)

    def _hear(self, connection: socket.socket, session: Session, said: Mapping[str, Any]) -> None:
        if "run" in said:
            self._answer(connection, session, said)
        else:
            self._obey(connection, session, said)

    def _answer(self, connection: socket.socket, session: Session, said: Mapping[str, Any]) -> None:
        """Who calls asks whether this agent leads its run."""
        agent, key = int(said["agent"]), str(said["key"])
        mine = said["run"] == self._party.run_id and self._keys.setdefault(agent, key) == key
        if mine and (self._leads or said.get("again")):
            facts = {"run": self._party.run_id, "port": self.port, "leads": self._leads}
            text = json.dumps({**facts, "leader": self.leader, "number": self._number})
        else:
            text = json.dumps({"run": ""})
        try:
            connection.sendall(text.encode() + b"\n")
        except OSError:
            session.lines.broken = True
        if not self._leads or not mine:
            self._forget(connection)

    # ---- words

    def _broadcast(self, word: str, **facts: Any) -> None:
        self._tell(None, word, **facts)

    def _tell(self, agents: Sequence[int] | None, word: str, **facts: Any) -> None:
        line, among = encode(word, **facts), None if agents is None else {*agents}
        for session in [*self._sessions.values()]:
            if session.agent is not None and (among is None or session.agent in among):
                session.lines.pass_on(line)
