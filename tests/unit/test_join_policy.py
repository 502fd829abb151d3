"""When those that have come to a leader go on."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

from hpc_launch.rendezvous import join_policy
from hpc_launch.rendezvous.join_policy import JoinDecision, JoiningAgents, JoinTerms, Obstacle
from hpc_launch.rendezvous.membership import Half, Knowledge, Membership
from tests.support import mentions

TERMS = JoinTerms(minimum=2, join_timeout=600.0, node_timeout=10.0)
WHOLE = Membership(3, (0, 1, 2, 3), "x", (0, 1, 2))


def gathering(*agents: int, busy: Iterable[int] = (), newest: Membership = WHOLE, **others: Any) -> JoiningAgents:
    """These are ready, and know the newest membership."""
    others.setdefault("idle", others.get("waited", 0.0))
    return JoiningAgents(dict.fromkeys(agents, Knowledge(newest)), {*busy}, newest, **others)


@pytest.mark.parametrize(
    ("here", "move"),
    [
        (gathering(), JoinDecision.WAIT),
        (gathering(0, 1, 2, 3), JoinDecision.PROPOSE),
        (gathering(0, 1, 2), JoinDecision.WAIT),
        (gathering(0, 1, 2, gone={3}), JoinDecision.PROPOSE),
        (gathering(0, 1, 2, waited=7.6), JoinDecision.PROPOSE),
        (gathering(0, 1, 2, busy=[3], gone={3}, waited=7.6), JoinDecision.PROPOSE),
        (gathering(0, 1, 2, busy=[3], waited=599.0, idle=0.0), JoinDecision.WAIT),
        (gathering(0, 1, 2, busy=[3], waited=601.0, idle=0.0), JoinDecision.PROPOSE),
        (gathering(0, 1, 2, 3, newcomers={4}, waited=1.0), JoinDecision.WAIT),
        (gathering(1, 2, 3, gone={0}, first=True, waited=1.0), JoinDecision.PROPOSE),
        (gathering(1, 2, 3, first=True, waited=599.0), JoinDecision.WAIT),
        (gathering(1, 2, 3, first=True, waited=601.0), JoinDecision.PROPOSE),
        (gathering(1, first=True, waited=601.0), JoinDecision.GIVE_UP),
    ],
    ids=str,
)
def test_who_is_waited_for(here: JoiningAgents, move: JoinDecision) -> None:
    """All members and newcomers that may still come: at first for long, and for those that end their workers too."""
    assert join_policy.decide_join(here, TERMS) is move


@pytest.mark.parametrize(
    ("here", "move"),
    [
        (gathering(0, 3, waited=7.6), JoinDecision.TAKE),
        (gathering(1, 2, waited=7.6), JoinDecision.WAIT),
        (gathering(1, 2, waited=12.6), JoinDecision.TAKE),
        (gathering(1, 2, gone={0, 3}), JoinDecision.TAKE),
        (gathering(1, 2, gone={0, 3}, taken={Half("x", (1, 2))}), JoinDecision.PROPOSE),
        (gathering(1, 2, gone={0, 3}, refused={Half("x", (1, 2))}), JoinDecision.WAIT),
        (gathering(1, 2, gone={0, 3}, refused={Half("x", (1, 2))}, waited=20.1), JoinDecision.GIVE_UP),
        (gathering(1, gone={0, 2, 3}), JoinDecision.WAIT),
        (gathering(1, waited=20.1), JoinDecision.GIVE_UP),
        (gathering(1, waited=300.0, idle=20.1), JoinDecision.GIVE_UP),
        (gathering(1, 2, waited=300.0, idle=1.0), JoinDecision.TAKE),
        (gathering(0, busy=[1], waited=600.1, idle=0.0), JoinDecision.WAIT),
        (gathering(0, busy=[1], waited=620.1, idle=0.0), JoinDecision.GIVE_UP),
    ],
    ids=str,
)
def test_too_few_for_a_majority(here: JoiningAgents, move: JoinDecision) -> None:
    """Half asks for its token, that with the first node at once; who may not go on gives up when nobody comes back."""
    assert join_policy.decide_join(here, TERMS) is move


def test_fewer_than_were_asked_for() -> None:
    """They wait for others to come back, and end."""
    pair = Membership(4, (1, 3), "y", (1, 3))
    token = {Half("y", (1,))}
    assert join_policy.decide_join(gathering(1, newest=pair, taken=token, waited=8.0), TERMS) is JoinDecision.WAIT
    assert join_policy.decide_join(gathering(1, newest=pair, taken=token, waited=21.0), TERMS) is JoinDecision.GIVE_UP


@pytest.mark.parametrize(
    ("here", "kind", "expected"),
    [
        (gathering(0, 2, first=True, waited=601.2), Obstacle.ABSENT, "1 3 601 2/4 --join-timeout"),
        (gathering(0, 1, 2), Obstacle.TOO_FEW, "0 1 2 --nnodes 2"),
        (gathering(1, 3, refused={Half("x", (1, 3))}), Obstacle.LEFT_BEHIND, "1 3 0 2 /logs/7/memberships"),
        (gathering(1), Obstacle.MINORITY, "1 0 2 3"),
        (gathering(2, 3, newest=Membership(3, (0, 1, 2, 3), "x", (0, 1))), Obstacle.SPARES_ONLY, "2 3 0 1"),
    ],
)
def test_why_they_do_not_go_on(here: JoiningAgents, kind: Obstacle, expected: str) -> None:
    """Who is there, who is missing, and what that means."""

    def names(agents: Iterable[int]) -> str:
        return " ".join(map(str, sorted(agents)))

    assert join_policy.obstacle(here) is kind
    assert mentions(join_policy.why_not_begun(here, TERMS, names, "/logs/7/memberships"), expected)
