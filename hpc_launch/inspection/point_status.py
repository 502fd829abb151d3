"""Where the points of a sweep stand: the tasks of a job array, or the runs of one job. Pure."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from hpc_launch.inspection.job_state import State
from hpc_launch.inspection.status_view import JobStatus

_Key = TypeVar("_Key", bound=Hashable)


@dataclass(frozen=True)
class PointStatus:
    """One point.

    Attributes:
        name: `12_3` for a task of an array, `12.1` for a run of a job.
        status: where it stands.
        arguments: what its training script gets that differs from other points; empty where that is not known.
        number: of the task; None for a run of a job.
        output: the file to which Slurm writes what its script says; empty where that is not known.
    """

    name: str
    status: JobStatus
    arguments: tuple[str, ...] = ()
    number: int | None = None
    output: str = ""

    @property
    def over(self) -> bool:
        """Whether nothing more comes of it: its last run has ended, and no batch script may start another."""
        record = self.status.slurm.record if self.status.slurm is not None else None
        return self.status.standing.over and not (record is not None and record.may_run_more)


@dataclass(frozen=True)
class ArrayStatus:
    """Where a job array stands.

    Attributes:
        name: its number.
        command: the training script, with the arguments that all points have; empty where that is not known.
        points: by number.
        blind: why Slurm cannot be asked; empty where it has answered.
        now: the time of all this.
    """

    name: str
    command: tuple[str, ...]
    points: tuple[PointStatus, ...]
    blind: str
    now: float

    @property
    def over(self) -> bool:
        """Whether nothing more comes of any point."""
        return all(point.over for point in self.points)

    @property
    def exit_status(self) -> int | None:
        """The highest of all points; None as long as not all of them have one."""
        found = [point.status.standing.status for point in self.points]
        known = [status for status in found if status is not None]
        return max(known, default=None) if len(known) == len(found) else None

    @property
    def counts(self) -> dict[State, int]:
        """How many points are in each state that any is in."""
        counted = Counter(point.status.standing.state for point in self.points)
        return {state: counted[state] for state in State if counted[state]}


def split_commands(commands: Mapping[_Key, Sequence[str]]) -> tuple[tuple[str, ...], dict[_Key, tuple[str, ...]]]:
    """What commands begin with in common, and what each of them has besides.

    An option stays with its value where the value differs.
    """
    known = {key: tuple(words) for key, words in commands.items() if words}
    if not known:
        return (), {}
    first = next(iter(known.values()))
    alike = itertools.takewhile(lambda words: len(set(words)) == 1, zip(*known.values(), strict=False))
    # Of a single command nobody knows what differs.
    common = len([*alike]) if len({*known.values()}) > 1 else 1
    if common > 1 and first[common - 1].startswith("-") and any(len(words) > common for words in known.values()):
        common -= 1
    return first[:common], {key: words[common:] for key, words in known.items()}


def point_arguments(
    commands: Mapping[int, Sequence[str]], points: Mapping[int, Sequence[str]]
) -> tuple[tuple[str, ...], dict[int, tuple[str, ...]]]:
    """What the tasks of an array have in common, and what each of them has besides.

    Args:
        commands: the training script and its arguments, of each task that has run.
        points: the arguments of each task, as far as the job script lists them.
    """
    if not points:
        return split_commands(commands)
    arguments = {number: tuple(words) for number, words in points.items()}
    for number, words in commands.items():
        own = arguments.get(number, ())
        if own and tuple(words[-len(own) :]) == own:
            return tuple(words[: -len(own)]), arguments
    return (), arguments
