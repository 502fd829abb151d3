"""Time that passes only while a process runs."""

from __future__ import annotations

from hpc_launch.elastic.awake import Awake


def test_it_stands_still_while_nobody_looks() -> None:
    """Short steps count, one that is long does not: the process did not run."""
    times = iter([100.0, 100.5, 101.25, 500.0, 500.5])
    awake = Awake(lambda: next(times))

    assert [awake.look() for _ in range(4)] == [0.5, 1.25, 1.25, 1.75]
