"""What one table of one settings file says: its keys are options, its TOML values are natural to them. Pure."""

from __future__ import annotations

import difflib
import json
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hpc_launch.errors import UsageError
from hpc_launch.settings import readers
from hpc_launch.settings.policy import NO_POLICY, POLICY, Policy, policy_of
from hpc_launch.settings.readers import Unreadable
from hpc_launch.settings.table import PREFIX, Settings, specs
from hpc_launch.settings.values import Console, NodeRange, Origin, StreamChoice

# The types that TOML has for the values of an option, besides a string; `list` is one of what stands beside it.
_NATURAL: dict[type, frozenset[type]] = {
    bool: frozenset({bool}),
    int: frozenset({int}),
    float: frozenset({int, float}),
    NodeRange: frozenset({int}),
    StreamChoice: frozenset({int}),
    range: frozenset({int}),
    Console: frozenset({int, list}),
}
# The table that is not about runs: its keys are options of `hpc-launch submit`, which reads it (submission.options).
SUBMIT = "submit"

_WORDS = {bool: "true or false", int: "a whole number", float: "a number", list: "a list", str: "a string"}


@dataclass(frozen=True)
class Said:
    """A TOML value, and its key as it is written there."""

    key: str
    value: Any


@dataclass(frozen=True)
class Layer:
    """What one table of one file says.

    Attributes:
        origin: whose word it is.
        file: the file.
        table: the table in it, with a dot at the end; empty for the file's top level.
        said: the values by field name.
        submit: the table below it that says how jobs are submitted, as it is written.
        policy: what the site allows, in the site's own file.
    """

    origin: Origin
    file: str
    table: str
    said: Mapping[str, Said]
    submit: Mapping[str, Any] = field(default_factory=dict)
    policy: Policy = NO_POLICY

    def place(self, name: str) -> str:
        """Where field `name` is set, for messages."""
        return f"{self.file}: {self.table}{self.said[name].key}"


def layer_of(origin: Origin, file: str, table: str, content: Mapping[str, Any]) -> Layer:
    """Find the options that a table sets. Their values are read when they are needed.

    Raises:
        UsageError: for a key that is no option, one that files cannot set, an option that is set twice, or a policy
            in another file than the site's.
    """
    known = {key: name for name, spec in specs().items() for key in spec.keys}
    said: dict[str, Said] = {}
    submit = content.get(SUBMIT, {})
    if not isinstance(submit, dict):
        raise UsageError(f"{file}: {table}{SUBMIT} is not a table: write [{table}{SUBMIT}]")
    policy = _policy(origin, file, table, content)
    for key, value in content.items():
        if key in (SUBMIT, POLICY):
            continue
        name = known.get(key.replace("_", "-"))
        if name is None:
            settable = [key for key, name in known.items() if not specs()[name].not_in_files]
            near = difflib.get_close_matches(key.replace("_", "-"), settable, n=1)
            raise UsageError(
                f"{file}: there is no option '{table}{key}'" + (f"; did you mean '{near[0]}'?" if near else "")
            )
        spec = specs()[name]
        if spec.not_in_files:
            raise UsageError(
                f"{file}: {table}{key} cannot be set in a file, because {spec.not_in_files}: give {spec.flag} or "
                f"{PREFIX}{name.upper()}",
                option=spec.flag,
            )
        if name in said:
            raise UsageError(f"{file}: {table}{said[name].key} and {key} are the same option: keep one of them")
        said[name] = Said(key, value)
    return Layer(origin, file, table, said, submit, policy)


def _policy(origin: Origin, file: str, table: str, content: Mapping[str, Any]) -> Policy:
    """What the site allows; a table of that name in any other place would look as if it counted."""
    if POLICY not in content:
        return NO_POLICY
    if origin is not Origin.SITE or table:
        raise UsageError(
            f"{file}: [{table}{POLICY}] counts in /etc/hpc-launch/config.toml only, at its top level: take it out"
        )
    return policy_of(file, content[POLICY])


def value_of(name: str, given: Any) -> Any:
    """The value of an option: of a text, as flags and variables have it, or of a TOML value.

    Raises:
        Unreadable: for one that it cannot have.
    """
    spec = specs()[name]
    if isinstance(given, str):
        if "\0" in given:
            raise Unreadable("text that a process can be given")
        return spec.read(given)
    kinds = _kinds(name)
    if isinstance(given, list) and list in kinds:
        return _listed(name, given, kinds)
    if type(given) not in kinds:
        raise Unreadable(" or ".join(word for kind, word in _WORDS.items() if kind in kinds))
    try:
        return given if isinstance(given, bool) else spec.read(str(given))
    except ValueError as error:
        raise error if isinstance(error, Unreadable) else Unreadable("a number of that size") from None


def _listed(name: str, given: list[Any], kinds: frozenset[type]) -> Any:
    """The value of a list: what stands between its commas on the command line."""
    spec = specs()[name]
    if not all(type(item) in kinds - {list} for item in given) or any("\0" in str(item) for item in given):
        raise Unreadable("a list of whole numbers or strings" if int in kinds else "a list of strings")
    if not given and Settings.__dataclass_fields__[name].default == ():
        return ()
    if spec.read is readers.words:
        return tuple(given)  # which may have commas of their own
    if spec.read is readers.variables:
        return tuple(map(readers.variable, given))  # as before
    return spec.read(",".join(map(str, given)))


def _kinds(name: str) -> frozenset[type]:
    """The types of TOML values that an option can have, which follow from the type of its field."""
    hint = typing.get_type_hints(Settings)[name]
    found: set[type] = {str}
    for kind in typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,):
        if typing.get_origin(kind) is tuple:
            found |= {list, *(item for item in typing.get_args(kind) if item is int)}
        found |= _NATURAL.get(kind, frozenset())
    return frozenset(found)


def shown(given: Any) -> str:
    """A value as it was given, more or less, for messages."""
    if isinstance(given, str):
        return f"'{given}'"
    try:
        return json.dumps(given, default=str, ensure_ascii=False)
    except ValueError:
        return "a very large number"
