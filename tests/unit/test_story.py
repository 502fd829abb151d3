"""What agents tell each other, as values that are written and read."""

from __future__ import annotations

import json

import pytest

from hpc_launch.elastic import story
from hpc_launch.rendezvous.membership import Membership

AGENTS = tuple(agent for agent in range(1024) if agent not in (7, 500))


@pytest.mark.parametrize(
    "one",
    [Membership(0, (0, 1, 2)), Membership(5, AGENTS, "3-abc", AGENTS[:-2]), Membership(1, (3,), "", (3,))],
)
def test_memberships_are_written_and_read(one: Membership) -> None:
    assert story.read_membership(json.loads(json.dumps(story.plain_membership(one)))) == one


def test_a_membership_of_many_is_short() -> None:
    """Each agent says to the leader what it knows: of a thousand that is not to be the names of a thousand each."""
    assert len(json.dumps(story.plain_membership(Membership(5, AGENTS, "3-abc", AGENTS)))) < 100


@pytest.mark.parametrize("written", [[0, [0, 1], "", []], [0, "0-", "", ""], [0, "0-99999999999", "", ""], [0, "0"]])
def test_what_is_no_membership_is_nonsense(written: list[object]) -> None:
    """Those who listen pass it over (`lines.NONSENSE`)."""
    with pytest.raises((TypeError, ValueError)):
        story.read_membership(written)
