"""Lists of numbers, written and read."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from hpc_launch import ranges


@pytest.mark.parametrize(
    ("numbers", "written"),
    [
        ([], ""),
        ([3], "3"),
        ([0, 1, 2, 3, 17], "0-3,17"),
        ([5, 3, 4, 3], "3-5"),
        ([1, 3, 5], "1,3,5"),
        ([9, 3, 2, 1, 7, 8], "1-3,7-9"),
    ],
)
def test_lists_are_folded_as_the_kernel_does(numbers: list[int], written: str) -> None:
    """Neighbours are a range, also two of them."""
    assert ranges.fold(numbers) == written


@given(st.sets(st.integers(0, 600)))
def test_lists_are_written_and_read(numbers: set[int]) -> None:
    """A list that was folded reads as the same numbers."""
    assert ranges.unfold(ranges.fold(numbers)) == tuple(sorted(numbers))


def test_lists_are_read_as_they_are_written() -> None:
    """People's order and blanks are kept and passed over."""
    assert ranges.unfold(" 7, 0-2 ,5") == (7, 0, 1, 2, 5)


@pytest.mark.parametrize("written", ["x", "1,,2", "1,", "3-1", "-1", "1-", "1-2-3", "0-99999999999", "٣", "1:2"])
def test_what_is_no_list_is_refused(written: str) -> None:
    """Nothing is guessed, and no slip fills the memory."""
    with pytest.raises(ValueError, match="range"):
        ranges.unfold(written)
