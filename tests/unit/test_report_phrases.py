"""The words of a report."""

from datetime import timedelta, timezone

import pytest
from hypothesis import given, strategies as st

from hpc_launch.review import phrases
from hpc_launch.text import visible


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (-3, "0.0 s"),
        (0.84, "0.8 s"),
        (9.97, "10 s"),
        (59.4, "59 s"),
        (59.7, "1 min"),
        (65, "1 min 5 s"),
        (3599.8, "1 h"),
        (3600 + 25 * 60, "1 h 25 min"),
        (86_399, "1 d"),
        (2 * 86_400 + 4 * 3600, "2 d 4 h"),
    ],
)
def test_a_length_of_time(seconds: float, expected: str) -> None:
    assert phrases.span(seconds) == expected


@given(st.floats(0, 1e9))
def test_no_length_of_time_has_sixty_of_something(seconds: float) -> None:
    """It is rounded before it is cut into parts."""
    assert not {"60 s", "60 min", "24 h"} & {" ".join(pair) for pair in _pairs(phrases.span(seconds))}


def _pairs(text: str) -> list[list[str]]:
    words = text.split()
    return [words[at : at + 2] for at in range(0, len(words), 2)]


@pytest.mark.parametrize(("count", "expected"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (3 << 30, "3.0 GiB")])
def test_a_size(count: int, expected: str) -> None:
    assert phrases.size(count) == expected


@pytest.mark.parametrize("time", [None, 0, -5.0, 1e15, float(1 << 53)])
def test_what_is_no_time_is_empty(time: float | None) -> None:
    """A record may hold any number."""
    assert (phrases.full(time, None), phrases.clock(time, None)) == ("", "")


def test_local_time_is_named() -> None:
    berlin = timezone(timedelta(hours=1), "CET")

    assert phrases.full(1_764_110_167, berlin) == "2025-11-25 23:36:07"
    assert phrases.zone_name(1_764_110_167, berlin) == "CET (UTC+01:00)"
    assert phrases.zone_name(1_764_110_167, timezone.utc) == "UTC"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("a\0b", "a\\x00b"),
        ("name\u202etxt.exe", "name\\x202etxt.exe"),
        ("lone \ud83d", "lone \\xd83d"),
        ("tab\tand\nline", "tab\tand\nline"),
        ("gr\u00fc\u00dfe \U0001f600", "gr\u00fc\u00dfe \U0001f600"),
    ],
)
def test_nothing_in_a_text_is_invisible(text: str, expected: str) -> None:
    assert visible(text) == expected


@given(st.text())
def test_visible_text_can_be_written(text: str) -> None:
    """Whatever it was, it is text that a file can have, and looking at it twice changes nothing."""
    seen = visible(text)

    assert seen.encode().decode() == seen
    assert visible(seen) == seen
