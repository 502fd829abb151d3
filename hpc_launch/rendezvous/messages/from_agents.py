"""The messages of agents to their coordinator. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from hpc_launch import codec
from hpc_launch.codec import array, checked, integer, nested, table, text
from hpc_launch.rendezvous.membership import Knowledge, Membership
from hpc_launch.rendezvous.messages.field_checks import (
    AGENT,
    COUNT,
    HOST,
    LINE,
    MOST_AGENTS,
    MOST_SHARED,
    MOST_WORKERS,
    PORT,
    ROUND,
    STATUS,
    is_signal,
    read_membership,
)
from hpc_launch.rendezvous.messages.round_end import RoundEnd, RoundEnding
from hpc_launch.rendezvous.messages.run_state import RunState
from hpc_launch.rendezvous.transport.peer_faults import MessageError


@dataclass(frozen=True)
class Ready:
    """An agent is there, or ready for another round.

    Attributes:
        agent: its number.
        host: its node.
        address: where it listens itself; empty if it does not.
        port: its port there.
        workers: how many it starts.
        software: what must be the same on every node.
        problem: why it cannot take part; empty if it can.
        status: the exit status that goes with the problem.
        agreed: the newest membership that it knows to be agreed.
        accepted: those that it has accepted since.
        state: what it knows of the run.
        gone: agents whose connections to it were closed, not lost: these need not be waited for.
    """

    agent: int = checked(AGENT)
    host: str = checked(HOST)
    address: str = checked(HOST)
    port: int = checked(PORT)
    workers: int = checked(integer(0, MOST_WORKERS))
    software: Mapping[str, str] = checked(table(text(64), text(1 << 12), 32))
    problem: str = checked(LINE)
    status: int = checked(STATUS)
    agreed: Membership = checked(read_membership)
    accepted: Sequence[Membership] = checked(array(read_membership, 256))
    state: RunState = checked(nested(RunState))
    gone: Sequence[int] = checked(array(AGENT, MOST_AGENTS), ())

    @property
    def known(self) -> Knowledge:
        """What it knows of memberships."""
        return Knowledge(self.agreed, tuple(self.accepted))


@dataclass(frozen=True)
class Accept:
    """An agent accepts a proposed membership."""

    membership: Membership = checked(read_membership)


@dataclass(frozen=True)
class Begun:
    """The workers of an agent have started."""

    round: int = checked(ROUND)


@dataclass(frozen=True)
class Done:
    """All workers of an agent ended well."""

    round: int = checked(ROUND)


@dataclass(frozen=True)
class Failed:
    """Workers of an agent have failed.

    Attributes:
        round: in which round.
        status: the exit status that goes with it.
        cause: what happened, one line.
        own: whether they failed by themselves, and did not follow others.
        fault: what shows that the node, or a device of it, is broken (`records.hardware_faults`); empty if nothing
        does.
        hang: whether no worker failed, but the job hangs.
    """

    round: int = checked(ROUND)
    status: int = checked(STATUS)
    cause: str = checked(LINE)
    own: bool = True
    fault: str = checked(LINE, "")
    hang: bool = False


@dataclass(frozen=True)
class Pong:
    """The answer to a ping."""

    round: int = checked(ROUND)


@dataclass(frozen=True)
class Stop:
    """An agent leaves for good, and takes the run with it."""

    end: RoundEnd = checked(nested(RoundEnd))

    def __post_init__(self) -> None:
        """See that it is an end that an agent alone can bring about.

        Raises:
            MessageError: when it is not.
        """
        if self.end.ending != RoundEnding.FAILED.value or not self.end.status:
            raise MessageError(f"Stop: an agent cannot end a run as {self.end.ending} with status {self.end.status}")


@dataclass(frozen=True)
class Notice:
    """A notice signal came to an agent for the `count`-th time."""

    signal: str = checked(text(32, lambda value: bool(value) and is_signal(value), "a signal's name"))
    count: int = checked(COUNT)


@dataclass(frozen=True)
class Share:
    """Something that all agents may read under a name."""

    name: str = checked(text(256))
    text: str = checked(text(MOST_SHARED))


class Question(str, Enum):
    """What an agent can ask the coordinator."""

    CLOCK = "clock"
    """The coordinator's time, in seconds since the epoch."""
    COUNT = "count"
    """A counter of this round, after adding to it."""
    FIRST = "first"
    """Whether no other agent has asked this before."""
    SHARED = "shared"
    """What was shared under a name."""


@dataclass(frozen=True)
class Ask:
    """A question to the coordinator."""

    id: int = checked(COUNT)
    what: Question = checked(codec.one_of(Question))
    name: str = checked(text(256), "")
    amount: int = checked(integer(-(1 << 31), 1 << 31), 0)


@dataclass(frozen=True)
class Bye:
    """An agent takes leave in order."""


FROM_AGENTS = codec.known(Ready, Accept, Begun, Done, Failed, Pong, Stop, Notice, Share, Ask, Bye)
