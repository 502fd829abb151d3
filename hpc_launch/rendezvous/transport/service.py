"""The service that a server works for: what becomes of peers that are known, and of what they send."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from hpc_launch.rendezvous.transport.connection import Connection


@dataclass(frozen=True)
class Greeting:
    """The answer of a service to the `hello` of a known peer.

    Attributes:
        answer: for the peer.
        stay: whether the connection is kept.
    """

    answer: bytes
    stay: bool


class ListenerService(Protocol):
    """What a server works for; all of this is called in the server's thread."""

    def greet(self, hello: bytes) -> Greeting:
        """A peer is known, and has said this first.

        Raises:
            MessageError: if that is unusable.
        """

    def opened(self, connection: Connection) -> None:
        """A connection is kept."""

    def received(self, connection: Connection, payload: bytes) -> None:
        """A control frame has come.

        Raises:
            MessageError: if it is unusable: the connection is dropped.
        """

    def received_bulk(self, connection: Connection, payload: bytes) -> None:
        """A bulk frame has come.

        Raises:
            MessageError: if it is unusable: the connection is dropped.
        """

    def lost(self, connection: Connection) -> None:
        """A connection is broken, for a reason of the peer's; one that was closed here is not lost."""

    def refused(self, connection: Connection | None, why: str) -> None:
        """A message, or a peer that never became known (None), was refused; of many, some are reported."""

    def turn(self, now: float) -> float:
        """All that has come was handed on; returns the seconds until this is to be called at the latest."""
