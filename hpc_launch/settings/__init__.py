"""What can be asked of hpc-launch, and by whom: flags, variables and files become one value.

An option of any command is an `option.OptionSpec`; those of runs are in `table`, those of submissions in
`submission.submit_options`. What is written of them becomes values by `readers`; `settings_files` finds what files say
(`layer`), `resolution` decides whose word counts, and `toml_writer` is the way back.
"""

from hpc_launch.settings.option import OptionSpec
from hpc_launch.settings.option_values import (
    CONSOLE_AUTO_RANKS,
    ConsoleChoice,
    CpuBind,
    NodeRange,
    Origin,
    StreamChoice,
    Streams,
)
from hpc_launch.settings.readers import PROCESS_WORDS, REQUEUE_REASONS
from hpc_launch.settings.resolution import resolve
from hpc_launch.settings.table import Settings, specs

__all__ = [
    "CONSOLE_AUTO_RANKS",
    "PROCESS_WORDS",
    "REQUEUE_REASONS",
    "ConsoleChoice",
    "CpuBind",
    "NodeRange",
    "OptionSpec",
    "Origin",
    "Settings",
    "StreamChoice",
    "Streams",
    "resolve",
    "specs",
]
