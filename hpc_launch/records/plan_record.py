"""The plan of a run as `job.json` has it: its writer (`plan.launch_plan`) and its readers share these values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class RecordedValue:
    """A value of a plan, and who said it."""

    value: str = field(metadata={"check": str})
    origin: str = ""


@dataclass(frozen=True)
class PlanRecord:
    """The plan of a run, as its `job.json` has it.

    Attributes:
        run_id: its name.
        script: the training script, its arguments following.
        hosts: the nodes, as a host list.
        derived: what was derived, by name.
        settings: what was asked for, by name.
        warnings: what looked wrong, a line each.
        software: versions, by name.
        environment: variables that matter for training.
    """

    run_id: str = ""
    script: tuple[str, ...] = ()
    hosts: str = ""
    derived: Mapping[str, RecordedValue] = field(default_factory=dict)
    settings: Mapping[str, RecordedValue] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    software: Mapping[str, str | float] = field(default_factory=dict)
    environment: Mapping[str, str | float] = field(default_factory=dict)
