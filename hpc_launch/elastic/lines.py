"""Agents' words to each other: connections that carry one JSON object a line, and notice that the other end is gone.

The kernel asks a silent peer and takes its answers, so a node that is busy, or an agent that is slow, is not taken for
lost. This costs an idle connection two small packets per node every half of the timeout, whatever the agents do.
"""

from __future__ import annotations

import contextlib
import json
import socket
from typing import Any

_BLOCK = 1 << 16
# A line that is longer is none of ours: that of a thousand nodes has some hundred thousand bytes.
_LONGEST = 1 << 22

# The word of an agent that has been answered, and stays.
HERE = "here"

NONSENSE = (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError, RecursionError)
"""What a line that is none of ours can do to json, and to those who look into it."""


def notice_silence(connection: socket.socket, timeout: float) -> None:
    """Have the kernel give up a peer that has not answered for so many seconds (whole ones, three at least)."""
    seconds = max(3, round(timeout))
    idle = max(1, seconds // 2)
    interval = max(1, (seconds - idle) // 4)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, idle)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, interval)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, max(1, (seconds - idle) // interval))
    # The same where something was sent and nobody says that it has come.
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, seconds * 1000)


def encode(word: str, **facts: Any) -> bytes:
    """A word with its facts as a line."""
    return json.dumps({"do": word, **facts}, separators=(",", ":")).encode() + b"\n"


class Lines:
    """One end of a connection; nothing here ever waits for the other end.

    Attributes:
        connection: the socket.
        broken: the other end is gone, or talks nonsense.
        closed: it was closed there (its process may have ended); otherwise it fell silent.
    """

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.broken = False
        self.closed = False
        self._heard = b""
        self._unsent = b""
        connection.setblocking(False)

    @property
    def waiting(self) -> bool:
        """Whether something could not be sent yet."""
        return bool(self._unsent) and not self.broken

    def send(self, word: str, **facts: Any) -> None:
        """Say something; what cannot be sent at once is sent by `flush`."""
        self.pass_on(encode(word, **facts))

    def pass_on(self, line: bytes) -> None:
        """Say what has been written down, to several for instance."""
        self._unsent += line
        self.flush()

    def flush(self) -> None:
        """Send what is left, as far as that is possible without waiting."""
        while self._unsent and not self.broken:
            try:
                sent = self.connection.send(self._unsent)
            except BlockingIOError:
                return
            except OSError as error:
                self._break(error)
                return
            self._unsent = self._unsent[sent:]

    def hear(self) -> list[dict[str, Any]]:
        """What has been said since the last time."""
        return [said for line in self.hear_lines() if (said := _read(line)) is not None]

    def hear_lines(self) -> list[bytes]:
        """The same, as it was written."""
        while not self.broken:
            try:
                data = self.connection.recv(_BLOCK)
            except BlockingIOError:
                break
            except OSError as error:
                self._break(error)
                break
            if not data:
                self.broken = self.closed = True
            self._heard += data
            if len(self._heard) > _LONGEST:
                self.broken = True
        *lines, self._heard = self._heard.split(b"\n")
        return lines

    def close(self) -> None:
        """Close this end."""
        self.broken = True
        with contextlib.suppress(OSError):
            self.connection.close()

    def _break(self, error: OSError) -> None:
        self.broken = True
        self.closed = isinstance(error, (ConnectionResetError, BrokenPipeError))


def _read(line: bytes) -> dict[str, Any] | None:
    """A line that is one of ours."""
    try:
        said = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return said if isinstance(said, dict) else None
