"""What agents of a run that may lose nodes tell each other, as values. Pure.

Everything about a run that must outlive its leader is in the `Story` that every agent has; a new leader makes its own
from those of the agents that it has.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from hpc_launch import ranges
from hpc_launch.elastic import membership
from hpc_launch.elastic.membership import Knowledge, Membership
from hpc_launch.elastic.rounds import Message, RoundPlan

_Kind = TypeVar("_Kind", bound=Message)


@dataclass(frozen=True)
class Story(Message):
    """What has become of a run so far.

    Attributes:
        round: the last round that has begun; -1 before the first.
        spent: restarts after failures so far. Lost nodes cost none.
        trouble: how many attempts each agent's node has ended alone, by the agent's number as text.
        drained: which nodes are bad, in the order in which they have shown to be: why, in words that go on with the
            node's name, by the agent's number as text.
        notices: how often each notice signal came.
        job: name of the job directory; empty before the first round.
        first_attempt: number of the run's first attempt in it.
        waiting: agents that have come during the round, and are to be there in the next: where they listen, by number.
    """

    round: int = -1
    spent: int = 0
    trouble: Mapping[str, int] = field(default_factory=dict)
    drained: Mapping[str, str] = field(default_factory=dict)
    notices: Mapping[str, int] = field(default_factory=dict)
    job: str = ""
    first_attempt: int = 0
    waiting: Mapping[str, Sequence[Any]] = field(default_factory=dict)

    @property
    def where(self) -> dict[str, int]:
        """What tells in which attempt something happened, as a fact of an event: a spare writes down none by itself."""
        return {"attempt": self.first_attempt + self.round} if self.round >= 0 else {}


def together(stories: Iterable[Story]) -> Story:
    """What agents know together: of everything the latest."""
    stories = tuple(stories)
    latest = max(stories, key=lambda story: story.round)
    return Story(
        round=latest.round,
        spent=max(story.spent for story in stories),
        trouble=membership.merged(story.trouble for story in stories),
        drained=max((story.drained for story in stories), key=len),
        notices=membership.merged(story.notices for story in stories),
        job=latest.job,
        first_attempt=latest.first_attempt,
        waiting={agent: place for one in stories if one.round == latest.round for agent, place in one.waiting.items()},
    )


@dataclass(frozen=True)
class Failed(Message):
    """What an agent says when workers of its node have failed.

    Attributes:
        status: the exit status that goes with it.
        cause: what happened, one line.
        own: whether they failed by themselves, and did not follow others.
        fault: what shows that the node, or a device of it, is broken (`records.faults`); empty if nothing does.
    """

    status: int
    cause: str
    own: bool
    fault: str


@dataclass(frozen=True)
class Caller(Message):
    """What an agent says of itself to a leader, when it comes and when it is ready for another round.

    Attributes:
        agent: its number.
        host: its node.
        address: where it listens itself.
        port: its port there.
        workers: how many it starts.
        software: what must be the same on every node.
        problem: why it cannot take part; empty if it can.
        status: the exit status that goes with the problem.
        agreed: the newest membership that it knows to be agreed: number, agents, token and the active ones.
        accepted: those that it has accepted since.
        story: what it knows of the run.
        gone: agents whose connections to it were closed, not lost: nobody need wait for these.
    """

    agent: int
    host: str
    address: str
    port: int
    workers: int
    software: Mapping[str, str]
    problem: str
    status: int
    agreed: Sequence[Any]
    accepted: Sequence[Sequence[Any]]
    story: Mapping[str, Any]
    gone: Sequence[int] = ()

    @property
    def known(self) -> Knowledge:
        """What it knows of memberships."""
        return Knowledge(read_membership(self.agreed), tuple(map(read_membership, self.accepted)))


@dataclass(frozen=True)
class Start(Message):
    """What a leader says when all have accepted: the round begins.

    Attributes:
        number: of the membership.
        agents: who belongs to it.
        token: what half of them have to take.
        active: who has workers; the others are spares.
        hosts: the nodes of the active ones.
        leader: who says it.
        plan: the plan of the round, in which workers are those of the active agents.
        story: of the run.
        places: where each agent listens: address and port, by its number as text.
    """

    number: int
    agents: Sequence[int]
    token: str
    active: Sequence[int]
    hosts: Sequence[str]
    leader: int
    plan: Mapping[str, Any]
    story: Mapping[str, Any]
    places: Mapping[str, Sequence[Any]]

    @property
    def membership(self) -> Membership:
        """What was agreed."""
        return Membership(self.number, tuple(self.agents), self.token, tuple(self.active))

    @property
    def round_plan(self) -> RoundPlan:
        """The plan as the other rendezvous has it."""
        return read(RoundPlan, self.plan)

    @property
    def run(self) -> Story:
        """The story of the run."""
        return read(Story, self.story)


def plain(message: Message) -> dict[str, Any]:
    """The value for JSON."""
    return dataclasses.asdict(message)


def read(kind: type[_Kind], facts: Mapping[str, Any]) -> _Kind:
    """The value from JSON; what a newer version has besides is passed over.

    Raises:
        TypeError: when something is missing.
    """
    names = {one.name for one in dataclasses.fields(kind)}
    return kind(**{name: fact for name, fact in facts.items() if name in names})


def places(facts: Mapping[str, Sequence[Any]]) -> dict[int, tuple[str, int]]:
    """Where agents listen, by their numbers, from JSON."""
    return {int(agent): (str(address), int(port)) for agent, (address, port) in facts.items()}


def plain_membership(one: Membership) -> list[Any]:
    """A membership for JSON: short, as every agent sends what it knows to the leader."""
    return [one.number, ranges.fold(one.agents), one.token, ranges.fold(one.active)]


def read_membership(facts: Sequence[Any]) -> Membership:
    """The inverse of `plain_membership`."""
    number, agents, token, active = facts
    return Membership(int(number), _agents(agents), str(token), _agents(active))


@functools.lru_cache(maxsize=64)
def _agents(written: str) -> tuple[int, ...]:
    """Who is written there; read once, as a thousand agents say the same, and there are few memberships."""
    return ranges.unfold(written)
