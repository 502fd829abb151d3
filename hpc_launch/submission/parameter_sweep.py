"""Parameters with several values: a grid of runs. Pure."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass

from hpc_launch.errors import UsageError

# Slurm's own limit of a job array is lower, as a rule (MaxArraySize, 1001).
_MOST_POINTS = 100_000

_INDICES = re.compile(r"(?P<which>[\d,:-]*)(?P<most>%\d+)?")


@dataclass(frozen=True)
class SweepParameter:
    """An option of the training script, and the values that it is to have."""

    name: str
    values: tuple[str, ...]

    @property
    def flag(self) -> str:
        """How it is written: `--lr` for `lr`; what begins with a dash is written as it is."""
        return self.name if self.name.startswith("-") else f"--{self.name}"


def read_parameter(text: str) -> SweepParameter:
    """Read `lr=1e-3,1e-4`; a double comma stands for one that belongs to a value.

    Raises:
        UsageError: where a name or the values are missing, or a value is there twice.
    """
    name, equals, given = text.partition("=")
    values = tuple(part.replace("\0", ",") for part in given.replace(",,", "\0").split(","))
    if not (name and equals and given) or any(character.isspace() for character in name):
        raise UsageError(f"--sweep: '{text}' is not NAME=VALUE,VALUE,... such as lr=1e-3,1e-4", option="--sweep")
    if len(set(values)) != len(values):
        raise UsageError(f"--sweep: '{text}' has a value twice", option="--sweep")
    return SweepParameter(name, values)


def grid_points(parameters: Sequence[SweepParameter]) -> tuple[tuple[str, ...], ...]:
    """The words of each point of the grid; the last parameter changes first.

    Raises:
        UsageError: where a parameter is there twice, or there are too many points.
    """
    if not parameters:
        return ()
    flags = [parameter.flag for parameter in parameters]
    twice = next((flag for flag in flags if flags.count(flag) > 1), None)
    if twice:
        raise UsageError(f"--sweep: {twice} is there twice: give all of its values at once", option="--sweep")
    count = 1
    for parameter in parameters:
        count *= len(parameter.values)
    if count > _MOST_POINTS:
        raise UsageError(f"--sweep: {count} points are too many for one job array", option="--sweep")
    grid = itertools.product(*(parameter.values for parameter in parameters))
    return tuple(tuple(itertools.chain.from_iterable(zip(flags, values, strict=True))) for values in grid)


def array_indices(asked: str | None, count: int) -> str:
    """The indices of a job array with a task for each of `count` points.

    Args:
        asked: what --array says: which of the points, how many at a time (`%4`), or both; None for all.
        count: how many points there are.

    Raises:
        UsageError: for other indices.
    """
    match = _INDICES.fullmatch(asked or "")
    numbers = [int(number) for number in re.findall(r"(?<!:)\b\d+", match["which"])] if match else []
    if match is None or any(number >= count for number in numbers):
        raise UsageError(
            f"--array: '{asked}' is not some of the points 0-{count - 1} of the sweep, or %N for so many at a time",
            option="--array",
        )
    return (match["which"] or (f"0-{count - 1}" if count > 1 else "0")) + (match["most"] or "")
