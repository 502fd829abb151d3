"""How nodes and ranks are written."""

from __future__ import annotations

import pytest

from hpc_launch.records import formatting


@pytest.mark.parametrize(
    ("ranks", "expected"), [([3], "rank 3"), ([*range(511)], "ranks 0-510"), ([7, 0, 2, 1, 1], "ranks 0-2,7")]
)
def test_ranks(ranks: list[int], expected: str) -> None:
    assert formatting.fold_ranks(ranks) == expected


def test_names_that_are_no_host_list() -> None:
    """Foreign records may have anything."""
    assert formatting.unfold_hosts("a[1-") == ("a[1-",)
    assert formatting.unfold_hosts("x[1-99999999]") == ("x[1-99999999]",)
    assert formatting.unfold_hosts("") == ()
    assert formatting.fold_hosts(["b c", "a"]) == "a,b c"
    assert formatting.fold_hosts(["gpu2", "gpu1", "gpu1"]) == "gpu[1-2]"
