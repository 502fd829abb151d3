"""The join policy: when the agents that have come begin, how long they wait for others, and why not. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Set as AbstractSet
from dataclasses import dataclass
from enum import Enum

from hpc_launch.rendezvous import membership
from hpc_launch.rendezvous.membership import Half, Knowledge, Membership

# How long those that have lost others wait for them, in terms of --node-timeout. Nodes that notice a loss late do so
# within half of it after the first, and a part of a network that may not go on has stopped its workers by 0.75 of it.
_MISSING = 0.75
# Half without the first node lets the other half be the first to take the token.
_SECOND_HALF = 1.25
# Who may not go on waits for others that come back.
_LONGEST = 2.0


@dataclass(frozen=True)
class JoinTerms:
    """What was asked for.

    Attributes:
        minimum: how many nodes the run needs at least.
        join_timeout: seconds to wait for nodes at the beginning.
        node_timeout: seconds without an answer after which a node is lost.
        fixed: all nodes are needed, at each round; the first round's patience holds for all of them.
    """

    minimum: int
    join_timeout: float
    node_timeout: float
    fixed: bool = False


@dataclass(frozen=True)
class JoiningAgents:
    """Who has come, to a leader that has proposed nothing yet.

    Attributes:
        ready: what each knows that waits for a new membership.
        busy: who is there too, and is not ready: it ends its workers.
        newest: the newest agreed membership that anybody has spoken of.
        newcomers: who has come while a round went on.
        gone: whose connections were closed: these need not be waited for.
        taken: the halves that have taken their tokens.
        refused: those whose token was not to be had.
        waited: seconds since the leader began to wait.
        idle: seconds of these in which nobody was busy, the last ones.
        first: whether there has been no round yet.
    """

    ready: Mapping[int, Knowledge]
    busy: AbstractSet[int]
    newest: Membership
    newcomers: AbstractSet[int] = frozenset()
    gone: AbstractSet[int] = frozenset()
    taken: AbstractSet[Half] = frozenset()
    refused: AbstractSet[Half] = frozenset()
    waited: float = 0.0
    idle: float = 0.0
    first: bool = False

    @property
    def missing(self) -> frozenset[int]:
        """Who may still come, or become ready."""
        return frozenset(self.busy | {*self.newest.agents} | self.newcomers) - self.ready.keys() - self.gone


class JoinDecision(Enum):
    """What a leader does next."""

    WAIT = "wait for those that are missing"
    TAKE = "take the tokens of the halves that are there"
    PROPOSE = "propose a membership"
    GIVE_UP = "tell all to leave"


def decide_join(here: JoiningAgents, terms: JoinTerms) -> JoinDecision:
    """What to do, given who is there: all that is waited for, or those that may go on without the others."""
    if terms.fixed:
        if len(here.ready) >= terms.minimum:
            return JoinDecision.PROPOSE
        return JoinDecision.GIVE_UP if here.ready and here.waited > terms.join_timeout else JoinDecision.WAIT
    if not here.ready or (here.missing and not _patience_is_over(here, terms)):
        return JoinDecision.WAIT
    if membership.may_form(here.ready, here.taken):
        if len(here.ready) >= terms.minimum:
            return JoinDecision.PROPOSE
    elif _is_their_turn(here, terms) and membership.halves(here.ready) - here.taken - here.refused:
        return JoinDecision.TAKE
    longest = terms.join_timeout if here.first else _LONGEST * terms.node_timeout
    too_long = here.idle > longest or here.waited > terms.join_timeout + longest
    return JoinDecision.GIVE_UP if too_long else JoinDecision.WAIT


def _patience_is_over(here: JoiningAgents, terms: JoinTerms) -> bool:
    """Whether those that are missing are waited for no more; who is there and ends its workers is, for longer."""
    enough = terms.join_timeout if here.first else _MISSING * terms.node_timeout
    return here.waited > (max(enough, terms.join_timeout) if here.busy else enough)


def _is_their_turn(here: JoiningAgents, terms: JoinTerms) -> bool:
    """Whether a half asks for its token: if both live, the one with the first node goes on, as srun is mostly there."""
    with_first = min(here.ready) == min(here.newest.agents)
    return with_first or not here.missing or here.first or here.waited > _SECOND_HALF * terms.node_timeout


class Obstacle(Enum):
    """Why those that are there do not go on; the value is the line that says so."""

    ABSENT = (
        "{missing} did not join in {waited:.0f} s ({joined}/{expected} joined): look at the node's own output, exclude "
        "it, or wait longer with --join-timeout"
    )
    TOO_FEW = "only {present} is left, and --nnodes asks for {minimum} nodes at least"
    LEFT_BEHIND = (
        "{present} cannot go on without {missing}: those have gone on, or {tokens} is not to be seen from here"
    )
    SPARES_ONLY = "{present} cannot go on without {missing}: those have the workers, and could train"
    MINORITY = "{present} cannot go on without {missing}: those could be a majority, and train"


def obstacle(here: JoiningAgents) -> Obstacle:
    """What keeps those that are there from going on."""
    if here.first:
        return Obstacle.ABSENT
    if membership.may_form(here.ready, here.taken):
        return Obstacle.TOO_FEW
    if membership.halves(here.ready) & here.refused:
        return Obstacle.LEFT_BEHIND
    return Obstacle.SPARES_ONLY if membership.only_spares(here.ready) else Obstacle.MINORITY


def why_not_begun(here: JoiningAgents, terms: JoinTerms, names: Callable[[Iterable[int]], str], tokens: object) -> str:
    """Why those that are there do not go on, in a line.

    Args:
        here: who they are.
        terms: what was asked for.
        names: gives the names of the nodes of agents.
        tokens: where tokens are.
    """
    return obstacle(here).value.format(
        present=names(here.ready),
        missing=names(membership.absent(here.ready)),
        waited=here.waited,
        joined=len(here.ready),
        expected=len(here.newest.agents),
        minimum=terms.minimum,
        tokens=tokens,
    )
