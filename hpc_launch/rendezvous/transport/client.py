"""Connect to an agent: prove to each other who one is, within a time."""

from __future__ import annotations

import secrets
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import Enum

from hpc_launch.rendezvous.transport import framing
from hpc_launch.rendezvous.transport.connection import Connection
from hpc_launch.rendezvous.transport.handshake import ConnectingSide
from hpc_launch.rendezvous.transport.keys import Keyring
from hpc_launch.rendezvous.transport.peer_faults import HandshakeError, HandshakeFault

_BLOCK = 1 << 16
_PROBE_BYTES = 1


class FailureKind(Enum):
    """Why there is no connection."""

    REFUSED = "nothing listens there"
    UNREACHABLE = "the address cannot be reached"
    TIMEOUT = "no answer: filtered, or the node is down"
    SILENT = "it takes connections and says nothing"
    STRANGER = "it is no agent of this run"
    VERSION = "it is another version of hpc-launch"
    NO_COMMON_SECRET = "it has no secret in common with this agent"  # noqa: S105 - words for messages, no password
    TURNED_AWAY = "it is an agent of this run and does not keep the connection"


_KINDS = {
    HandshakeFault.STRANGER: FailureKind.STRANGER,
    HandshakeFault.VERSION: FailureKind.VERSION,
    HandshakeFault.NO_COMMON_SECRET: FailureKind.NO_COMMON_SECRET,
}


@dataclass(frozen=True)
class ConnectionFailure:
    """There is no connection.

    Attributes:
        kind: why, for those who decide.
        words: why, for those who read.
        answer: what an agent of this run has answered that does not keep the connection (`FailureKind.TURNED_AWAY`).
        own_address: this node's address on the way there, where the other end has answered.
    """

    kind: FailureKind
    words: str
    answer: bytes = b""
    own_address: str = ""


def connect_to_agent(
    address: str,
    port: int,
    keyring: Keyring,
    hello: bytes,
    *,
    connect_timeout: float,
    patience: float,
    listener_port: int | None = None,
) -> Connection | ConnectionFailure:
    """Connect to an agent; this blocks, for the two times at most.

    Args:
        address: of its node.
        port: where it may listen.
        keyring: what this agent has.
        hello: what the upper layer says first.
        connect_timeout: seconds for the kernel of the other node to answer.
        patience: seconds for the agent to answer.
        listener_port: where the agent listens, if something forwards `port` to it. Without it a relay is a stranger.
    """
    opened = _open(address, port, connect_timeout)
    if isinstance(opened, ConnectionFailure):
        return opened
    try:
        wanted = port if listener_port is None else listener_port
        found = _shake_hands(opened, keyring, hello, time.monotonic() + patience, wanted)
    except BaseException:
        opened.close()
        raise
    if isinstance(found, ConnectionFailure):
        opened.close()
    return found


def server_answers(address: str, port: int, timeout: float) -> bool | None:
    """Whether an agent's server answers; None where none listens there.

    A process that is stopped has its kernel accept connections, and says nothing: False.

    Args:
        address: of its node.
        port: where it listens.
        timeout: seconds for an answer.
    """
    end = time.monotonic() + timeout
    opened = _open(address, port, timeout)
    if isinstance(opened, ConnectionFailure):
        return None  # a process that is stopped has its kernel accept; a node that is gone is noticed elsewhere
    with opened:
        try:
            opened.settimeout(max(0.001, end - time.monotonic()))
            return True if opened.recv(_PROBE_BYTES) == framing.MAGIC[:_PROBE_BYTES] else None
        except TimeoutError:
            return False
        except OSError:
            return None


def _open(address: str, port: int, timeout: float) -> socket.socket | ConnectionFailure:
    try:
        opened = socket.create_connection((address, port), timeout=timeout)
    except OSError as error:
        return _not_open(error, port)
    try:
        itself = opened.getsockname()[:2] == opened.getpeername()[:2]
    except OSError:  # it was reset meanwhile
        opened.close()
        return ConnectionFailure(FailureKind.STRANGER, f"port {port}: it hung up")
    if itself:  # the kernel does that where nothing listens on the port (simultaneous open)
        opened.close()
        return ConnectionFailure(FailureKind.STRANGER, f"nothing listens on port {port}")
    return opened


def _not_open(error: OSError, port: int) -> ConnectionFailure:
    """The failure that the kernel has told of."""
    if isinstance(error, ConnectionRefusedError):
        return ConnectionFailure(FailureKind.REFUSED, f"nothing listens on port {port}")
    if isinstance(error, ConnectionResetError):
        return ConnectionFailure(FailureKind.STRANGER, f"port {port}: it hung up")
    if isinstance(error, TimeoutError):  # the kernel's ETIMEDOUT too
        return ConnectionFailure(FailureKind.TIMEOUT, f"no answer on port {port} (filtered, or the node is down)")
    return ConnectionFailure(FailureKind.UNREACHABLE, str(error.strerror or error))


@dataclass
class _Wire:
    """A socket that is read and written until a moment."""

    socket: socket.socket
    deadline: float

    def read(self) -> bytes:
        self._set_timeout()
        data = self.socket.recv(_BLOCK)
        if not data:
            raise HandshakeError(HandshakeFault.STRANGER, "it hung up")
        return data

    def write(self, data: bytes) -> None:
        self._set_timeout()
        self.socket.sendall(data)

    def _set_timeout(self) -> None:
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self.socket.settimeout(left)


def _shake_hands(
    opened: socket.socket, keyring: Keyring, hello: bytes, deadline: float, port: int
) -> Connection | ConnectionFailure:
    own = str(opened.getsockname()[0])
    line = _Wire(opened, deadline)
    machine = ConnectingSide(
        keyring.place_key, keyring.known, secrets.token_bytes(framing.NONCE_BYTES), hello, port=port
    )
    try:
        with _said_before_leaving(line, machine):
            while machine.chosen is None:
                machine.feed(line.read())
        secret, method_data = machine.chosen.secret, b""
        if secret is None:
            begin = time.monotonic()
            sealed = keyring.munge.seal() if keyring.munge is not None else None
            line.deadline += time.monotonic() - begin  # that time was not the other end's
            if sealed is None:
                return ConnectionFailure(
                    FailureKind.NO_COMMON_SECRET, "munge makes no credential any more", own_address=own
                )
            secret, method_data = sealed
        line.write(machine.prove(secret, method_data))
        while (answered := machine.answered(b"")) is None and (answered := machine.answered(line.read())) is None:
            pass
    except HandshakeError as error:
        return ConnectionFailure(_KINDS[error.fault], error.words, own_address=own)
    except TimeoutError:
        return ConnectionFailure(FailureKind.SILENT, "it takes connections and says nothing")
    except OSError as error:
        return ConnectionFailure(FailureKind.STRANGER, f"it hung up ({error.strerror or error})")
    channel, answer, stays = answered
    if not stays:
        return ConnectionFailure(
            FailureKind.TURNED_AWAY,
            "it is of this run and does not keep the connection",
            answer=answer,
            own_address=own,
        )
    return Connection(opened, channel, answer=answer, received=machine.rest)


@contextmanager
def _said_before_leaving(line: _Wire, machine: ConnectingSide) -> Iterator[None]:
    """Let the other side learn this side's version and secrets, where these are why no handshake is possible."""
    try:
        yield
    except HandshakeError as error:
        if machine.refusal and error.fault is not HandshakeFault.STRANGER:
            with suppress(OSError):
                line.write(machine.refusal)
        raise
