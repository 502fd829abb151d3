"""How nodes and times are written."""

from __future__ import annotations

import pytest

from hpc_launch.records import words


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0.4, "0 s"), (119, "119 s"), (120, "2 min"), (3599, "1 h"), (12_000, "3 h 20 min"), (190_000, "2 d 5 h"),
        (172_800, "2 d"),
    ],
)  # fmt: skip
def test_durations(seconds: float, expected: str) -> None:
    assert expected == words.duration(seconds)


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (-3, "now"),
        (4, "now"),
        (8, "10 s ago"),
        (61, "60 s ago"),
        (130, "2 min ago"),
        (7300, "2 h ago"),
        (1e6, "12 d ago"),
    ],
)
def test_how_long_ago(seconds: float, expected: str) -> None:
    assert expected == words.ago(seconds)


def test_names_that_are_no_host_list() -> None:
    """Foreign records may have anything."""
    assert words.unfold_hosts("a[1-") == ("a[1-",)
    assert words.unfold_hosts("x[1-99999999]") == ("x[1-99999999]",)
    assert words.unfold_hosts("") == ()
    assert words.fold_hosts(["b c", "a"]) == "a,b c"
    assert words.fold_hosts(["gpu2", "gpu1", "gpu1"]) == "gpu[1-2]"
