"""Lists of numbers as the kernel, Slurm and people write them: `0-3,17`. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable

# More than there are of anything that is counted so: a slip of the finger is not to fill the memory.
_LONGEST = 1 << 20

_RANGE = re.compile(r"\s*(\d+)(?:-(\d+))?\s*", re.ASCII)


def fold(numbers: Iterable[int]) -> str:
    """Write numbers, each once and ascending; nothing for none."""
    runs: list[list[int]] = []
    for number in sorted(set(numbers)):
        if runs and runs[-1][1] == number - 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(f"{low}-{high}" if low != high else str(low) for low, high in runs)


def unfold(written: str, most: int = _LONGEST) -> tuple[int, ...]:
    """Read numbers, in the order in which they are written.

    Args:
        written: the numbers and ranges.
        most: how many numbers there may be.

    Raises:
        ValueError: when something else is written there, or a range that is empty or longer than any could be.
    """
    found: list[int] = []
    for part in written.split(",") if written.strip() else ():
        match = _RANGE.fullmatch(part)
        if match is None:
            raise ValueError(f"'{part}' is neither a number nor a range")
        low, high = int(match[1]), int(match[2] or match[1])
        if not low <= high < low + _LONGEST:
            raise ValueError(f"'{part}' is no range of numbers")
        if high - low >= most - len(found):
            raise ValueError(f"there are more than {most} numbers")
        found.extend(range(low, high + 1))
    return tuple(found)
