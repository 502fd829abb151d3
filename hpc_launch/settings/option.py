"""One option: how it is written, read and explained. The options of all commands are described by this type."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hpc_launch.settings.option_values import Origin
from hpc_launch.settings.readers import Reader

PREFIX = "HPC_LAUNCH_"
TORCHRUN_PREFIX = "PET_"


@dataclass(frozen=True)
class OptionSpec:
    """One option.

    Attributes:
        flags: its spellings on the command line, with their dashes.
        reader: reads its value, wherever that is from.
        help: what it means.
        metavar: what its value is called; empty where it has none.
        group: the heading below which it is shown.
        multiple: whether it can be repeated.
        prefix: what the name of its variable begins with.
        torchrun_variable: whether torchrun's variable counts too.
        choices: the values that it can have; empty where those are not few.
        not_in_files: why a file cannot set it; empty where one can.
    """

    flags: tuple[str, ...]
    reader: Reader[Any]
    help: str
    metavar: str
    group: str
    multiple: bool = False
    prefix: str = PREFIX
    torchrun_variable: bool = False
    choices: tuple[str, ...] = ()
    not_in_files: str = ""

    @property
    def is_flag(self) -> bool:
        """Whether it is a switch, without a value on the command line."""
        return bool in self.reader.natural

    @property
    def flag(self) -> str:
        """The long spelling, for messages."""
        return f"--{self.key}"

    @property
    def key(self) -> str:
        """Its name in files: the long spelling."""
        return self.keys[0]

    @property
    def keys(self) -> tuple[str, ...]:
        """All its names in files: the long spellings."""
        return tuple(flag.removeprefix("--") for flag in self.flags if flag.startswith("--"))

    @property
    def variable(self) -> str:
        """The variable that says the same."""
        return next(iter(self.variables))

    @property
    def variables(self) -> Mapping[str, Origin]:
        """All variables that say the same, the strongest first."""
        name = self.key.upper().replace("-", "_")
        torchrun = {TORCHRUN_PREFIX + name: Origin.TORCHRUN_ENVIRONMENT} if self.torchrun_variable else {}
        return {self.prefix + name: Origin.ENVIRONMENT, **torchrun}
