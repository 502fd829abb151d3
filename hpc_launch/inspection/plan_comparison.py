"""The plans of a job's runs, with where each value came from, and what changed between runs. Pure."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from hpc_launch import redaction
from hpc_launch.records.history_model import Run
from hpc_launch.records.plan_record import RecordedValue


@dataclass(frozen=True)
class PlanValue:
    """A value of a plan. `before` has what it was in the runs before, where that was another."""

    name: str
    value: str
    origin: str
    before: tuple[str, ...] = ()


@dataclass(frozen=True)
class PlanView:
    """The plan of the last run.

    Attributes:
        command: the script and its arguments, as a shell reads them.
        derived: what was derived.
        settings: what was set.
        environment: variables that matter for training.
        software: versions.
        warnings: what looked wrong.
        runs: how many runs there were.
    """

    command: str
    derived: tuple[PlanValue, ...]
    settings: tuple[PlanValue, ...]
    environment: tuple[PlanValue, ...]
    software: tuple[PlanValue, ...]
    warnings: tuple[str, ...]
    runs: int


def compare_plans(runs: Sequence[Run]) -> PlanView | None:
    """Look at the plans of all runs; None if no run is recorded."""
    if not runs:
        return None
    plans = [run.plan for run in runs]
    last = plans[-1]
    return PlanView(
        command=shlex.join(redaction.redacted_arguments(last.script)),
        derived=_values([_told(plan.derived) for plan in plans]),
        settings=_values([_told(plan.settings) for plan in plans]),
        environment=_values([_plain(plan.environment) for plan in plans]),
        software=_values([_plain({**run.versions, **plan.software}) for run, plan in zip(runs, plans, strict=True)]),
        warnings=last.warnings,
        runs=len(runs),
    )


def _told(values: Mapping[str, RecordedValue]) -> dict[str, tuple[str, str]]:
    return {name: (redaction.redacted_text(entry.value), entry.origin) for name, entry in values.items()}


def _plain(values: Mapping[str, str | float]) -> dict[str, tuple[str, str]]:
    return {
        name: (redaction.redacted_text(str(value)), "")
        for name, value in values.items()
        if not redaction.names_secret_variable(name)
    }


def _values(told: Sequence[Mapping[str, tuple[str, str]]]) -> tuple[PlanValue, ...]:
    """The last run's values, and of other runs' what was different."""
    names = dict.fromkeys(name for values in reversed(told) for name in values)
    return tuple(_compared(names, told))


def _compared(names: Mapping[str, None], told: Sequence[Mapping[str, tuple[str, str]]]) -> Iterator[PlanValue]:
    readable = [values for values in told if values]
    for name in names:
        all_of_them = [values.get(name, ("", "")) for values in readable]
        value, origin = all_of_them[-1]
        before = tuple(dict.fromkeys(text or "not set" for text, _ in all_of_them if text != value))
        yield PlanValue(name, value, origin, before)
