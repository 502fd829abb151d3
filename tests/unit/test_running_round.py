"""What the words of agents mean for a round that has begun."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from hpc_launch.rendezvous.membership import Membership
from hpc_launch.rendezvous.messages import Failed, RoundEnd, RoundEnding, RoundPlan, RunState, Start
from hpc_launch.rendezvous.running_round import RunningRound

HOSTS = {0: "node1", 1: "node2", 2: "node3", 3: "node4"}


def progress(active: Sequence[int] = (0, 1, 3), since: float = 0.0) -> RunningRound:
    """Return a round of four agents that has just begun."""
    membership = Membership(1, (0, 1, 2, 3), "", tuple(active))
    plan = RoundPlan("10.0.0.1", 20_000, (1,) * len(active), "12.0", 0, "12.0.0")
    return RunningRound(Start(membership, (), 0, plan, RunState(0), {}), since)


def test_the_last_workers_that_start_are_noticed_once() -> None:
    running = progress()

    assert [running.note_begun(agent) for agent in (0, 1, 1, 3, 0)] == [False, False, False, True, False]


def test_the_last_workers_that_end_well_end_the_round() -> None:
    running = progress()

    assert [running.note_done(agent) for agent in (3, 3, 0, 1)] == [False, False, False, True]


def test_a_failure_counts_when_all_have_answered_and_a_moment_has_passed() -> None:
    """Until then it may come of a node that is lost."""
    running = progress()
    running.note_failure(1, Failed(0, 1, "it broke"), 100.0)
    running.answered |= {0, 1}
    assert not running.failure_counts(200.0)
    running.answered |= {3}

    assert [running.failure_counts(now) for now in (100.1, 103.0)] == [False, True]


def test_failures_of_all_need_no_moment() -> None:
    """No other agent could say more."""
    running = progress()
    for agent in (0, 1, 3):
        running.note_failure(agent, Failed(0, 1, "it broke"), 100.0)
        running.answered.add(agent)

    assert running.failure_counts(100.0)


def test_the_end_by_failures_names_the_first_that_followed_no_other() -> None:
    """By its place among those that have workers; an agent's first word counts."""
    running = progress()
    running.note_failure(0, Failed(0, 1, "connection reset", own=False), 100.0)
    running.note_failure(3, Failed(0, 7, "it broke"), 100.1)
    running.note_failure(1, Failed(0, 8, "it broke too"), 100.2)
    running.note_failure(0, Failed(0, 9, "late"), 100.3)

    assert running.failed == 100.0
    assert running.end_by_first_failure(HOSTS, again=True) == RoundEnd(
        RoundEnding.RESTART.value, 2, "node4", 7, "it broke"
    )
    assert running.end_by_first_failure(HOSTS, again=False).ending == RoundEnding.FAILED.value


def test_an_end_by_followers_alone_is_an_end() -> None:
    running = progress()
    running.note_failure(1, Failed(0, 1, "connection reset", own=False), 100.0)

    assert running.end_by_first_failure(HOSTS, again=True).agent == 1


@pytest.mark.parametrize(
    ("begun", "done", "failed", "due"),
    [
        ((), (), False, {0, 1, 3}),
        ((0,), (), False, {1, 3}),
        ((0, 1, 3), (), False, set()),
        ((0, 1, 3), (1,), False, {0, 3}),
        ((0, 1, 3), (1,), True, {0, 1, 3}),
    ],
)
def test_who_is_waited_for(begun: Sequence[int], done: Sequence[int], failed: bool, due: set[int]) -> None:
    """Until workers have started, when some have ended, and when some have failed; never for spares."""
    running = progress()
    for agent in begun:
        running.note_begun(agent)
    for agent in done:
        running.note_done(agent)
    if failed:
        running.note_failure(1, Failed(0, 1, "it broke"), 100.0)

    assert running.due == due


def test_nobody_is_waited_for_when_a_round_has_ended() -> None:
    running = progress()
    running.end = RoundEnd(RoundEnding.RESTART.value, 1, "node2", 1, "it broke")

    assert (running.due, running.over, running.calm) == (set(), True, False)
    assert not running.failure_counts(1000.0)
