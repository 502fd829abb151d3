"""The values that options have, where they are more than numbers and words."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, IntFlag


class Origin(str, Enum):
    """Where a value came from, the first in this list that speaks winning."""

    FLAG = "flag"
    ENVIRONMENT = "HPC_LAUNCH variable"
    TORCHRUN_ENVIRONMENT = "PET variable"
    PROFILE = "profile"
    PROJECT = "project file"
    USER = "user's file"
    SITE = "site's file"
    STEP = "Slurm step"
    JOB = "Slurm job"
    HOSTS = "host list"
    NODE = "this node"
    DEFAULT = "default"


class Streams(IntFlag):
    """Which of a worker's output streams; the numbers are torchrun's."""

    NONE = 0
    OUT = 1
    ERR = 2
    ALL = 3


@dataclass(frozen=True)
class NodeRange:
    """How many nodes: exactly `minimum`, or any number from `minimum` to `maximum`."""

    minimum: int
    maximum: int

    def __str__(self) -> str:
        return str(self.maximum) if self.minimum == self.maximum else f"{self.minimum}:{self.maximum}"


@dataclass(frozen=True)
class StreamChoice:
    """Streams for all local ranks (`everyone`), or for those named in `per_rank` (the others: none)."""

    everyone: Streams = Streams.NONE
    per_rank: tuple[tuple[int, Streams], ...] = ()

    def of(self, local_rank: int) -> Streams:
        """The streams of one local rank."""
        return dict(self.per_rank).get(local_rank, self.everyone)


CONSOLE_AUTO_RANKS = 16


@dataclass(frozen=True)
class ConsoleChoice:
    """Whose output the console shows: `all`, `auto`, or exactly `ranks` (global)."""

    mode: str = "auto"
    ranks: tuple[int, ...] = ()

    def shows(self, rank: int, world_size: int) -> bool:
        """Whether rank's output is shown; `auto` shows all while a person can still read it."""
        if self.mode == "ranks":
            return rank in self.ranks
        return self.mode == "all" or world_size <= CONSOLE_AUTO_RANKS or rank == 0


@dataclass(frozen=True)
class CpuBind:
    """Which CPUs the local ranks run on: `auto`, `none`, or `map:` and a list of CPUs for each, in `lists`."""

    text: str = "auto"
    lists: tuple[tuple[int, ...], ...] = ()

    def __str__(self) -> str:
        return self.text
