"""The limit of open files is raised as far as it is needed, and as the hard limit allows."""

from __future__ import annotations

import resource

import pytest

from hpc_launch.node import limits


@pytest.mark.parametrize(
    ("before", "wanted", "limit", "allowed"),
    [
        ((1024, 4096), 3000, 3000, 3000),
        ((1024, 4096), 9000, 4096, 4096),
        ((1024, 4096), 500, 1024, 500),
        ((1024, resource.RLIM_INFINITY), 9000, 9000, 9000),
        ((resource.RLIM_INFINITY, resource.RLIM_INFINITY), 9000, resource.RLIM_INFINITY, 9000),
    ],
)
def test_the_limit_is_raised(
    monkeypatch: pytest.MonkeyPatch, before: tuple[int, int], wanted: int, limit: int, allowed: int
) -> None:
    """Never lowered, and the hard limit stays what it is."""
    now = [*before]
    monkeypatch.setattr(resource, "getrlimit", lambda _: tuple(now))
    monkeypatch.setattr(resource, "setrlimit", lambda _, both: now.__setitem__(slice(None), both))

    assert limits.allow_open_files(wanted) == allowed
    assert now == [limit, before[1]]
