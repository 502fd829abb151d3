"""Where an agent is called by others: a thread that listens to all who have connected, however many there are.

Who calls says first which run it is of, and is answered. A caller that says nothing, or nonsense, is a stranger.
"""

from __future__ import annotations

import contextlib
import json
import selectors
import socket
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from hpc_launch.elastic.lines import NONSENSE, Lines, notice_silence

# A caller that has not said who it is by then is a stranger, or has given up.
_STRANGER_SECONDS = 30.0
# How often all connections are looked at: of a thousand nodes something comes more often.
_CARE_SECONDS = 0.05


@dataclass
class Session:
    """A connection to an agent.

    Attributes:
        lines: the connection.
        since: when it came (time.monotonic).
        agent: its number, once it is known to be there.
    """

    lines: Lines
    since: float
    agent: int | None = None


_Session = TypeVar("_Session", bound=Session)


class Calls(ABC, Generic[_Session]):
    """What listens for other agents; what follows from what they say is for those who inherit from it."""

    def __init__(
        self, run_id: str, listener: socket.socket, kind: type[_Session], *, name: str, silence: float
    ) -> None:
        """Nobody is heard before `open`.

        Args:
            run_id: the name of the run that callers are of.
            listener: where they call.
            kind: what is kept of each of them.
            name: of the thread.
            silence: seconds after which a node that does not answer is gone.
        """
        self.port: int = listener.getsockname()[1]
        self._run_id = run_id
        self._listener = listener
        self._kind = kind
        self._silence = silence
        self._sessions: dict[socket.socket, _Session] = {}
        self._keys: dict[int, str] = {}
        self._next_care = 0.0
        self._lock = threading.Lock()
        self._ending = threading.Event()
        self._selector = selectors.DefaultSelector()
        listener.setblocking(False)
        self._selector.register(listener, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._serve, name=name, daemon=True)

    def open(self) -> None:
        """Begin to listen."""
        self._thread.start()

    def close(self) -> None:
        """End the thread and free the port."""
        self._ending.set()
        self._thread.join()

    @property
    def callers(self) -> frozenset[int]:
        """The agents that have a connection to it."""
        return frozenset(one.agent for one in [*self._sessions.values()] if one.agent is not None)

    # ---- what to do about it, in the thread

    @abstractmethod
    def _hear(self, connection: socket.socket, session: _Session, said: Mapping[str, Any]) -> None:
        """A caller has said something."""

    @abstractmethod
    def _lose(self, connection: socket.socket) -> None:
        """A caller is gone."""

    def _go_on(self, now: float) -> None:
        """All that was said has been heard."""

    def _is_ours(self, said: Mapping[str, Any]) -> bool:
        """Whether a caller is of this run: the first with its number, as another run may have the same name."""
        agent, key = int(said["agent"]), str(said["key"])
        return bool(said["run"] == self._run_id and self._keys.setdefault(agent, key) == key)

    @staticmethod
    def _reply(session: _Session, **facts: Any) -> None:
        """Answer a question."""
        session.lines.pass_on(json.dumps(facts).encode() + b"\n")

    def _forget(self, connection: socket.socket) -> None:
        session = self._sessions.pop(connection)
        self._selector.unregister(connection)
        session.lines.close()

    def _adopt(self, connection: socket.socket) -> None:
        self._sessions[connection] = self._kind(Lines(connection), time.monotonic())
        self._selector.register(connection, selectors.EVENT_READ)

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
            notice_silence(connection, self._silence)
            self._adopt(connection)

    def _listen(self, connection: socket.socket) -> None:
        session = self._sessions[connection]
        for said in session.lines.hear():
            if connection not in self._sessions:
                return
            try:
                self._hear(connection, session, said)
            except NONSENSE:
                session.lines.broken = True
        if session.lines.broken and connection in self._sessions:
            self._lose(connection)

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
