"""What somebody asked of a submission: flags, variables and the `[submit]` tables of files become one value. Pure.

Read when something is submitted, and not before: a mistake in these tables is no reason for a running job to fail.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hpc_launch.errors import UsageError
from hpc_launch.settings import Origin
from hpc_launch.settings.layer import SUBMIT, Layer, shown
from hpc_launch.slurm.times import read_time_limit
from hpc_launch.submission.options import (
    GPU_OPTIONS,
    LIMITS,
    MAX_TIME,
    OPTIONS,
    Kind,
    SubmitOption,
    asks_for_gpus,
    replaced_by,
)

_PARTITIONS = "partitions"

# What a table of a partition cannot say: it is chosen by the first, and the others are no matter of a partition.
_NOT_OF_A_PARTITION = frozenset({"partition", "keep-environment", "job-name", "chdir"})

Value = str | tuple[str, ...] | None


@dataclass(frozen=True)
class Said:
    """What the strongest voice says of an option.

    Attributes:
        value: a text; several where an option has several; None to leave Slurm's option out, template or not.
        origin: whose word it is.
        place: the flag, the variable, or the file and the key in it.
        rank: 0 for the strongest voice, and more for weaker ones.
    """

    value: Value
    origin: Origin
    place: str
    rank: int


@dataclass(frozen=True)
class Asked:
    """Everything that was asked, by the options' names; limits of the partition are among it."""

    said: Mapping[str, Said] = field(default_factory=dict)

    def slurm(self) -> dict[str, str | None]:
        """Slurm's options; None where one is to be left out, and empty for one that has no value."""
        options = [name for name in OPTIONS if name in self.said and OPTIONS[name].slurm]
        values = {name: self.said[name].value for name in options}
        return {name: value for name, value in values.items() if value is None or isinstance(value, str)}

    def text(self, name: str) -> str:
        """The value of an option that has one; empty where nobody gave it."""
        value = self.said[name].value if name in self.said else ""
        return value if isinstance(value, str) else ""

    def many(self, name: str) -> tuple[str, ...]:
        """The values of an option that has several."""
        value = self.said[name].value if name in self.said else ()
        return value if isinstance(value, tuple) else ()

    def limits(self) -> dict[str, Said]:
        """The limits of the partition."""
        return {name: self.said[name] for name in LIMITS if name in self.said}


def resolve(
    flags: Mapping[str, Any], environ: Mapping[str, str], layers: Sequence[Layer], partition: str = ""
) -> Asked:
    """Hear everybody: flag, HPC_LAUNCH_SUBMIT_*, profile, project, user, site.

    Args:
        flags: what the command line says, by name; only what was really given.
        environ: the environment.
        layers: what files say (`files.load`), the strongest first.
        partition: the partition that the job will be in, for what files say of it; unknown where it is empty. In one
            file, that counts before what is said for all.

    Raises:
        UsageError: for a key that is no option, and a value that an option cannot have; the message says where.
    """
    said: dict[str, Said] = {}
    for rank, (origin, content) in enumerate(_voices(flags, environ, layers, partition)):
        for name, (place, value) in content.items():
            if name not in said:
                said[name] = Said(_read(name, value, place), origin, place, rank)
    return Asked(_without_contradicted(said))


def overview(environ: Mapping[str, str], layers: Sequence[Layer]) -> dict[str, Said]:
    """What variables and files say of submissions, by the key below `submit`: `partition`, `partitions.gpu.max-time`.

    Raises:
        UsageError: as `resolve`.
    """
    found = dict(resolve({}, environ, layers).said)
    for rank, layer in enumerate(layers):
        for partition, (table, content) in _partitions(layer).items():
            for name, (place, value) in _table(layer, table, content, of_a_partition=True).items():
                said = Said(_read(name, value, place), layer.origin, place, rank)
                found.setdefault(f"{_PARTITIONS}.{partition}.{name}", said)
    return found


def plain(name: str, value: Value) -> bool | int | str | list[str]:
    """A value as a settings file has it."""
    if name in LIMITS and name != MAX_TIME:
        return int(str(value))
    option = OPTIONS.get(name)
    if option is not None and option.kind is Kind.SWITCH:
        return value == ""
    return list(value) if isinstance(value, tuple) else value or ""


# --- who speaks


_Content = Mapping[str, tuple[str, Any]]


def _voices(
    flags: Mapping[str, Any], environ: Mapping[str, str], layers: Sequence[Layer], partition: str
) -> Iterator[tuple[Origin, _Content]]:
    yield Origin.FLAG, {name: (OPTIONS[name].flag, value) for name, value in flags.items()}
    variables = {name: option.variable for name, option in OPTIONS.items() if environ.get(option.variable)}
    yield Origin.ENVIRONMENT, {name: (variable, environ[variable]) for name, variable in variables.items()}
    for layer in layers:
        named = _partitions(layer)
        if partition in named:
            yield layer.origin, _table(layer, *named[partition], of_a_partition=True)
        yield layer.origin, _table(layer, f"{layer.table}{SUBMIT}.", layer.submit, of_a_partition=False)


def _partitions(layer: Layer) -> dict[str, tuple[str, Mapping[str, Any]]]:
    """The tables of partitions, by the partition's name, each with its own name."""
    content = layer.submit.get(_PARTITIONS, {})
    whole = f"{layer.table}{SUBMIT}.{_PARTITIONS}"
    found: dict[str, tuple[str, Mapping[str, Any]]] = {}
    for name, table in [("", content)] if not isinstance(content, dict) else content.items():
        if not isinstance(table, dict):
            where = f"{whole}.{name}" if name else whole
            raise UsageError(f"{layer.file}: {where} is not a table: write [{whole}.NAME]")
        found[name] = (f"{whole}.{name}.", table)
    return found


def _table(layer: Layer, table: str, content: Mapping[str, Any], *, of_a_partition: bool) -> _Content:
    """The options that a table has, by name, each with its place."""
    known = {*OPTIONS, *LIMITS} - _NOT_OF_A_PARTITION if of_a_partition else {*OPTIONS}
    found: dict[str, tuple[str, Any]] = {}
    for key, value in content.items():
        name = key.replace("_", "-")
        if key == _PARTITIONS and not of_a_partition:
            continue
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean '{near[0]}'?" if near else ""
            raise UsageError(f"{layer.file}: there is no option '{table}{key}'{hint}")
        if name in found:
            raise UsageError(f"{layer.file}: {table}{key} is there twice: keep one of them")
        if isinstance(value, str) and ((name == "venv" and value) or (name == "template" and "/" in value)):
            value = str(Path(layer.file).parent / Path(value).expanduser())  # noqa: PLW2901 - as it is meant there
        found[name] = (f"{layer.file}: {table}{key}", value)
    return found


def _without_contradicted(said: Mapping[str, Said]) -> dict[str, Said]:
    """Leave out what a stronger voice has replaced by another option: a file's --gres, where a flag has --gpus."""
    return {
        name: item
        for name, item in said.items()
        if not any(item.rank > said[other].rank for other in _rivals(name, said) if other in said)
    }


def _rivals(name: str, said: Mapping[str, Said]) -> frozenset[str]:
    gres = said["gres"].value if "gres" in said else None
    if isinstance(gres, str) and asks_for_gpus(gres) and name in GPU_OPTIONS | {"gres"}:
        return (GPU_OPTIONS | {"gres"}) - {name}
    return replaced_by(name) - {name} if name in OPTIONS else frozenset()


# --- from what is written to a value


def _read(name: str, given: Any, place: str) -> Value:
    """The value of an option, of a text as flags and variables have it, or of what TOML has."""
    option = OPTIONS.get(name)
    value = _limit(name, given) if option is None else _READERS[option.kind](option, given)
    if value is _WRONG or any("\0" in text for text in ([value] if isinstance(value, str) else value or ())):
        expected = (
            _EXPECTED[option.kind] if option else "a time limit" if name == MAX_TIME else "a whole number from 1 on"
        )
        raise UsageError(f"{place}: {shown(given)} is not {expected}", option=option.flag if option else "")
    return value


# What no value is.
_WRONG = ("\0",)

_EXPECTED = {
    Kind.VALUE: "a string or a whole number",
    Kind.SWITCH: "true or false",
    Kind.LIST: "a string or a list of strings",
    Kind.WORDS: "a list of strings",
    Kind.LINES: "a list of strings",
}


def _limit(name: str, given: Any) -> Value:
    text = str(given)
    if name == MAX_TIME:
        return text if type(given) in (int, str) and read_time_limit(text) is not None else _WRONG
    return text if type(given) is int and given > 0 else _WRONG


def _value(option: SubmitOption, given: Any) -> Value:
    if type(given) not in (int, str):
        return _WRONG
    return str(given) or (None if option.slurm else "")


def _switch(_option: SubmitOption, given: Any) -> Value:
    word = given.strip().lower() if isinstance(given, str) else given
    if word in (True, "1", "true", "yes", "on"):
        return ""
    return None if word in (False, "0", "false", "no", "off") else _WRONG


def _list(option: SubmitOption, given: Any) -> Value:
    if isinstance(given, (list, tuple)):
        fine = all(type(item) in (int, str) for item in given)
        return (",".join(map(str, given)) or None) if fine else _WRONG
    return _value(option, given)


def _words(_option: SubmitOption, given: Any) -> Value:
    return _several(given, ",")


def _lines(_option: SubmitOption, given: Any) -> Value:
    return _several(given, "\n")


def _several(given: Any, separator: str) -> Value:
    if isinstance(given, str):
        return tuple(part.strip() for part in given.split(separator) if part.strip())
    if isinstance(given, (list, tuple)) and all(isinstance(item, str) for item in given):
        return tuple(given)
    return _WRONG


_READERS = {Kind.VALUE: _value, Kind.SWITCH: _switch, Kind.LIST: _list, Kind.WORDS: _words, Kind.LINES: _lines}
