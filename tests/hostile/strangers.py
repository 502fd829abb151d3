"""Attacks of a stranger that connects to agents. Each is bounded in connections, bytes and time, and reports."""

from __future__ import annotations

import contextlib
import secrets
import selectors
import socket
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from hpc_launch.rendezvous.messages import Purpose
from hpc_launch.rendezvous.transport import framing, handshake
from hpc_launch.rendezvous.transport.framing import FrameKind, Offer, Opening, Sealer
from hpc_launch.rendezvous.transport.handshake import CONNECTING
from tests.hostile import garbage, words

_BLOCK = 1 << 16
# So many conversations of one attacker at a time.
_AT_ONCE = 64


@dataclass(frozen=True)
class Target:
    """A listener of a run.

    Attributes:
        address: of its node.
        port: where it listens.
        place: of the run, which is public.
        program: of the run, which is public as well.
        seconds: how long an attack lasts at most.
    """

    address: str
    port: int
    place: str
    program: str
    seconds: float

    def connect(self) -> socket.socket:
        """Connect to it."""
        return socket.create_connection((self.address, self.port), timeout=self.seconds)


@dataclass(frozen=True)
class Report:
    """What an attack got.

    Attributes:
        attack: its name.
        connections: how many connections it had.
        words: what listeners have said to it besides their opening, as text.
    """

    attack: str
    connections: int
    words: str = ""


# ---- conversations


def _hear(connection: socket.socket, deadline: float) -> bytes:
    """All that is said until the other end hangs up, or the deadline comes."""
    heard = b""
    with contextlib.suppress(OSError):
        while (left := deadline - time.monotonic()) > 0:
            connection.settimeout(left)
            data = connection.recv(_BLOCK)
            if not data:
                break
            heard += data
    return heard


def _hear_opening(connection: socket.socket, deadline: float) -> tuple[Opening | None, bytes]:
    """The first frame of a listener, and what it has said after it; none where it says something else, or nothing."""
    heard = b""
    with contextlib.suppress(OSError, framing.WireError):
        while (left := deadline - time.monotonic()) > 0:
            found = framing.decode_opening(heard)
            if found is not None:
                return found[0], heard[found[1] :]
            connection.settimeout(left)
            data = connection.recv(_BLOCK)
            if not data:
                break
            heard += data
    return None, heard


def _after_opening(heard: bytes) -> bytes:
    """What was said besides an opening."""
    with contextlib.suppress(framing.WireError):
        found = framing.decode_opening(heard)
        if found is not None:
            return heard[found[1] :]
        if framing.MAGIC.startswith(heard[: len(framing.MAGIC)]):
            return b""
    return heard


def _say(target: Target, data: bytes) -> str:
    """Say something at once, and hear what comes back."""
    deadline = time.monotonic() + target.seconds
    with contextlib.suppress(OSError), target.connect() as connection:
        with contextlib.suppress(OSError):
            connection.sendall(data)
        return _after_opening(_hear(connection, deadline)).decode(errors="replace")
    return ""


def _speak(target: Target, opening: Callable[[Opening], bytes], hello: bytes, frames: Sequence[bytes]) -> str:
    """Hear the listener's opening, answer it, prove with a key of one's own, and go on as if one were known."""
    deadline = time.monotonic() + target.seconds
    with contextlib.suppress(OSError), target.connect() as connection:
        theirs, rest = _hear_opening(connection, deadline)
        if theirs is None:
            return rest.decode(errors="replace")
        sealer = Sealer(secrets.token_bytes(32))
        said = opening(theirs) + framing.encode_method_data(b"") + sealer.seal(FrameKind.PROOF, hello)
        with contextlib.suppress(OSError):
            connection.sendall(said + b"".join(sealer.seal(FrameKind.CONTROL, frame) for frame in frames))
        return (rest + _hear(connection, deadline)).decode(errors="replace")
    return ""


def _opening_of(place: str, offers: Sequence[Offer] = ()) -> bytes:
    """The opening of an agent of a place, with the offers of a key that the listener does not have."""
    nonce = secrets.token_bytes(framing.NONCE_BYTES)
    mine = Offer(handshake.KeyMethod.PLACE, framing.salted_id(handshake.place_key(place), CONNECTING, nonce))
    key = Offer(handshake.KeyMethod.SECRET, framing.salted_id(b"evil", CONNECTING, nonce))
    return Opening(framing.PROTOCOL, nonce, (mine, key, *offers)[: framing.MAX_OFFERS]).encode()


def _right_place(target: Target) -> Callable[[Opening], bytes]:
    return lambda _: _opening_of(target.place)


# ---- attacks


def _scripts(target: Target) -> Iterator[tuple[str, Callable[[], str]]]:
    """Attacks of one connection each, by name."""
    for name, data in garbage.KINDS.items():
        yield f"garbage: {name}", lambda data=data: _say(target, data)  # type: ignore[misc]
    mine = words.hello(1, Purpose.JOIN, target.program)
    for name, message in words.MESSAGES.items():
        yield f"message: {name}", lambda message=message: _speak(target, _right_place(target), mine, [message])  # type: ignore[misc]
    everything = [*words.MESSAGES.values()]
    for purpose in Purpose:
        for agent in (0, 1, 99):
            said = words.hello(agent, purpose, target.program)
            yield (
                f"hello: {purpose.value} as {agent}",
                lambda said=said: _speak(target, _right_place(target), said, everything),  # type: ignore[misc]
            )
    other = words.hello(1, Purpose.JOIN, "0" * 64)
    yield "hello: another program", lambda: _speak(target, _right_place(target), other, everything)
    yield "hello: another run", lambda: _speak(target, lambda _: _opening_of("test/0/0/0"), mine, everything)
    yield "hello: a long one", lambda: _speak(target, _right_place(target), b"x" * 3000, [])
    yield "its own opening", lambda: _speak(target, Opening.encode, mine, everything)
    yield (
        "the ids that it offers",
        lambda: _speak(target, lambda theirs: _opening_of(target.place, theirs.offers[1:]), mine, everything),
    )
    yield "an echo", lambda: _echo(target)
    yield "a slow opening", lambda: _slowly(target, _opening_of(target.place))
    yield "slow garbage", lambda: _slowly(target, bytes(1000))


def _echo(target: Target) -> str:
    """Say back whatever is said."""
    deadline, heard = time.monotonic() + target.seconds, b""
    with contextlib.suppress(OSError), target.connect() as connection:
        while (left := deadline - time.monotonic()) > 0:
            connection.settimeout(left)
            data = connection.recv(_BLOCK)
            if not data:
                break
            heard += data
            connection.sendall(data)
    return _after_opening(heard).decode(errors="replace")


def _slowly(target: Target, data: bytes) -> str:
    """Say one byte after another."""
    deadline, heard = time.monotonic() + target.seconds, b""
    with contextlib.suppress(OSError), target.connect() as connection:
        for one in data:
            if time.monotonic() > deadline:
                break
            connection.sendall(bytes([one]))
            heard += _hear(connection, min(deadline, time.monotonic() + 0.1))
    return _after_opening(heard).decode(errors="replace")


def converse(targets: Sequence[Target]) -> Iterator[Report]:
    """All attacks of one connection each, on all targets."""
    scripts = [one for target in targets for one in _scripts(target)]
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        heard = [(name, pool.submit(script)) for name, script in scripts]
        for name, said in heard:
            yield Report(name, 1, said.result())


def _open(target: Target, count: int) -> list[socket.socket]:
    """Connect many times, as fast as it goes."""
    opened = []
    for _ in range(count):
        with contextlib.suppress(OSError):
            connection = socket.socket()
            opened.append(connection)
            connection.setblocking(False)
            connection.connect_ex((target.address, target.port))
    return opened


def _sit(opened: Sequence[socket.socket], until: float) -> None:
    """Keep connections until the other end has closed all of them, or until some time."""
    with selectors.DefaultSelector() as selector:
        for connection in opened:
            selector.register(connection, selectors.EVENT_READ)
        while selector.get_map() and (left := until - time.monotonic()) > 0:
            for key, _ in selector.select(left):
                with contextlib.suppress(BlockingIOError):
                    try:
                        over = not key.fileobj.recv(_BLOCK)  # type: ignore[union-attr]
                    except ConnectionError:
                        over = True
                    if over:
                        selector.unregister(key.fileobj)


def _close(opened: Sequence[socket.socket]) -> None:
    for connection in opened:
        connection.close()


IDLE = 1100


def idle(targets: Sequence[Target]) -> Iterator[Report]:
    """Connections that say nothing, more than an agent has descriptors for; half of them are half closed."""
    for target in targets:
        opened = _open(target, IDLE)
        for connection in opened[::2]:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_WR)
        _sit(opened, time.monotonic() + target.seconds)
        _close(opened)
        yield Report("idle", len(opened))


def flood(targets: Sequence[Target]) -> Iterator[Report]:
    """Connections that end at once, in order and with a reset."""
    for target in targets:
        begin, count = time.monotonic(), 0
        for count in range(1, 2001):
            if time.monotonic() - begin > target.seconds:
                break
            with contextlib.suppress(OSError), target.connect() as connection:
                if count % 2:
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        yield Report("flood", count)


LONG_BYTES = (4 << 20) - 1000


def long(targets: Sequence[Target]) -> Iterator[Report]:
    """A hundred connections that say four megabytes without an end each, and stay."""
    for target in targets:
        opened = []
        for _ in range(100):
            with contextlib.suppress(OSError):
                connection = target.connect()
                opened.append(connection)
                connection.settimeout(1.0)
                connection.sendall(b"x" * LONG_BYTES)
        _sit(opened, time.monotonic() + target.seconds)
        _close(opened)
        yield Report("long", len(opened))


ATTACKS: dict[str, Callable[[Sequence[Target]], Iterator[Report]]] = {
    "converse": converse,
    "idle": idle,
    "flood": flood,
    "long": long,
}
"""Attacks by name."""
