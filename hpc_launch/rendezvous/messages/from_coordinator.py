"""The messages of a coordinator to its agents. Pure."""

from __future__ import annotations

import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from hpc_launch import codec
from hpc_launch.codec import array, checked, nested, table, text
from hpc_launch.rendezvous.membership import Membership
from hpc_launch.rendezvous.messages.field_checks import (
    AGENT,
    COUNT,
    HOST,
    LINE,
    MOST_AGENTS,
    MOST_SHARED,
    PLACES,
    ROUND,
    SIGNAL,
    STATUS,
    read_membership,
)
from hpc_launch.rendezvous.messages.round_end import RoundEnd
from hpc_launch.rendezvous.messages.round_plan import RoundPlan
from hpc_launch.rendezvous.messages.run_state import RunState
from hpc_launch.rendezvous.transport.peer_faults import MessageError


@dataclass(frozen=True)
class Propose:
    """A membership to agree on."""

    membership: Membership = checked(read_membership)


@dataclass(frozen=True)
class Start:
    """All have accepted: the round begins.

    Attributes:
        membership: what was agreed.
        hosts: the nodes of the active agents; left out where only the coordinator needs them.
        coordinator: the agent that says it.
        plan: the plan of the round, in which workers are those of the active agents.
        state: of the run.
        places: where each agent listens, by its number as text; left out where no agent but the coordinator does.
    """

    membership: Membership = checked(read_membership)
    hosts: Sequence[str] = checked(array(HOST, MOST_AGENTS))
    coordinator: int = checked(AGENT)
    plan: RoundPlan = checked(nested(RoundPlan))
    state: RunState = checked(nested(RunState))
    places: Mapping[str, tuple[str, int]] = checked(PLACES)

    def __post_init__(self) -> None:
        """Check what fields say together.

        Raises:
            MessageError: when they contradict each other.
        """
        active = len(self.membership.active)
        fits = active == len(self.plan.workers) and len(self.hosts) in (0, active)
        if not fits or self.coordinator not in self.agents:
            raise MessageError("Start: hosts, workers and active agents contradict each other")

    @property
    def agents(self) -> tuple[int, ...]:
        """The agents of the membership."""
        return self.membership.agents

    @property
    def active(self) -> tuple[int, ...]:
        """Those of them that have workers; the others are spares."""
        return self.membership.active


@dataclass(frozen=True)
class Ping:
    """The coordinator wants to hear that an agent is there."""


@dataclass(frozen=True)
class AllBegun:
    """The workers of all agents have started."""

    round: int = checked(ROUND)


@dataclass(frozen=True)
class Ended:
    """The round has ended, or the run before its first round."""

    round: int = checked(ROUND)
    end: RoundEnd = checked(nested(RoundEnd))
    state: RunState = checked(nested(RunState))


class RefusalKind(str, Enum):
    """Why agents cannot start a round."""

    PROBLEM = "problem"
    """One of them has a problem, or they do not fit together."""
    ALONE = "alone"
    """The agent that hears it does not fit, and the others go on without it."""
    MISSING = "missing"
    """Agents did not come in time."""
    LOST = "lost"
    """Agents are gone, and too few are left: the job may run again."""


@dataclass(frozen=True)
class Refused:
    """The round does not begin.

    Attributes:
        kind: why.
        why: in one line.
        status: the exit status that goes with it.
        missing: the nodes that did not come, in host-list order.
    """

    kind: RefusalKind = checked(codec.one_of(RefusalKind))
    why: str = checked(LINE)
    status: int = checked(STATUS)
    missing: Sequence[str] = checked(array(HOST, MOST_AGENTS), ())


@dataclass(frozen=True)
class Notices:
    """How often each notice signal came."""

    counts: Mapping[str, int] = checked(table(SIGNAL, COUNT, len(signal.Signals)))


@dataclass(frozen=True)
class Waiting:
    """The agents that have come during the round, and where they listen."""

    agents: Mapping[str, tuple[str, int]] = checked(PLACES)


@dataclass(frozen=True)
class Places:
    """Where the agents of the round listen, for one that has come late."""

    agents: Mapping[str, tuple[str, int]] = checked(PLACES)


@dataclass(frozen=True)
class Told:
    """The answer to a question."""

    id: int = checked(COUNT)
    value: float | str | bool = checked(codec.any_of(codec.boolean, codec.real, text(MOST_SHARED)), "")


FROM_COORDINATOR = codec.known(Propose, Start, Ping, AllBegun, Ended, Refused, Notices, Waiting, Places, Told)
