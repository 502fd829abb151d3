"""Which agents fit together, and which nodes are missing."""

from __future__ import annotations

from typing import Any

import pytest

from hpc_launch.errors import RendezvousError, RendezvousTimeout, RoundRefused
from hpc_launch.rendezvous.messages import RefusalKind, Refused
from hpc_launch.rendezvous.round_checks import Member, error_of, missing_hosts, refusal, shape
from tests.support import mentions

SOFTWARE = {"torch": "2.13.0", "script": "train.py"}


def member(number: int, **changes: Any) -> Member:
    words: dict[str, Any] = {"agent": number, "host": f"gpu{number:02}", "workers": 4, "software": SOFTWARE}
    return Member(**{**words, **changes})


@pytest.mark.parametrize(
    ("joined", "expected"),
    [
        ([member(1), member(2)], None),
        ([member(1)], None),
        ([member(1), member(2, workers=2)], None),
        (
            [member(1), member(2, problem="cannot write in /logs: Read-only file system", status=73)],
            ("gpu02: cannot write in /logs: Read-only file system", 73),
        ),
        (
            [member(1, problem="first", status=73), member(2, problem="second", status=66)],
            ("gpu01: first", 73),
        ),
        (
            [member(1), member(2), member(3, software={**SOFTWARE, "torch": "2.4.0"})],
            ("torch 2.13.0 gpu[01-02] 2.4.0 gpu03", 69),
        ),
        (
            [member(1), member(2, software={"torch": "2.13.0"})],
            ("script train.py gpu01 gpu02", 69),
        ),
        (
            [member(1), member(2, host="gpu01", software={}), member(3, host="gpu01")],
            ("torch 2.13.0 gpu01", 69),
        ),
    ],
    ids=["all is well", "alone", "uneven", "problem", "first problem", "other torch", "unknown", "same host"],
)
def test_who_cannot_start_together(joined: list[Member], expected: tuple[str, int] | None) -> None:
    """A node's own problem comes first, with its status; then software that differs, with who has which."""
    found = refusal(joined)

    assert (found is None) == (expected is None)
    if found is not None and expected is not None:
        assert (mentions(found[0], expected[0]), found[1]) == (True, expected[1])


@pytest.mark.parametrize(
    ("expected_agents", "joined", "expected"),
    [
        ([1, 1, 1], [], ("a", "b", "c")),
        ([1, 1, 1], ["b"], ("a", "c")),
        ([1, 1, 1], ["c", "b", "a"], ()),
        ([2, 1, 2], ["a", "b", "c", "c"], ("a",)),
        ([1, 1, 1], ["a", "b", "c", "d"], ()),
    ],
)
def test_who_is_missing(expected_agents: list[int], joined: list[str], expected: tuple[str, ...]) -> None:
    """A host is missing while fewer of its agents have joined than it has; in the order of the list."""
    assert expected == missing_hosts(("a", "b", "c"), expected_agents, joined)


@pytest.mark.parametrize(("workers", "expected"), [([4, 4, 4], "4"), ([4], "4"), ([4, 4, 2], "4,4,2")])
def test_the_shape_of_a_round(workers: list[int], expected: str) -> None:
    """Equal numbers of workers are said once."""
    assert expected == shape(workers)


@pytest.mark.parametrize(
    ("kind", "error", "shown_by_others"),
    [
        (RefusalKind.MISSING, RendezvousTimeout, False),
        (RefusalKind.LOST, RendezvousError, False),
        (RefusalKind.PROBLEM, RoundRefused, False),
        (RefusalKind.ALONE, RoundRefused, True),
    ],
)
def test_one_agent_shows_for_all_why_a_round_does_not_begin(
    kind: RefusalKind, error: type[RendezvousError], shown_by_others: bool
) -> None:
    """The coordinator's; what holds for one agent alone is shown by that one."""
    found = [error_of(Refused(kind, "why", 69, ("node2",)), coordinates=one) for one in (True, False)]

    assert [type(one) for one in found] == [error, error]
    assert [one.silent for one in found] == [False, not shown_by_others]
    assert str(found[0]) == "why"
