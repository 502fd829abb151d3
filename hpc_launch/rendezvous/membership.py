"""Who belongs to a run that may lose nodes, and who may go on without the others. Pure.

Agents agree on *memberships*, numbered lists of agents. One of them, the leader, proposes a new one to all agents that
it is to have; when every one of them has accepted, it is agreed, and the leader tells them to start. The rule:

    A proposal needs a quorum of the newest membership that any of those present knows to be agreed, and of every newer
    one that any of them has accepted: more than half of its agents, or exactly half that has taken its token, and of
    those that have workers one at least.

Why that is enough. Two sets of agents that are each a quorum of one membership share an agent, as only one half can
take a token (`tie_breaker`), and an agent is with one leader at a time and brings along what it has accepted. So
whoever forms a membership knows of each one that may have been agreed before it, and has taken more than a quorum of it
away from any other leader; and a membership of which one agent with workers has gone over to another is not complete,
so its workers do not train. Spares alone form none, however many they are: without them the others would train on.

Neither closed connections nor what Slurm says of a node are taken for proof that an agent is gone: it may be alive
elsewhere, or have agreed to something with others before it died. `tests/unit/test_membership.py` goes through
everything that can happen to up to four agents.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Set as AbstractSet
from dataclasses import dataclass
from typing import Any

from hpc_launch import ranges


@dataclass(frozen=True, order=True)
class Membership:
    """The agents of a run from some moment on.

    Attributes:
        number: greater than that of every membership that its agents knew before.
        agents: their numbers, ascending: they are those of their nodes in the host list.
        token: what exactly half of them have to take to go on without the others. Without one, as before the first
            round, or where none could be put, it is the half with the lowest agent that may.
        active: those of them that have workers, ascending; the others are spares. None has before the first round.
    """

    number: int
    agents: tuple[int, ...]
    token: str = ""
    active: tuple[int, ...] = ()

    def plain(self) -> list[Any]:
        """The value for JSON: short, as every agent sends what it knows to the coordinator."""
        return [self.number, _fold(self.agents), self.token, _fold(self.active)]


@functools.lru_cache(maxsize=64)
def _fold(agents: tuple[int, ...]) -> str:
    """Write agents once: each is in several messages of an agent, and there are few memberships."""
    return ranges.fold(agents)


@dataclass(frozen=True)
class Half:
    """Exactly half of a membership.

    Attributes:
        token: that of the membership.
        agents: who they are, ascending.
    """

    token: str
    agents: tuple[int, ...]


@dataclass(frozen=True)
class Knowledge:
    """What an agent knows of memberships.

    Attributes:
        agreed: the newest that it knows to be agreed.
        accepted: those that it has accepted since, agreed or not.
    """

    agreed: Membership
    accepted: tuple[Membership, ...] = ()

    def accept(self, proposal: Membership) -> Knowledge:
        """What it knows when it has accepted a proposal."""
        return Knowledge(self.agreed, tuple(sorted({*self.accepted, proposal})))

    def agree(self, membership: Membership) -> Knowledge:
        """What it knows when it has heard that all have accepted."""
        return Knowledge(membership, tuple(other for other in self.accepted if other.number > membership.number))


def pool(known: Iterable[Knowledge]) -> Knowledge:
    """What several agents know together."""
    known = tuple(known)
    agreed = max(one.agreed for one in known)
    newer = {other for one in known for other in one.accepted if other.number > agreed.number}
    return Knowledge(agreed, tuple(sorted(newer)))


def quorum(membership: Membership, present: AbstractSet[int], taken: AbstractSet[Half] = frozenset()) -> bool:
    """Whether these agents are enough of a membership: of two parts that share nobody, one at most is.

    Args:
        membership: of which some agents are present.
        present: who is; strangers do not count.
        taken: the halves that have taken their tokens, as far as those present know.
    """
    if membership.active and present.isdisjoint(membership.active):
        return False
    here = _here(membership, present)
    if 2 * len(here) != len(membership.agents):
        return 2 * len(here) > len(membership.agents)
    if not membership.token:
        return membership.agents[0] in present
    return Half(membership.token, here) in taken


def may_form(present: Mapping[int, Knowledge], taken: AbstractSet[Half] = frozenset()) -> bool:
    """Whether those present may go on without all others, given which halves have taken their tokens."""
    if not present:
        return False
    return all(quorum(membership, present.keys(), taken) for membership in _in_question(present))


def halves(present: Mapping[int, Knowledge]) -> frozenset[Half]:
    """The halves that those present are and whose tokens they need; none where these would not be enough either."""
    found = set()
    for membership in _in_question(present) if present else ():
        here = _here(membership, present.keys())
        if membership.token and 2 * len(here) == len(membership.agents):
            found.add(Half(membership.token, here))
    return frozenset(found) if may_form(present, found) else frozenset()


def propose(present: Mapping[int, Knowledge]) -> Membership:
    """The membership that those present, who may form one, are to agree on.

    Who of them has workers is to be added, and a token that is put for it.
    """
    number = max(membership.number for membership in _in_question(present))
    return Membership(number + 1, tuple(sorted(present)))


def oldest_in_question(known: Iterable[Knowledge]) -> int:
    """The number of the oldest membership whose token any of these agents may need, if it is left alone with others."""
    return min(one.agreed.number for one in known)


def _in_question(present: Mapping[int, Knowledge]) -> tuple[Membership, ...]:
    """The memberships of which a new one needs a quorum."""
    known = pool(present.values())
    return (known.agreed, *known.accepted)


def _here(membership: Membership, present: AbstractSet[int]) -> tuple[int, ...]:
    return tuple(agent for agent in membership.agents if agent in present)


def absent(present: Mapping[int, Knowledge]) -> tuple[int, ...]:
    """Who belongs to the last agreed membership, and is not there."""
    return tuple(agent for agent in pool(present.values()).agreed.agents if agent not in present)


def only_spares(present: Mapping[int, Knowledge]) -> bool:
    """Whether those present have no workers, as far as any of them knows, and others have."""
    return any(one.active and present.keys().isdisjoint(one.active) for one in _in_question(present))


def active(agents: Sequence[int], most: int, drained: Sequence[int] = ()) -> tuple[int, ...]:
    """Who has workers; the others are spares.

    Args:
        agents: of the membership.
        most: how many nodes are to have workers at most.
        drained: agents of bad nodes, which are behind the spares: the first of these is the last to have workers again.

    Returns:
        Their numbers in host-list order: the index in it is the node rank.
    """
    behind = {agent: -place for place, agent in enumerate(drained)}
    order = sorted(agents, key=lambda agent: (agent in behind, behind.get(agent, 0), agent))
    return tuple(sorted(order[:most]))


def merged(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """Of each name the greatest count that any agent has heard of."""
    found: Counter[str] = Counter()
    for one in counts:
        found |= Counter(one)
    return dict(found)
