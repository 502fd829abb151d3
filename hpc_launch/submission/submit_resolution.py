"""What was asked of a submission: flags, variables and the `[submit]` tables of files become one value. Pure.

Read when something is submitted, and not before: a mistake in these tables is no reason for a running job to fail.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hpc_launch.home import expand_home
from hpc_launch.settings.layer import SUBMIT, LayerEntry, SettingsLayer, Table, command_layers, entries_of
from hpc_launch.settings.resolution import Resolved, resolve_options
from hpc_launch.submission.submit_options import (
    GPU_OPTIONS,
    LIMITS,
    OF_A_PARTITION,
    OF_SBATCH,
    OPTIONS,
    asks_for_gpus,
    replaced_by,
)

_PARTITIONS = "partitions"


@dataclass(frozen=True)
class SubmitSettings:
    """Everything that was asked of a submission, by the options' names; limits of the partition are among it."""

    resolved: Mapping[str, Resolved] = field(default_factory=dict)

    def slurm(self) -> dict[str, str | None]:
        """Slurm's options as sbatch has them: empty for one without a value, and None for one that is to be left out.

        The template may have what is to be left out.
        """
        values = {name: self.resolved[name].value for name in OPTIONS if name in self.resolved and name in OF_SBATCH}
        return {name: "" if value is True else value or None for name, value in values.items()}

    def text(self, name: str) -> str:
        """The value of an option that has one; empty where nobody gave it."""
        return str(self.resolved[name].value) if name in self.resolved else ""

    def many(self, name: str) -> tuple[str, ...]:
        """The values of an option that has several."""
        return tuple(self.resolved[name].value) if name in self.resolved else ()

    def limits(self) -> dict[str, Resolved]:
        """The limits of the partition."""
        return {name: self.resolved[name] for name in LIMITS if name in self.resolved}


def resolve_submit(
    flags: Mapping[str, Any], environ: Mapping[str, str], layers: Sequence[SettingsLayer], partition: str = ""
) -> SubmitSettings:
    """Resolve the options of a submission: flag, HPC_LAUNCH_SUBMIT_*, profile, project, user, site.

    Args:
        flags: what the command line says, by name; only what was really given.
        environ: the environment.
        layers: what files say (`files.load`), the strongest first.
        partition: the partition that the job will be in, for what files say of it; unknown where it is empty. In one
            file, that counts before what is said for all.

    Raises:
        UsageError: for a key that is no option, and a value that an option cannot have; the message says where.
    """
    said = (*command_layers(OPTIONS, flags, environ), *_of_files(layers, partition))
    return SubmitSettings(_without_contradicted(resolve_options({**OPTIONS, **OF_A_PARTITION}, said)))


def submit_overview(environ: Mapping[str, str], layers: Sequence[SettingsLayer]) -> dict[str, Resolved]:
    """What variables and files say of submissions, by the key below `submit`: `partition`, `partitions.gpu.max-time`.

    Raises:
        UsageError: as `resolve_submit`.
    """
    found = dict(resolve_submit({}, environ, layers).resolved)
    for layer in layers:
        for partition, table in _partitions(layer).items():
            said = resolve_options(OF_A_PARTITION, [_of_a_partition(layer, table)])
            for name, item in said.items():
                found.setdefault(f"{_PARTITIONS}.{partition}.{name}", item)
    return found


def _of_files(layers: Sequence[SettingsLayer], partition: str) -> Iterator[SettingsLayer]:
    """What the `[submit]` tables say, and before each what it says of the partition."""
    for layer in layers:
        named = _partitions(layer)
        if partition in named:
            yield _of_a_partition(layer, named[partition])
        table = layer.table.below(SUBMIT)
        yield SettingsLayer(layer.origin, _placed(table, entries_of(table, OPTIONS, {_PARTITIONS})))


def _of_a_partition(layer: SettingsLayer, table: Table) -> SettingsLayer:
    return SettingsLayer(layer.origin, _placed(table, entries_of(table, OF_A_PARTITION)))


def _partitions(layer: SettingsLayer) -> dict[str, Table]:
    """The tables of partitions, by the partition's name."""
    tables = layer.table.below(SUBMIT).below(_PARTITIONS, f"{_PARTITIONS}.NAME")
    return {name: tables.below(name) for name in tables.content}


def _placed(table: Table, entries: Mapping[str, LayerEntry]) -> dict[str, LayerEntry]:
    """What a table says; files that are named in it are looked for from where it is itself."""
    found = dict(entries)
    for name in found.keys() & {"venv", "template"}:
        value = found[name].value
        if isinstance(value, str) and value and (name == "venv" or "/" in value):
            found[name] = replace(found[name], value=str(Path(table.file).parent / expand_home(value)))
    return found


def _without_contradicted(resolved: Mapping[str, Resolved]) -> dict[str, Resolved]:
    """Leave out what a stronger source has replaced by another option: a file's --gres, where a flag has --gpus."""
    return {
        name: item
        for name, item in resolved.items()
        if not any(item.rank > resolved[other].rank for other in _rivals(name, resolved) if other in resolved)
    }


def _rivals(name: str, resolved: Mapping[str, Resolved]) -> frozenset[str]:
    gres = resolved["gres"].value if "gres" in resolved else ""
    if asks_for_gpus(gres) and name in GPU_OPTIONS | {"gres"}:
        return (GPU_OPTIONS | {"gres"}) - {name}
    return replaced_by(name) - {name}
