"""From a value back to what is written: the inverse of reading one."""

from __future__ import annotations

import json
from typing import Any

from hpc_launch.settings.option_values import ConsoleChoice, CpuBind, NodeRange, StreamChoice


def toml_value(value: Any) -> Any:
    """A value of an option in the types that TOML and JSON have; None where there is none."""
    if isinstance(value, NodeRange | CpuBind):
        return int(str(value)) if str(value).isdecimal() else str(value)
    if isinstance(value, range):
        return f"{value.start}-{value.stop - 1}"
    if isinstance(value, StreamChoice):
        return ",".join(f"{rank}:{int(some)}" for rank, some in value.per_rank) or int(value.everyone)
    if isinstance(value, ConsoleChoice):
        return list(value.ranks) if value.mode == "ranks" else value.mode
    if isinstance(value, tuple):
        return ["=".join(item) if isinstance(item, tuple) else item for item in value]
    return value


def text(value: Any) -> str:
    """A value of an option as the command line has it."""
    found = toml_value(value)
    return ",".join(map(str, found)) if isinstance(found, list) else str(found)


def settings_line(key: str, value: Any) -> str:
    """The line of a settings file that sets an option; a comment where there is nothing to set."""
    if value is None:
        return f"# {key} is not set"
    # TOML's strings, lists and numbers are JSON's, but for this one character.
    return f"{key} = {json.dumps(toml_value(value), ensure_ascii=False)}".replace("\x7f", "\\u007f")
