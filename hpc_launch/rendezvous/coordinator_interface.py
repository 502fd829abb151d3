"""The effects of a coordinator, and what other threads may know of it, as types."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from hpc_launch.rendezvous.membership import Half
from hpc_launch.rendezvous.sessions import AgentSession


class Effects(Protocol):
    """What a coordinator has done; none of it waits."""

    def send(self, sessions: Iterable[AgentSession], message: Any) -> None:
        """Send a message to agents."""

    def drop(self, session: AgentSession) -> None:
        """Close a connection; nothing is heard of it any more."""

    def say(self, line: str) -> None:
        """Show a line on the console."""

    def observe(self, event: str, **facts: Any) -> None:
        """Record an event."""

    def open_job(self) -> None:
        """Choose the job directory; the answer is a call of `Rounds.job_opened` or `Rounds.preparation_failed`."""

    def open_store(self, round_number: int) -> None:
        """Open the workers' store of a round; the answer is a call of `Rounds.store_opened` or `preparation_failed`."""

    def put_token(self, directory: Path, number: int) -> None:
        """Make the token of a membership; the answer is a call of `Rounds.token_put`."""

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
class CoordinatorView:
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
