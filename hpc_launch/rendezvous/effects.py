"""What a coordinator knows of agents, what it has done, and what others may know of it, as types."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from hpc_launch.rendezvous.membership import Half, Knowledge, Membership
from hpc_launch.rendezvous.messages import Hello, Ready

_NOTHING = Knowledge(Membership(-1, ()))


@dataclass(eq=False)
class Session:
    """An agent's authenticated connection.

    Attributes:
        hello: what it said of itself in the handshake.
        agent: its number, once it is ready for a round.
        ready: what it said last, if it is ready for another round.
        known: what it knows of memberships.
        closed: its end was closed; otherwise it fell silent.
        outside: it was refused, or the run was over when it came.
    """

    hello: Hello
    agent: int | None = None
    ready: Ready | None = None
    known: Knowledge = _NOTHING
    closed: bool = False
    outside: bool = False

    @property
    def place(self) -> tuple[str, int]:
        """Where it listens; an empty address where it does not."""
        return (self.ready.address, self.ready.port) if self.ready is not None else self._place

    _place: tuple[str, int] = ("", 0)

    def rest(self) -> None:
        """Note that it takes part in a round, and is not ready for another."""
        self._place, self.ready = self.place, None


class Effects(Protocol):
    """What a coordinator has done; none of it waits."""

    def send(self, sessions: Iterable[Session], message: Any) -> None:
        """Send a message to agents."""

    def drop(self, session: Session) -> None:
        """Close a connection; nothing is heard of it any more."""

    def say(self, line: str) -> None:
        """Show a line on the console."""

    def observe(self, event: str, **facts: Any) -> None:
        """Record an event."""

    def open_job(self) -> None:
        """Choose the job directory; the answer is a call of `job_opened` or `preparation_failed`."""

    def open_store(self, round_number: int) -> None:
        """Open the workers' store of a round; the answer is a call of `store_opened` or `preparation_failed`."""

    def put_token(self, directory: Path, number: int) -> None:
        """Make the token of a membership; the answer is a call of `token_put`."""

    def take_tokens(self, directory: Path, halves: Iterable[Half]) -> None:
        """Begin to take the tokens of halves; `taken` and `refused` tell the results."""

    def remove_tokens(self, directory: Path, before: int) -> None:
        """Begin to remove the tokens of memberships before this number."""

    @property
    def taken(self) -> frozenset[Half]:
        """The halves with this agent that have taken their tokens."""

    @property
    def refused_halves(self) -> frozenset[Half]:
        """The halves whose token was not to be had."""

    def time(self) -> float:
        """This node's time, in seconds since the epoch."""


@dataclass(frozen=True)
class View:
    """What other threads may know of a coordinator: a copy that changes no more.

    Attributes:
        callers: the agents that are connected to it and were ready once.
        awaited: the agents whose word is due, and where they listen.
        sought: another agent looks for a coordinator.
    """

    callers: frozenset[int] = frozenset()
    awaited: Mapping[int, tuple[str, int]] = field(default_factory=dict)
    sought: bool = False

    @property
    def urgent(self) -> bool:
        """Whether others wait for an agent, which may be frozen."""
        return self.sought or bool(self.awaited)
