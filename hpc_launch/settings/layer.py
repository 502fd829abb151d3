"""What one source says of options: the command line, the variables, or one table of a settings file. Pure."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from hpc_launch.errors import UsageError
from hpc_launch.settings.option import OptionSpec
from hpc_launch.settings.option_values import Origin
from hpc_launch.settings.site_policy import NO_POLICY, POLICY, SitePolicy, policy_of
from hpc_launch.settings.table import specs

# The table that is not about runs: its keys are options of `hpc-launch submit`, which reads it (submission.resolution).
SUBMIT = "submit"


@dataclass(frozen=True)
class Table:
    """A table of a settings file, as it is written.

    Attributes:
        file: the file.
        name: its name, with a dot at the end; empty for the file's top level.
        content: its keys and values.
    """

    file: str
    name: str
    content: Mapping[str, Any]

    def place(self, key: str) -> str:
        """Where a key is, for messages."""
        return f"{self.file}: {self.name}{key}"

    def below(self, key: str, form: str = "") -> Table:
        """The table that a key of this one is; an empty one where there is none.

        Raises:
            UsageError: for a key that is no table; the message says in which form one is written.
        """
        content = self.content.get(key, {})
        if not isinstance(content, dict):
            raise UsageError(f"{self.place(key)} is not a table: write [{self.name}{form or key}]")
        return Table(self.file, f"{self.name}{key}.", content)


@dataclass(frozen=True)
class LayerEntry:
    """What a source says of one option.

    Attributes:
        place: the flag, the variable, or the file and the key in it.
        value: what is written there; it is read when it counts.
    """

    place: str
    value: Any


@dataclass(frozen=True)
class SettingsLayer:
    """What one source says.

    Attributes:
        origin: whose word it is.
        entries: what it says, by the options' names.
        table: the table of a file that says it.
        policy: what the site allows, in the site's own file.
    """

    origin: Origin
    entries: Mapping[str, LayerEntry]
    table: Table = Table("", "", {})
    policy: SitePolicy = NO_POLICY


def command_layers(
    options: Mapping[str, OptionSpec], flags: Mapping[str, Any], environ: Mapping[str, str]
) -> list[SettingsLayer]:
    """What the command line and the variables say of options, the strongest first. An empty variable says nothing."""
    found: dict[Origin, dict[str, LayerEntry]] = {
        origin: {} for origin in (Origin.FLAG, Origin.ENVIRONMENT, Origin.TORCHRUN_ENVIRONMENT)
    }
    found[Origin.FLAG] = {name: LayerEntry(options[name].flag, value) for name, value in flags.items()}
    for name, spec in options.items():
        for variable, origin in spec.variables.items():
            if environ.get(variable):
                found[origin][name] = LayerEntry(variable, environ[variable])
    return [SettingsLayer(origin, entries) for origin, entries in found.items()]


def layer_of(origin: Origin, table: Table, others: Collection[str] = ()) -> SettingsLayer:
    """What a table of a settings file says of runs; `others` are keys of it that are no options.

    Raises:
        UsageError: as `entries_of`, and for a policy in another file than the site's.
    """
    policy = _policy(origin, table)
    return SettingsLayer(origin, entries_of(table, specs(), {SUBMIT, POLICY, *others}), table, policy)


def entries_of(table: Table, options: Mapping[str, OptionSpec], others: Collection[str] = ()) -> dict[str, LayerEntry]:
    """The options that a table of a settings file sets; `others` are keys of it that are none.

    Raises:
        UsageError: for a key that is no option, one that files cannot set, and an option that is set twice.
    """
    known = {key: name for name, spec in options.items() for key in spec.keys}
    keys: dict[str, str] = {}
    for key in table.content:
        if key in others:
            continue
        name = known.get(key.replace("_", "-"))
        if name is None:
            settable = [key for key, name in known.items() if not options[name].not_in_files]
            near = difflib.get_close_matches(key.replace("_", "-"), settable, n=1)
            hint = f"; did you mean '{near[0]}'?" if near else ""
            raise UsageError(f"{table.file}: there is no option '{table.name}{key}'{hint}")
        spec = options[name]
        if spec.not_in_files:
            raise UsageError(
                f"{table.place(key)} cannot be set in a file, because {spec.not_in_files}: give {spec.flag} or "
                f"{spec.variable}",
                option=spec.flag,
            )
        if name in keys:
            raise UsageError(f"{table.place(keys[name])} and {key} are the same option: keep one of them")
        keys[name] = key
    return {name: LayerEntry(table.place(key), table.content[key]) for name, key in keys.items()}


def _policy(origin: Origin, table: Table) -> SitePolicy:
    """What the site allows; a table of that name in any other place would look as if it counted."""
    if POLICY not in table.content:
        return NO_POLICY
    if origin is not Origin.SITE or table.name:
        raise UsageError(
            f"{table.file}: [{table.name}{POLICY}] counts in /etc/hpc-launch/config.toml only, at its top level: take "
            "it out"
        )
    return policy_of(table.file, table.content[POLICY])
