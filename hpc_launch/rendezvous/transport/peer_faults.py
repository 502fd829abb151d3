"""What can be wrong with a peer."""

from __future__ import annotations

from enum import Enum

from hpc_launch.codec import CodecError


class MessageError(CodecError):
    """The peer's message is unusable; the text says why, in words for one line."""


class HandshakeFault(Enum):
    """Why a handshake failed."""

    STRANGER = "stranger"
    VERSION = "version"
    NO_COMMON_SECRET = "no common secret"  # noqa: S105 - a word for messages, no password


class HandshakeError(Exception):
    """A handshake failed; nothing more is read from this peer.

    Attributes:
        fault: the kind of failure.
        words: the reason for one line of a message.
    """

    def __init__(self, fault: HandshakeFault, words: str) -> None:
        super().__init__(words)
        self.fault = fault
        self.words = words
