"""False leaders and relays: they listen on ports where agents of a run look for its leader."""

from __future__ import annotations

import contextlib
import secrets
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from hpc_launch.rendezvous.transport import framing, handshake
from hpc_launch.rendezvous.transport.framing import Offer, Opening
from hpc_launch.rendezvous.transport.handshake import LISTENING
from tests.hostile import garbage

_BLOCK = 1 << 16
_SECONDS = 5.0


@dataclass
class Squatter:
    """Somebody who listens on the ports that agents of a run try first, with one behaviour on each.

    Attributes:
        address: of the node, where the true leader listens as well.
        ports: all ports of the run, in the order in which agents try them.
        place: of the run.
        met: how often each behaviour was met.
        broken_in: what the leader has said to replayed bytes besides an opening.
    """

    address: str
    ports: Sequence[int]
    place: str
    met: Counter[str] = field(default_factory=Counter)
    broken_in: list[str] = field(default_factory=list)
    _mine: set[int] = field(default_factory=set)
    _listeners: list[socket.socket] = field(default_factory=list)

    def squat(self) -> None:
        """Listen on as many ports as there are behaviours; the last of them is just before the leader's."""
        for port, (name, behaviour) in zip(self.ports, BEHAVIOURS.items(), strict=False):
            listener = socket.create_server(("", port), backlog=64)
            self._mine.add(port)
            self._listeners.append(listener)
            threading.Thread(target=self._serve, args=(listener, name, behaviour), daemon=True).start()

    def leave(self) -> None:
        """Listen no more, and hang up on all."""
        for listener in self._listeners:
            listener.close()

    def _serve(self, listener: socket.socket, name: str, behaviour: Callable[[Squatter, socket.socket], None]) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            self.met[name] += 1
            threading.Thread(target=self._attend, args=(connection, behaviour), daemon=True).start()

    def _attend(self, connection: socket.socket, behaviour: Callable[[Squatter, socket.socket], None]) -> None:
        with connection, contextlib.suppress(OSError):
            behaviour(self, connection)

    def leader(self) -> socket.socket | None:
        """A connection to the true leader."""
        for port in self.ports:
            if port not in self._mine:
                with contextlib.suppress(OSError):
                    connection = socket.create_connection((self.address, port), timeout=1.0)
                    connection.settimeout(1.0)
                    if connection.recv(1, socket.MSG_PEEK) == framing.MAGIC[:1]:
                        return connection
                    connection.close()
        return None


def _linger(connection: socket.socket, seconds: float = _SECONDS) -> bytes:
    """Take what comes, and answer nothing."""
    heard, deadline = b"", time.monotonic() + seconds
    with contextlib.suppress(OSError):
        while (left := deadline - time.monotonic()) > 0:
            connection.settimeout(left)
            data = connection.recv(_BLOCK)
            if not data:
                break
            heard += data
    return heard


def _opening(place: str, protocol: int = framing.PROTOCOL) -> bytes:
    nonce = secrets.token_bytes(framing.NONCE_BYTES)
    mine = Offer(handshake.KeyMethod.PLACE, framing.salted_id(handshake.place_key(place), LISTENING, nonce))
    key = Offer(handshake.KeyMethod.SECRET, framing.salted_id(b"evil", LISTENING, nonce))
    return Opening(protocol, nonce, (mine, key)).encode()


def _hang_up(_: Squatter, connection: socket.socket) -> None:
    connection.recv(1, socket.MSG_DONTWAIT | socket.MSG_PEEK)


def _say_nothing(_: Squatter, connection: socket.socket) -> None:
    _linger(connection)


def _talk_nonsense(_: Squatter, connection: socket.socket) -> None:
    connection.sendall(garbage.KINDS["many random bytes"])
    _linger(connection)


def _speak_old(_: Squatter, connection: socket.socket) -> None:
    connection.sendall(b'{"run": "1.0.0", "port": 29999, "leads": true, "leader": 0, "number": 0}\n')
    _linger(connection)


def _be_newer(squatter: Squatter, connection: socket.socket) -> None:
    connection.sendall(_opening(squatter.place, protocol=framing.PROTOCOL + 1))
    _linger(connection)


def _be_of_another_run(_: Squatter, connection: socket.socket) -> None:
    connection.sendall(_opening("test/0/0/0"))
    _linger(connection)


def _be_false(squatter: Squatter, connection: socket.socket) -> None:
    """A leader of this run, as it says, which has no key."""
    connection.sendall(_opening(squatter.place))
    _linger(connection)


def _echo(_: Squatter, connection: socket.socket) -> None:
    """It says back what is said; to begin, it has to say an opening."""
    connection.sendall(_opening("test/0/0/0"))
    while data := connection.recv(_BLOCK):
        connection.sendall(data)


def _borrow(squatter: Squatter, connection: socket.socket) -> None:
    """It says the true leader's opening, and answers a proof with that of another connection to it."""
    leader = squatter.leader()
    if leader is None:
        return
    with leader:
        connection.sendall(leader.recv(_BLOCK))
        proof = _linger(connection, 1.0)
        for turn in range(2):
            other = squatter.leader()
            if other is not None:
                with other:
                    other.sendall(proof)
                    heard = _linger(other, 1.0)
                    if turn:
                        connection.sendall(heard)


def _relay(squatter: Squatter, connection: socket.socket, change: Callable[[bytes, int], bytes]) -> bytes:
    """Pass on what both say, for as long as both speak; returns what the agent has said."""
    leader = squatter.leader()
    if leader is None:
        return b""
    said: list[bytes] = []

    def pass_on(source: socket.socket, sink: socket.socket, number: int) -> None:
        with contextlib.suppress(OSError):
            source.settimeout(None)
            while data := source.recv(_BLOCK):
                if number:
                    said.append(data)
                sink.sendall(change(data, number))
        for one in (source, sink):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    with leader:
        back = threading.Thread(target=pass_on, args=(leader, connection, 0), daemon=True)
        back.start()
        pass_on(connection, leader, 1)
        back.join()
    return b"".join(said)


def _flip(data: bytes, number: int) -> bytes:
    """Change the last bit of what the agent says."""
    return data[:-1] + bytes([data[-1] ^ 1]) if number else data


def _relay_changed(squatter: Squatter, connection: socket.socket) -> None:
    _relay(squatter, connection, _flip)


def _relay_and_replay(squatter: Squatter, connection: socket.socket) -> None:
    """A relay that changes nothing; what an agent has said is said again to the leader, when the agent has gone."""
    said = _relay(squatter, connection, lambda data, _: data)
    again = squatter.leader()
    if again is not None and said:
        with again:
            again.sendall(said)
            heard = _linger(again, 1.0)
            found = framing.decode_opening(heard)
            if found is not None and heard[found[1] :]:
                squatter.broken_in.append(heard[found[1] :].decode(errors="replace"))


BEHAVIOURS: dict[str, Callable[[Squatter, socket.socket], None]] = {
    "a false leader": _be_false,
    "a newer version": _be_newer,
    "another run": _be_of_another_run,
    "a borrower": _borrow,
    "an echo": _echo,
    "old words": _speak_old,
    "nonsense": _talk_nonsense,
    "hanging up": _hang_up,
    "silence": _say_nothing,
    "a relay that changes words": _relay_changed,
    "a relay": _relay_and_replay,
}
"""What those do who listen, by name; who meets a relay that changes nothing looks no further."""
