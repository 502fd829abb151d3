"""How agents find the leader's store, and how they and the leader notice that the other is gone.

The leader listens on the first free port of the run's candidates; the others try the same candidates, on every name
under which the leader may be known, and believe nobody who does not answer with the run's name. So a foreign program on
one of the ports, be it another job's store, is never joined, and costs one refused conversation.

The conversation is one line of JSON each way, `{"run", "agent", "key"}` and `{"run", "port"}`, then `here` and other
words (`lines`). The key tells apart two runs with the same name (two launches with the same host list): each run takes
every agent number once.

From then on the connection stays open as a lifeline. An agent that ends says `bye`; one that was killed, or whose node
is gone, does not, and the kernel closes the connection for it, or lets it time out within some ten seconds (TCP
keepalive). This costs one idle connection per agent, and no traffic that grows with the time between failures.

On the same connection an agent asks for the leader's time (`clock`), to know how far its own is off.
"""

from __future__ import annotations

import contextlib
import json
import random
import socket
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hpc_launch.elastic.calls import Calls, Session
from hpc_launch.elastic.lines import HERE, NONSENSE, encode, notice_silence
from hpc_launch.node import network

# How long to wait for an answer: at first, and, in later turns, as a busy node may need.
_FIRST_ANSWER_SECONDS = 0.3
_ANSWER_SECONDS = 3.0
_CONNECT_SECONDS = 3.0
_LONGEST_LINE = 4096
# A node that does not answer for so long is gone.
_SILENCE_SECONDS = 10.0
_BYE, _CLOCK = "bye", "clock"

# The quickest of so many answers counts, and an answer that takes longer than this is none.
_CLOCK_TURNS = 3
_CLOCK_SECONDS = 1.0


@dataclass
class _Caller(Session):
    """Somebody who has connected to the locator.

    Attributes:
        asked: the number of the agent, once it was answered; before it says that it is here, it may give up and call
            again.
    """

    asked: int | None = None


class Locator(Calls[_Caller]):
    """The leader's server."""

    def __init__(self, run_id: str, listener: socket.socket, store_port: int) -> None:
        super().__init__(run_id, listener, _Caller, name="locator", silence=_SILENCE_SECONDS)
        self._store_port = store_port
        self._lost: list[int] = []
        self.open()

    @property
    def lost(self) -> tuple[int, ...]:
        """The agents whose connections broke without a word."""
        return tuple(self._lost)

    def _hear(self, connection: socket.socket, session: _Caller, said: Mapping[str, Any]) -> None:
        if session.asked is None:
            self._answer(connection, session, said)
        elif said["do"] == HERE:
            session.agent = session.asked
        elif said["do"] == _CLOCK:
            self._reply(session, time=time.time())
        else:
            self._forget(connection)  # it takes leave

    def _answer(self, connection: socket.socket, session: _Caller, said: Mapping[str, Any]) -> None:
        if self._is_ours(said):
            session.asked = int(said["agent"])
            self._reply(session, run=self._run_id, port=self._store_port)
        else:
            self._reply(session, run="")
            self._forget(connection)

    def _lose(self, connection: socket.socket) -> None:
        agent = self._sessions[connection].agent
        if agent is not None:
            self._lost.append(agent)
        self._forget(connection)


class Lifeline:
    """An agent's connection to the leader, open for as long as the run lives."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._silent = False
        connection.settimeout(None)
        notice_silence(connection, _SILENCE_SECONDS)

    def broken(self) -> bool:
        """Whether the leader is gone."""
        late = _LONGEST_LINE if self._silent else 0  # an answer that nobody waits for any more
        try:
            while late and self._connection.recv(late, socket.MSG_DONTWAIT):
                pass
            return self._connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
        except BlockingIOError:
            return False
        except OSError:
            return True

    def release(self) -> socket.socket:
        """The connection, for those who say something else on it."""
        return self._connection

    def clock(self) -> tuple[float, float] | None:
        """How many seconds this node's clock is ahead of the leader's, and how wrong that can be; None if unknown.

        The leader has read its clock at some moment between question and answer (F. Cristian, Probabilistic clock
        synchronization, Distributed Computing 3, 1989): half of that time is the error.
        """
        found = [measured for _ in range(_CLOCK_TURNS) if (measured := self._ask_clock()) is not None]
        return min(found, key=lambda measured: measured[1], default=None)

    def _ask_clock(self) -> tuple[float, float] | None:
        if self._silent:
            return None  # its late answer would be taken for that to another question
        begin = time.time()
        self._connection.settimeout(_CLOCK_SECONDS)
        try:
            self._connection.sendall(encode(_CLOCK))
            line = b""
            while not line.endswith(b"\n"):
                line += self._connection.recv(_LONGEST_LINE) or b"gone\n"
            end = time.time()
            return (begin + end) / 2 - json.loads(line)["time"], max(0.0, end - begin) / 2
        except (OSError, *NONSENSE):
            self._silent = True
            return None
        finally:
            self._connection.settimeout(None)

    def close(self, *, ended: bool = True) -> None:
        """Close it, and take leave if the run has ended: otherwise the leader is to miss this agent."""
        if ended:
            with contextlib.suppress(OSError):
                self._connection.sendall(encode(_BYE))
        self._connection.close()


@dataclass(frozen=True)
class Found:
    """Where the store is, by which addresses the two nodes reach each other, and the connection that stays.

    Attributes:
        leader_address: of the node that was asked for.
        own_address: of this node, on the way there.
        port: as it says: of the store, or where it listens, if there is no store between the agents.
        lifeline: the connection.
        leader: the number of the agent there.
    """

    leader_address: str
    own_address: str
    port: int
    lifeline: Lifeline
    leader: int


def find(
    run_id: str,
    agent: int,
    places: Callable[[], Sequence[tuple[str, Sequence[int]]]],
    deadline: float,
    key: str = "",
) -> Found | str:
    """Look for the leader until it answers.

    Args:
        run_id: the name of the run.
        agent: the number of this agent.
        places: gives the names or addresses to try, each with its ports; asked again in each turn.
        deadline: when to give up (time.monotonic).
        key: tells this agent from one with the same number in a run with the same name.

    Returns:
        What was found, or, after the deadline, what was seen instead.
    """
    question = json.dumps({"run": run_id, "agent": agent, "key": key or uuid.uuid4().hex}).encode() + b"\n"
    # The first turns are short: a silent stranger on one port is not to keep us from the leader on another.
    pause, patience = 0.05, _FIRST_ANSWER_SECONDS
    while True:
        seen = []
        for name, ports in places():
            addresses = (name,) if network.is_address(name) else network.resolve(name)
            if not addresses:
                seen.append(f"{name} does not resolve")
            for address in addresses:
                answer = _try_ports(question, address, ports, patience)
                if isinstance(answer, Found):
                    return answer
                seen.append(f"{name} ({address}): {answer}" if name != address else f"{address}: {answer}")
        if time.monotonic() > deadline:
            return "; ".join(seen)
        # Jitter keeps a thousand nodes from knocking in step.
        time.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311 - not a secret
        pause, patience = min(pause * 1.5, 1.0), min(patience * 2, _ANSWER_SECONDS)


def _try_ports(question: bytes, address: str, ports: Sequence[int], patience: float) -> Found | str:
    strangers = 0
    for port in ports:
        try:
            connection = socket.create_connection((address, port), timeout=_CONNECT_SECONDS)
        except ConnectionRefusedError:
            continue
        except ConnectionResetError:
            strangers += 1  # it hung up before it was asked
            continue
        except TimeoutError:
            return f"no answer on port {port} (filtered, or the node is down)"
        except OSError as error:
            return str(error.strerror or error)  # about the address, so the same on every port
        found = _ask(question, address, connection, patience)
        if found is not None:
            return found
        connection.close()
        strangers += 1
    return "nobody listens" + (f", but {strangers} ports belong to others" if strangers else "")


def _ask(question: bytes, address: str, connection: socket.socket, patience: float) -> Found | None:
    """Ask whoever is at the other end; None when it is not of this run (says something else, nothing, or hangs up)."""
    try:
        own = connection.getsockname()[:2]
        # A connection from a port to itself happens on the leader's node when nobody listens (simultaneous open).
        if own == connection.getpeername()[:2]:
            return None
        connection.settimeout(patience)
        connection.sendall(question)
        with connection.makefile("rb") as stream:
            answer = json.loads(stream.readline(_LONGEST_LINE))
        if answer["run"] != json.loads(question)["run"]:
            return None
        leader = int(answer.get("leader", 0))
        found = Found(address, own[0], int(answer["port"]), Lifeline(connection), leader)
        connection.sendall(encode(HERE))
    except (OSError, *NONSENSE):
        return None
    return found
