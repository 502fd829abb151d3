"""What the tests of the transport share: keyrings, a service that remembers, a server, and a socket that is watched."""

from __future__ import annotations

import contextlib
import math
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from hpc_launch.node import network
from hpc_launch.rendezvous.transport import client, keys
from hpc_launch.rendezvous.transport.client import ConnectionFailure
from hpc_launch.rendezvous.transport.connection import Connection
from hpc_launch.rendezvous.transport.framing import Frame
from hpc_launch.rendezvous.transport.handshake import KeyMethod
from hpc_launch.rendezvous.transport.keys import Keyring, Secret
from hpc_launch.rendezvous.transport.server import Server
from hpc_launch.rendezvous.transport.service import Greeting
from hpc_launch.rendezvous.transport.unknown_peers import UnknownPeers
from tests.support import wait_for

PLACE = "cluster/1/0/0"


def ring(*texts: str, place: str = PLACE, method: KeyMethod = KeyMethod.SECRET) -> Keyring:
    """Make a keyring with secrets of these texts."""
    found = tuple(Secret("HPC_LAUNCH_SECRET", method, keys.derive_key(text.encode(), place)) for text in texts)
    return Keyring(place, found)


@dataclass
class Remembering:
    """A service that keeps what it is called with, and answers as it is told to.

    Attributes:
        stay: whether connections are kept.
        answer: the answer to all that are greeted.
        on_received: called with each control frame.
    """

    stay: bool = True
    answer: bytes = b"hello too"
    on_greet: Callable[[bytes], None] = lambda _: None
    on_received: Callable[[Connection, bytes], None] = lambda *_: None
    hellos: list[bytes] = field(default_factory=list)
    connections: list[Connection] = field(default_factory=list)
    payloads: list[bytes] = field(default_factory=list)
    bulk: list[bytes] = field(default_factory=list)
    gone: list[Connection] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)
    turns: int = 0
    wait: float = math.inf

    def greet(self, hello: bytes) -> Greeting:
        self.hellos.append(hello)
        self.on_greet(hello)
        return Greeting(self.answer, self.stay)

    def opened(self, connection: Connection) -> None:
        self.connections.append(connection)

    def received(self, connection: Connection, payload: bytes) -> None:
        self.payloads.append(payload)
        self.on_received(connection, payload)

    def received_bulk(self, _connection: Connection, payload: bytes) -> None:
        self.bulk.append(payload)

    def lost(self, connection: Connection) -> None:
        self.gone.append(connection)

    def refused(self, _connection: Connection | None, why: str) -> None:
        self.reasons.append(why)

    def turn(self, _now: float) -> float:
        self.turns += 1
        return self.wait


@contextlib.contextmanager
def serving(
    service: Remembering | None = None,
    keyring: Keyring | None = None,
    *,
    limit: int = 512,
    clock: Callable[[], float] | None = None,
) -> Iterator[Server]:
    """Serve on a free port of loopback."""
    listener = network.listen(0)
    options = {} if clock is None else {"clock": clock}
    server = Server(
        listener,
        keyring or ring("the secret"),
        service or Remembering(),
        name="server",
        silence=10,
        limit=limit,
        **options,
    )
    server.start()
    try:
        yield server
    finally:
        server.close()


def connect(
    server: Server, keyring: Keyring | None = None, hello: bytes = b"hello", patience: float = 20
) -> Connection | ConnectionFailure:
    """Connect to a server."""
    return connect_to(server.port, keyring, hello, patience)


def connect_to(
    port: int,
    keyring: Keyring | None = None,
    hello: bytes = b"hello",
    patience: float = 20,
    through: int | None = None,
) -> Connection | ConnectionFailure:
    """Connect to a port of loopback, perhaps through another port that is forwarded to it."""
    return client.connect_to_agent(
        "127.0.0.1",
        through or port,
        keyring or ring("the secret"),
        hello,
        connect_timeout=20,
        patience=patience,
        listener_port=port,
    )


def connected(server: Server, keyring: Keyring | None = None, hello: bytes = b"hello") -> Connection:
    """Connect to a server that keeps the connection."""
    found = connect(server, keyring, hello)
    assert isinstance(found, Connection), found
    return found


def receive(connection: Connection, count: int = 1) -> list[Frame]:
    """Wait for so many frames, or for the end of the connection."""
    frames: list[Frame] = []

    def enough() -> bool:
        connection.flush()
        frames.extend(connection.receive())
        return len(frames) >= count or connection.broken

    wait_for(enough, 20, lambda: f"{len(frames)} frames of {count}", pause=0.002)
    return frames


def dial(server: Server) -> socket.socket:
    """Connect as anybody can."""
    return socket.create_connection(("127.0.0.1", server.port), timeout=20)


def is_hung_up(peer: socket.socket) -> bool:
    """Wait until the other end of a plain socket hangs up, whatever comes before."""
    peer.settimeout(20)
    try:
        while peer.recv(1 << 16):
            pass
    except ConnectionError:
        pass
    return True


class Relay:
    """A man in the middle: forwards what goes through it, as `change` has it, and keeps what has gone each way.

    Args:
        port: where it connects to for each that connects to it.
        change: gets whether the bytes go to the server, and how many went that way before; gives what is forwarded.
    """

    def __init__(self, port: int, change: Callable[[bool, int, bytes], bytes] = lambda _to, _at, data: data) -> None:
        self.sent: dict[bool, bytearray] = {True: bytearray(), False: bytearray()}
        self._target, self._change = port, change
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._sockets: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                there, _ = self._listener.accept()
                here = socket.create_connection(("127.0.0.1", self._target))
                self._sockets += [there, here]
                for source, target, to in ((there, here, True), (here, there, False)):
                    thread = threading.Thread(target=self._forward, args=(source, target, to), daemon=True)
                    self._threads.append(thread)
                    thread.start()

    def _forward(self, source: socket.socket, target: socket.socket, to: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                at = len(self.sent[to])
                self.sent[to] += data
                target.sendall(self._change(to, at, data))
            target.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._threads[0].join()
        for one in self._sockets:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for one in self._sockets:
            one.close()


@contextlib.contextmanager
def relaying(port: int, change: Callable[[bool, int, bytes], bytes] | None = None) -> Iterator[Relay]:
    """Stand between those who connect and a server."""
    relay = Relay(port) if change is None else Relay(port, change)
    try:
        yield relay
    finally:
        relay.close()


def unknown_in(server: Server) -> UnknownPeers:
    """Return what a server knows of peers that have not proved yet who they are."""
    assert server._unknown_peers is not None
    return server._unknown_peers
