"""The same failure, again and again."""

from __future__ import annotations

from hpc_launch.agent.failure_streak import FailureStreak
from hpc_launch.plan.requeue import AT_ONCE_SECONDS

FAILURE = "rank 1 on gpu002 (local rank 1): exit status 3"


def test_the_same_failure_is_counted() -> None:
    """Whichever rank and node it is this time; another one, and one that comes late, begin anew."""
    streak = FailureStreak()
    assert streak.add(FAILURE, 1000) == 1
    assert streak.add("rank 0 on gpu001 (local rank 0): exit status 3", 2) == 2
    assert streak.add(FAILURE, 59) == 3
    assert streak.add(FAILURE, AT_ONCE_SECONDS) == 1
    assert streak.add(FAILURE.replace("exit", "other"), 1) == 1
