"""The decisions of the `slurm` rendezvous: ends, refusals, who is missing, and what goes through the store."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, strategies as st

from hpc_launch.elastic.rounds import (
    Ending,
    Member,
    RoundEnd,
    RoundPlan,
    end_after_failure,
    missing_hosts,
    refusal,
    shape,
)

SOFTWARE = {"torch": "2.13.0", "script": "train.py"}


def member(number: int, **changes: Any) -> Member:
    words: dict[str, Any] = {"agent": number, "host": f"gpu{number:02}", "workers": 4, "software": SOFTWARE}
    return Member(**{**words, **changes})


@pytest.mark.parametrize(
    ("round_number", "max_restarts", "expected"),
    [
        (0, 0, Ending.FAILED),
        (0, 1, Ending.RESTART),
        (1, 1, Ending.FAILED),
        (1, 3, Ending.RESTART),
        (2, 3, Ending.RESTART),
        (3, 3, Ending.FAILED),
        (7, 3, Ending.FAILED),
    ],
)
def test_one_budget_of_restarts_for_the_whole_job(round_number: int, max_restarts: int, expected: Ending) -> None:
    """Every round but the first has cost one restart; when none is left, a failure is the end."""
    end = end_after_failure(
        round_number=round_number, max_restarts=max_restarts, agent=2, host="gpu03", status=139, cause="SIGSEGV"
    )
    assert RoundEnd(ending=expected.value, agent=2, host="gpu03", status=139, cause="SIGSEGV") == end


texts = st.text(max_size=20)
numbers = st.integers(0, 2**31)
members = st.builds(
    Member,
    agent=numbers,
    host=texts,
    workers=numbers,
    software=st.dictionaries(texts, texts),
    problem=texts,
    status=numbers,
)
plans = st.builds(
    RoundPlan,
    master_addr=texts,
    master_port=numbers,
    workers=st.lists(numbers),
    job=texts,
    first_attempt=numbers,
    problem=texts,
    status=numbers,
)
ends = st.builds(
    RoundEnd, ending=st.sampled_from([ending.value for ending in Ending]), agent=numbers, host=texts, status=numbers
)


@given(message=members | plans | ends)
def test_messages_come_back_as_they_were(message: Member | RoundPlan | RoundEnd) -> None:
    """What is encoded is decoded to the same, from text and from the bytes that a store gives."""
    text = message.encode()

    assert [message, message] == [type(message).decode(text), type(message).decode(text.encode())]
    assert "\n" not in text


def test_fields_of_a_newer_release_are_passed_over() -> None:
    """A node with a newer hpc-launch can be understood, so that it can be told that it is one."""
    text = json.dumps({**json.loads(member(1).encode()), "colour": "red"})

    assert member(1) == Member.decode(text)


def test_fields_that_an_older_release_does_not_send_have_their_default() -> None:
    """What has a default may be missing."""
    assert Member(agent=1, host="a", workers=2) == Member.decode('{"agent": 1, "host": "a", "workers": 2}')


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
            ("the nodes do not run the same torch: 2.13.0 on gpu[01-02]; 2.4.0 on gpu03", 69),
        ),
        (
            [member(1), member(2, software={"torch": "2.13.0"})],
            ("the nodes do not run the same script: train.py on gpu01; unknown on gpu02", 69),
        ),
        (
            [member(1), member(2, host="gpu01", software={}), member(3, host="gpu01")],
            ("the nodes do not run the same torch: 2.13.0 on gpu01; unknown on gpu01", 69),
        ),
    ],
    ids=["all is well", "alone", "uneven", "problem", "first problem", "other torch", "unknown", "same host"],
)
def test_who_cannot_start_together(joined: list[Member], expected: tuple[str, int] | None) -> None:
    """A node's own problem comes first, with its status; then software that differs, with who has which."""
    assert expected == refusal(joined)


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
