"""Times, sizes, numbers and text of others, as people read them."""

import re
import time
from datetime import timedelta, timezone

import pytest
from hypothesis import given, strategies as st

from hpc_launch import text
from hpc_launch.text import visible


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (-3, "0 s"),
        (5.0, "5 s"),
        (75, "1 min 15 s"),
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
    assert text.duration(seconds) == expected


@given(st.floats(0, 1e9))
def test_no_length_of_time_has_sixty_of_something(seconds: float) -> None:
    """It is rounded before it is cut into parts."""
    assert not {"60 s", "60 min", "24 h"} & {" ".join(pair) for pair in _pairs(text.duration(seconds))}


def _pairs(said: str) -> list[list[str]]:
    words = said.split()
    return [words[at : at + 2] for at in range(0, len(words), 2)]


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
    assert expected == text.ago(seconds)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (5.0, "5"), (1200.0, "1,200"), (0.123456, "0.1235"), (-1234.5, "-1,234"),
        (1e-9, "1e-09"), (123456.7, "123,457"), ("warm", "warm"), (True, "yes"),
        (float("inf"), "inf"), (float("nan"), "nan"),
    ],
)  # fmt: skip
def test_numbers(value: float | str, words: str) -> None:
    assert text.number(value) == words


def test_how_many() -> None:
    assert [text.count(number, "rank") for number in (0, 1, 1024)] == ["0 ranks", "1 rank", "1,024 ranks"]
    assert text.count(2, "entry", "entries") == "2 entries"


def test_a_time_on_another_day() -> None:
    """Its day is said."""
    now = 1_718_000_100.0

    assert re.fullmatch(r"\d\d:\d\d", text.to_the_minute(now + 100, now))
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d", text.to_the_minute(now + 100_000, now))
    assert text.to_the_minute(1e15, now) == ""


@pytest.mark.parametrize(
    ("count", "expected"),
    [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (3 << 30, "3 GiB"), (100 << 20, "100 MiB"), (3 << 40, "3 TiB")],
)
def test_a_size(count: int, expected: str) -> None:
    assert text.size(count) == expected


@pytest.mark.parametrize("time", [None, 0, -5.0, 1e15, float(1 << 53)])
def test_what_is_no_time_is_empty(time: float | None) -> None:
    """A record may hold any number."""
    assert (text.date_and_time(time, None), text.time_of_day(time, None)) == ("", "")


def test_a_time_in_the_name_of_a_file() -> None:
    assert text.stamp(1_764_110_167.9) == time.strftime("%Y%m%d-%H%M%S", time.localtime(1_764_110_167))


def test_local_time_is_named() -> None:
    berlin = timezone(timedelta(hours=1), "CET")

    assert text.date_and_time(1_764_110_167, berlin) == "2025-11-25 23:36:07"
    assert text.zone_name(1_764_110_167, berlin) == "CET (UTC+01:00)"
    assert text.zone_name(1_764_110_167, timezone.utc) == "UTC"


@pytest.mark.parametrize(
    ("given", "expected"),
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
def test_nothing_in_a_text_is_invisible(given: str, expected: str) -> None:
    assert visible(given) == expected


@given(st.text())
def test_visible_text_can_be_written(written: str) -> None:
    """Whatever it was, it is text that a file can have, and looking at it twice changes nothing."""
    seen = visible(written)

    assert seen.encode().decode() == seen
    assert visible(seen) == seen
