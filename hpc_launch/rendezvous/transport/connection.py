"""A connection that is authenticated: frames go in and come out, and nothing ever waits for the other end."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import secrets
import select
import socket
import sys
import termios
from collections import deque
from collections.abc import Callable

from hpc_launch.rendezvous.transport import framing
from hpc_launch.rendezvous.transport.framing import Frame, FrameKind, Opener, Sealer, WireError
from hpc_launch.rendezvous.transport.handshake import ConnectionKeys

__all__ = ["Connection", "Frame", "FrameKind", "pair", "set_keepalive"]

MAX_UNSENT_CONTROL = 64 << 20
"""A peer that has not taken so many bytes of control frames does not take any."""
MAX_UNSENT_BULK = 4 << 20
"""So many bytes of bulk frames wait at most; `send_bulk` refuses more."""

# What is read, sealed and sent at a time, so that one busy connection does not keep the others waiting.
_READ_BYTES = 1 << 18
_SEAL_BYTES = 1 << 18
_FLUSH_BYTES = 1 << 20
# So little may wait in the kernel: what is there cannot be overtaken by a control frame.
_LOW_WATER = 1 << 16

# How the kernel says that the process at the other end has closed, as opposed to: the other end is not heard.
_CLOSED = frozenset({errno.ECONNRESET, errno.EPIPE, errno.ESHUTDOWN})


def set_keepalive(connection: socket.socket, timeout: float) -> None:
    """Let the kernel give up a peer that has not answered for so many seconds (whole ones, three at least).

    The kernel asks a silent peer and takes its answers, so a node that is busy, or a process that is stopped, is not
    taken for lost. This costs an idle connection two small packets every half of the timeout.
    """
    if connection.family not in (socket.AF_INET, socket.AF_INET6):
        return
    seconds = max(3, round(timeout))
    idle = max(1, seconds // 2)
    interval = max(1, (seconds - idle) // 4)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, idle)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, interval)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, max(1, (seconds - idle) // interval))
    # The same where something was sent and its arrival is not acknowledged.
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, seconds * 1000)


class Connection:
    """One end of an authenticated connection.

    Attributes:
        socket: what it goes over.
        peer: the other end's address; empty for a local pair.
        hello: what the connecting side has said first (on the listening side).
        answer: what the listening side has answered (on the connecting side).
        broken: nothing can be sent or received any more.
        closed: the other end was closed or reset: its process may have ended. Otherwise it fell silent, or sent what is
            not authentic.
        why: the reason for `broken`, in words.
        notify: called when the connection breaks, and when something begins to wait for being sent.
    """

    def __init__(
        self,
        connection: socket.socket,
        channel: ConnectionKeys,
        *,
        hello: bytes = b"",
        answer: bytes = b"",
        received: bytes = b"",
        unsent: bytes = b"",
    ) -> None:
        self.socket = connection
        self.hello = hello
        self.answer = answer
        self.broken = False
        self.closed = False
        self.why = ""
        self.notify: Callable[[Connection], None] | None = None
        self.peer = _peer(connection)
        self._channel = channel
        self._in = bytearray(received)
        self._out = bytearray(unsent)
        self._control: deque[bytes] = deque()
        self._bulk: deque[bytes] = deque()
        self._unsent_control = self._unsent_bulk = 0
        self._poll = select.poll()
        self._poll.register(connection, select.POLLOUT)
        connection.setblocking(False)
        if connection.family in (socket.AF_INET, socket.AF_INET6):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _LOW_WATER)

    def __repr__(self) -> str:
        state = f"broken: {self.why}" if self.broken else "open"
        return f"<Connection to {self.peer or 'a local end'}, {state}>"

    def fileno(self) -> int:
        """The descriptor, for selectors; -1 once it is closed here."""
        return self.socket.fileno()

    @property
    def waiting(self) -> bool:
        """Whether something could not be sent yet."""
        return not self.broken and bool(self._out or self._control or self._bulk)

    @property
    def delivered(self) -> bool:
        """Whether the kernel of the other end has all that was sent; of a local end, whether the kernel has it."""
        if self.broken or self.waiting:
            return self.broken
        if self.socket.family not in (socket.AF_INET, socket.AF_INET6):
            return True
        return int.from_bytes(fcntl.ioctl(self.socket, termios.TIOCOUTQ, bytes(4)), sys.byteorder) == 0  # tcp(7)

    @property
    def pending(self) -> bool:
        """Whether something was received that `receive` has not looked at."""
        return bool(self._in) and not self.broken

    def send(self, payload: bytes) -> None:
        """Send a control frame; what cannot be sent at once is sent by `flush`."""
        if len(payload) > framing.MAX_CONTROL:
            raise ValueError(f"a control frame of {len(payload)} bytes, more than {framing.MAX_CONTROL}")
        if self.broken:
            return
        self._control.append(payload)
        self._unsent_control += len(payload) + framing.FRAME_OVERHEAD
        if self._unsent_control > MAX_UNSENT_CONTROL:
            self._break("it does not take what is sent to it")
            return
        self.flush()

    def send_bulk(self, payload: bytes) -> bool:
        """Send a bulk frame, after all control frames; False where too much waits already: nothing was sent then."""
        if len(payload) > framing.MAX_BULK:
            raise ValueError(f"a bulk frame of {len(payload)} bytes, more than {framing.MAX_BULK}")
        size = len(payload) + framing.FRAME_OVERHEAD
        if self.broken or self._unsent_bulk + size > MAX_UNSENT_BULK:
            return False
        self._bulk.append(payload)
        self._unsent_bulk += size
        self.flush()
        return True

    def flush(self) -> None:
        """Send what is left, as far as that is possible without waiting."""
        room = _FLUSH_BYTES
        while room > 0 and not self.broken and self._fill():
            try:
                sent = self.socket.send(self._out)
            except (BlockingIOError, InterruptedError):
                break
            except OSError as error:
                self._fail(error)
                return
            del self._out[:sent]
            room -= sent
        if self.waiting and self.notify is not None:
            self.notify(self)

    def _fill(self) -> bool:
        """Seal what is to be sent next, if nothing is left that was sealed before; says whether there is something."""
        if self._out:
            return True
        while self._control and len(self._out) < _SEAL_BYTES:
            payload = self._control.popleft()
            self._unsent_control -= len(payload) + framing.FRAME_OVERHEAD
            self._out += self._channel.sealer.seal(FrameKind.CONTROL, payload)
        # The kernel calls a socket writable while little waits in it.
        if not self._out and self._bulk and self._poll.poll(0):
            payload = self._bulk.popleft()
            self._unsent_bulk -= len(payload) + framing.FRAME_OVERHEAD
            self._out += self._channel.sealer.seal(FrameKind.BULK, payload)
        return bool(self._out)

    def receive(self) -> list[Frame]:
        """The frames that have come since the last time; of many, some."""
        if self.broken:
            return []
        ended = False
        try:
            data = self.socket.recv(_READ_BYTES)
            ended = not data
            self._in += data
        except (BlockingIOError, InterruptedError):
            pass
        except OSError as error:
            self._fail(error)
            return []
        frames = self._parse()
        if ended:
            self._break("it closed the connection", closed=True)
        return frames

    def _parse(self) -> list[Frame]:
        frames: list[Frame] = []
        begin = 0
        try:
            while not self.broken and (found := self._channel.opener.open(self._in, begin)) is not None:
                frame, begin = found
                if frame.kind is FrameKind.PROOF:
                    raise WireError("a second proof")  # noqa: TRY301 - the same end as for other faults of a frame
                frames.append(frame)
        except WireError as error:
            self._break(f"it sent {error}")
        del self._in[:begin]
        return frames

    def close(self) -> None:
        """Close this end."""
        if not self.broken:
            self._break("closed here")
        with contextlib.suppress(OSError):
            self.socket.close()

    def _fail(self, error: OSError) -> None:
        self._break(str(error.strerror or error), closed=error.errno in _CLOSED)

    def _break(self, why: str, *, closed: bool = False) -> None:
        self.broken, self.closed, self.why = True, closed, why
        self._out.clear()
        self._control.clear()
        self._bulk.clear()
        self._in.clear()
        if self.notify is not None:
            self.notify(self)


def pair(hello: bytes = b"", answer: bytes = b"") -> tuple[Connection, Connection]:
    """Two connected ends within this process: the listening side's, and the connecting side's."""
    there, here = secrets.token_bytes(32), secrets.token_bytes(32)
    listening, connecting = socket.socketpair()
    return (
        Connection(listening, ConnectionKeys(Sealer(here), Opener(there)), hello=hello),
        Connection(connecting, ConnectionKeys(Sealer(there), Opener(here)), answer=answer),
    )


def plain_address(address: str) -> str:
    """An address as people write it: IPv4 as such, also where it came to a listener for IPv6."""
    return address.removeprefix("::ffff:")


def _peer(connection: socket.socket) -> str:
    try:
        name = connection.getpeername()
    except OSError:
        return ""
    return plain_address(str(name[0])) if isinstance(name, tuple) else ""
