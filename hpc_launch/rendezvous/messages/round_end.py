"""The end of a round: how it ended, and why. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from hpc_launch.codec import checked, integer, text
from hpc_launch.rendezvous.messages.field_checks import HOST, LINE, MOST_AGENTS, SIGNAL, STATUS
from hpc_launch.rendezvous.messages.message import Message


class RoundEnding(str, Enum):
    """How a round ends."""

    DONE = "done"
    """Every worker of every agent ended well."""
    RESTART = "restart"
    """Something failed, and there is another attempt."""
    FAILED = "failed"
    """Something failed, and that was the last attempt."""


@dataclass(frozen=True)
class RoundEnd(Message):
    """The end of a round, the same for all agents.

    Attributes:
        ending: how it ended (a value of `RoundEnding`).
        agent: the agent that reported it; -1 where none did.
        host: on which node.
        status: the exit status of the job, if this is its end.
        cause: what happened, one line; empty after success.
        signal: the name of the signal that stopped the run, if one did: the workers are to get it.
        lost: the node that was lost, if one was: then workers that wait for those of that node do so for ever.
        hang: whether it ended because the job hung.
    """

    ending: str = checked(text(16, lambda value: value in {one.value for one in RoundEnding}, "an ending"))
    agent: int = checked(integer(-1, MOST_AGENTS - 1))
    host: str = checked(HOST)
    status: int = checked(STATUS, 0)
    cause: str = checked(LINE, "")
    signal: str = checked(SIGNAL, "")
    lost: str = checked(HOST, "")
    hang: bool = False
