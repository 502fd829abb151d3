"""The other agents, as far as one has something to say to them or to ask them besides the rounds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, TypeVar

from hpc_launch.rendezvous.messages import Message

_Shared = TypeVar("_Shared", bound=Message)


class Peers(Protocol):
    """What `SlurmRendezvous` has, and other backends have not."""

    def first(self, what: str) -> bool:
        """Whether no other agent has asked this before: it is the one to say something for all."""

    def notices(self) -> Mapping[str, int]:
        """How often each signal came to some agent, by name."""

    def tell_notice(self, name: str, count: int) -> None:
        """Tell the other agents that a signal came for the `count`-th time."""

    def share(self, name: str, message: Message) -> None:
        """Leave something for the other agents to read when they need it."""

    def shared(self, name: str, kind: type[_Shared]) -> _Shared | None:
        """What was left; None as long as nothing was."""


class NullPeers:
    """The others under another backend, whose agents do not talk to each other: each acts as if it were alone."""

    def first(self, what: str) -> bool:  # noqa: ARG002 - nobody has asked
        """It is."""
        return True

    def notices(self) -> Mapping[str, int]:
        """Nothing came to others."""
        return {}

    def tell_notice(self, name: str, count: int) -> None:
        """Nobody hears it."""

    def share(self, name: str, message: Message) -> None:
        """Nobody reads it."""

    def shared(self, name: str, kind: type[_Shared]) -> _Shared | None:  # noqa: ARG002 - nobody has left anything
        """Nothing was left."""
        return None
