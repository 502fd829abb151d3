"""What can be asked of hpc-launch, and by whom: flags, variables and files become one value.

The options are one table (`table`), whose texts become values (`readers`, `values`); `files` finds what files say
(`layer`), `resolution` decides whose word counts, and `writing` is the way back.
"""

from hpc_launch.settings.readers import PROCESS_WORDS, REQUEUE_REASONS
from hpc_launch.settings.resolution import resolve
from hpc_launch.settings.table import PREFIX, TORCHRUN_PREFIX, OptionSpec, Settings, specs
from hpc_launch.settings.values import CONSOLE_AUTO_RANKS, Console, CpuBind, NodeRange, Origin, StreamChoice, Streams

__all__ = [
    "CONSOLE_AUTO_RANKS",
    "PREFIX",
    "PROCESS_WORDS",
    "REQUEUE_REASONS",
    "TORCHRUN_PREFIX",
    "Console",
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
