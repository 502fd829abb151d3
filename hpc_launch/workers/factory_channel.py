"""What the agent and its worker factory say to each other: JSON objects over a socket, with descriptors."""

from __future__ import annotations

import math
import select
import socket
import struct
from collections.abc import Sequence
from typing import Any

from hpc_launch import codec

# Far more than the environment and the arguments of a worker may have.
_LONGEST = 1 << 26

_LENGTH = struct.Struct("!I")

# No message has more descriptors: a worker's stdout and stderr.
_MOST_DESCRIPTORS = 2


def readable(descriptors: Sequence[int], seconds: float | None = None) -> list[int]:
    """Those descriptors that can be read, or whose other end is gone, within so many seconds; None waits for ever.

    By poll(2): select(2) takes no descriptor above 1023, and agents have more where many nodes are connected.
    """
    poll = select.poll()
    for descriptor in descriptors:
        poll.register(descriptor, select.POLLIN)
    return [descriptor for descriptor, _ in poll.poll(None if seconds is None else math.ceil(1000 * seconds))]


class GoneError(Exception):
    """The other end is gone, or says nothing for longer than the socket's time limit."""


class Channel:
    """One end of the conversation.

    A message is its length, with the descriptors that go with it, and JSON of that length.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    def fileno(self) -> int:
        """The descriptor, to wait for messages."""
        return self._connection.fileno()

    def ready(self) -> bool:
        """Whether there is a message, or the other end is gone."""
        return bool(readable([self.fileno()], 0))

    def send(self, value: Any, descriptors: Sequence[int] = ()) -> None:
        """Send one message: an object, a dataclass or plain values.

        Raises:
            GoneError: when the other end is gone.
        """
        data = codec.write(value).encode()
        try:
            socket.send_fds(self._connection, [_LENGTH.pack(len(data))], list(descriptors))
            self._connection.sendall(data)
        except OSError as error:
            raise GoneError(str(error)) from error

    def receive(self) -> tuple[dict[str, Any], list[int]]:
        """Wait for one message; returns it with its descriptors.

        Raises:
            GoneError: when the other end is gone, or says nothing for longer than the socket's time limit.
        """
        try:
            head, descriptors, _, _ = socket.recv_fds(self._connection, _LENGTH.size, _MOST_DESCRIPTORS)
            if len(head) < _LENGTH.size:
                raise GoneError("it closed the connection")
            (length,) = _LENGTH.unpack(head)
            if length > _LONGEST:
                raise GoneError(f"it speaks of {length} bytes")
            data = b""
            while len(data) < length:
                part = self._connection.recv(length - len(data))
                if not part:
                    raise GoneError("it closed the connection")
                data += part
        except OSError as error:
            raise GoneError(str(error)) from error
        found = codec.parse(data)
        if found is None:
            raise GoneError("it says what is no JSON object")
        return found, list(descriptors)

    def close(self) -> None:
        """Close it; the other end hears of it."""
        self._connection.close()

    def forget(self) -> None:
        """Leave the descriptor alone from now on: somebody else closes it."""
        self._connection.detach()
