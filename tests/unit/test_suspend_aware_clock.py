"""Time that passes only while a process runs."""

from __future__ import annotations

from hpc_launch.rendezvous.suspend_aware_clock import SuspendAwareClock


def test_it_stands_still_while_nobody_looks() -> None:
    """Short steps count, one that is long does not: the process did not run."""
    times = iter([100.0, 100.5, 101.25, 500.0, 500.5])
    awake = SuspendAwareClock(lambda: next(times))

    assert [awake.now() for _ in range(4)] == [0.5, 1.25, 1.25, 1.75]


def test_a_rest_that_was_meant_counts() -> None:
    """Who meant to look an hour later at the latest has run all the time, also when woken before; but once only."""
    times = iter([100.0, 500.0, 3800.0, 3900.0])
    awake = SuspendAwareClock(lambda: next(times))
    seen = []
    for rest in (3600.0, 3600.0, 0.0):
        awake.rest = rest
        seen.append(awake.now())

    assert seen == [400.0, 3700.0, 3700.0]
