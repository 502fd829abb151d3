"""How agents find the leader's store, and how they and the leader notice that the other is gone.

The leader listens on the first free port of the run's candidates; the others try the same candidates, on every name
under which the leader may be known, and believe nobody who does not answer with the run's name. So a foreign program on
one of the ports, be it another job's store, is never joined, and costs one refused conversation.

The conversation is one line of JSON each way, `{"run", "agent", "key"}` and `{"run", "port"}`, then `here`. The key
tells apart two runs with the same name (two launches with the same host list): each run takes every agent number once.

From then on the connection stays open as a lifeline. An agent that ends says `bye`; one that was killed, or whose node
is gone, does not, and the kernel closes the connection for it, or lets it time out within some ten seconds (TCP
keepalive). This costs one idle connection per agent, and no traffic that grows with the time between failures.

On the same connection an agent asks for the leader's time (`clock`), to know how far its own is off.
"""

from __future__ import annotations

import contextlib
import json
import random
import selectors
import socket
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from hpc_launch.node import network

# How long to wait for an answer: at first, and, in later turns, as a busy node may need.
_FIRST_ANSWER_SECONDS = 0.3
_ANSWER_SECONDS = 3.0
_CONNECT_SECONDS = 3.0
_LONGEST_LINE = 4096
# A caller that has not said it is here by then is a stranger, or has given up.
_STRANGER_SECONDS = 30.0
_HERE, _BYE, _CLOCK = b"here\n", b"bye\n", b"clock\n"

# The quickest of so many answers counts, and an answer that takes longer than this is none.
_CLOCK_TURNS = 3
_CLOCK_SECONDS = 1.0

# What a line that is not ours can do to json and to those who look into it.
_NONSENSE = (ValueError, KeyError, TypeError, RecursionError, OverflowError)

# An idle peer is asked after 5 s, then every 2 s, and given up after the third silence: about ten seconds in all.
_KEEPALIVE = ((socket.TCP_KEEPIDLE, 5), (socket.TCP_KEEPINTVL, 2), (socket.TCP_KEEPCNT, 3))


def _keep_alive(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in _KEEPALIVE:
        connection.setsockopt(socket.IPPROTO_TCP, option, value)


@dataclass
class _Caller:
    """Somebody who has connected to the locator.

    Attributes:
        since: when (time.monotonic).
        asked: the number of the agent, once it was answered.
        agent: the same, once it has said that it is here: before that it may give up and call again.
        heard: what it has said and was not yet dealt with.
    """

    since: float
    asked: int | None = None
    agent: int | None = None
    heard: bytes = field(default=b"", repr=False)


class Locator:
    """The leader's server, in one thread however many agents there are."""

    def __init__(self, run_id: str, listener: socket.socket, store_port: int) -> None:
        self.port: int = listener.getsockname()[1]
        self._run_id = run_id
        self._store_port = store_port
        self._keys: dict[int, str] = {}
        self._lost: list[int] = []
        self._callers: dict[socket.socket, _Caller] = {}
        self._ending = threading.Event()
        self._listener = listener
        listener.setblocking(False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(listener, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._serve, name="locator", daemon=True)
        self._thread.start()

    @property
    def lost(self) -> tuple[int, ...]:
        """The agents whose connections broke without a word."""
        return tuple(self._lost)

    @property
    def present(self) -> int:
        """How many agents are connected and have not taken leave."""
        return sum(caller.agent is not None for caller in [*self._callers.values()])

    def close(self) -> None:
        """Stop answering and free the port."""
        self._ending.set()
        self._thread.join()

    def _serve(self) -> None:
        while not self._ending.is_set():
            for key, _ in self._selector.select(timeout=0.1):
                if key.fileobj is self._listener:
                    self._accept()
                elif isinstance(key.fileobj, socket.socket):
                    self._hear(key.fileobj)
            silent = [
                connection
                for connection, caller in self._callers.items()
                if caller.agent is None and time.monotonic() - caller.since > _STRANGER_SECONDS
            ]
            for connection in silent:
                self._forget(connection)
        for connection in [*self._callers]:
            self._forget(connection)
        self._selector.close()
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            connection, _ = self._listener.accept()
            connection.setblocking(False)
            _keep_alive(connection)
            self._callers[connection] = _Caller(since=time.monotonic())
            self._selector.register(connection, selectors.EVENT_READ)

    def _hear(self, connection: socket.socket) -> None:
        caller = self._callers[connection]
        try:
            data = connection.recv(_LONGEST_LINE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        caller.heard += data
        while b"\n" in caller.heard and connection in self._callers:
            line, _, caller.heard = caller.heard.partition(b"\n")
            self._obey(connection, caller, line + b"\n")
        if connection in self._callers and (not data or len(caller.heard) > _LONGEST_LINE):
            if caller.agent is not None:
                self._lost.append(caller.agent)
            self._forget(connection)

    def _obey(self, connection: socket.socket, caller: _Caller, line: bytes) -> None:
        if caller.asked is None:
            self._answer(connection, caller, line)
        elif line == _HERE:
            caller.agent = caller.asked
        elif line == _CLOCK:
            with contextlib.suppress(OSError):  # it will be missed
                connection.sendall(f"{time.time():.6f}\n".encode())
        else:
            self._forget(connection)  # it takes leave

    def _answer(self, connection: socket.socket, caller: _Caller, line: bytes) -> None:
        try:
            asked = json.loads(line)
            mine = asked["run"] == self._run_id
            agent, key = int(asked["agent"]), str(asked["key"])
        except _NONSENSE:
            self._forget(connection)
            return
        mine = mine and self._keys.setdefault(agent, key) == key
        answer = {"run": self._run_id, "port": self._store_port} if mine else {"run": ""}
        try:
            connection.sendall(json.dumps(answer).encode() + b"\n")
        except OSError:
            mine = False
        if mine:
            caller.asked = agent
        else:
            self._forget(connection)

    def _forget(self, connection: socket.socket) -> None:
        del self._callers[connection]
        self._selector.unregister(connection)
        connection.close()


class Lifeline:
    """An agent's connection to the leader, open for as long as the run lives."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._silent = False
        connection.settimeout(None)
        _keep_alive(connection)

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
            self._connection.sendall(_CLOCK)
            line = b""
            while not line.endswith(b"\n"):
                line += self._connection.recv(_LONGEST_LINE) or b"gone\n"
            end = time.time()
            return (begin + end) / 2 - float(line), max(0.0, end - begin) / 2
        except (OSError, ValueError):
            self._silent = True
            return None
        finally:
            self._connection.settimeout(None)

    def close(self, *, ended: bool = True) -> None:
        """Close it, and take leave if the run has ended: otherwise the leader is to miss this agent."""
        if ended:
            with contextlib.suppress(OSError):
                self._connection.sendall(_BYE)
        self._connection.close()


@dataclass(frozen=True)
class Found:
    """Where the store is, by which addresses the two nodes reach each other, and the connection that stays."""

    leader_address: str
    own_address: str
    port: int
    lifeline: Lifeline


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
        found = Found(address, own[0], int(answer["port"]), Lifeline(connection))
        connection.sendall(_HERE)
    except (OSError, *_NONSENSE):
        return None
    return found
