"""What Slurm says of a job, or of all tasks of a job array, is asked here, and not all the time."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from shutil import which

from hpc_launch.inspection.job_search import SlurmStep
from hpc_launch.inspection.job_state import SlurmAnswer
from hpc_launch.slurm import controller
from hpc_launch.slurm.job import OVER, WAITING, JobRecord, task_numbers

# Seconds that the controller may take.
_PATIENCE = 5.0

PAUSE = 15.0
"""Seconds between two questions of one who keeps asking."""

_NO_SCONTROL = "there is no scontrol here"
_NO_ANSWER = "Slurm does not answer"


def ask(step: SlurmStep, *, quiet: bool, patience: float = _PATIENCE) -> SlurmAnswer:
    """Ask Slurm about a job, the controller first and then accounting.

    Args:
        step: which.
        quiet: it gives no signs of life, so that it matters whether its step is still there.
        patience: seconds that each answer may take.
    """
    if which("scontrol") is None:
        return SlurmAnswer(blind=_NO_SCONTROL)
    records = controller.ask_jobs(step.job, patience)
    if records is None:
        return SlurmAnswer(blind=_NO_ANSWER)
    record = next((record for record in records if record.label == step.job), next(iter(records), None))
    if record is None:
        return SlurmAnswer(next(iter(controller.ask_accounting(step.job, patience)), None))
    if record.state == "CANCELLED":
        told = next(iter(controller.ask_accounting(step.job, patience)), record)
        return SlurmAnswer(replace(record, cancelled_by=told.cancelled_by))
    if not quiet or step.step is None or record.state in OVER | WAITING:
        return SlurmAnswer(record)
    steps = controller.ask_steps(record.job_id, patience)
    there = None if steps is None else any(one.step_id.endswith(f".{step.step}") for one in steps)
    return SlurmAnswer(record, step=there)


@dataclass(frozen=True)
class ArrayAnswer:
    """What Slurm says of the tasks of a job array.

    Attributes:
        records: of each task that it knows, by number.
        blind: why nobody can ask; empty where Slurm has answered.
    """

    records: Mapping[int, JobRecord] = field(default_factory=dict)
    blind: str = ""


def ask_array(array: str, known: Collection[int], *, patience: float = _PATIENCE) -> ArrayAnswer:
    """Ask Slurm about a job array: the controller, and accounting about tasks that the controller has forgotten.

    Args:
        array: the number of the array.
        known: tasks that there are, or may be: the controller forgets each of them some minutes after its end.
        patience: seconds that each answer may take.
    """
    if which("scontrol") is None:
        return ArrayAnswer(blind=_NO_SCONTROL)
    answer = controller.ask_jobs(array, patience)
    if answer is None:
        return ArrayAnswer(blind=_NO_ANSWER)
    records = tasks_of(array, answer)
    cancelled = any(record.state == "CANCELLED" for record in records.values())
    if not records or cancelled or not records.keys() >= set(known):
        told = tasks_of(array, controller.ask_accounting(array, patience))
        by = {number: record.cancelled_by for number, record in told.items()}
        records = {
            **told,
            **{number: replace(record, cancelled_by=by.get(number, "")) for number, record in records.items()},
        }
    return ArrayAnswer(records)


def tasks_of(array: str, records: Iterable[JobRecord]) -> dict[int, JobRecord]:
    """The record of each task of an array: Slurm has one for all of those that have never begun. Pure."""
    found = {}
    for record in records:
        for number in task_numbers(record.task):
            label = f"{array}_{number}"
            # The name of the output file is that of a task which there is not.
            one = record if record.task == str(number) else replace(record, task=str(number), output="")
            found[number] = replace(one, label=label)
    return found


class SlurmQuery:
    """Asks Slurm, but not all the time.

    Args:
        step: about what; None where it is no job of Slurm's.
        asked: asks.
    """

    def __init__(self, step: SlurmStep | None, asked: Callable[..., SlurmAnswer] = ask) -> None:
        self._step = step
        self._ask = asked
        self._last: SlurmAnswer | None = None
        self._next = 0.0

    def look(self, *, quiet: bool) -> SlurmAnswer | None:
        """What Slurm says, or said a moment ago; None where it is no job of Slurm's."""
        if self._step is not None and time.monotonic() >= self._next:
            self._last = self._ask(self._step, quiet=quiet)
            self._next = time.monotonic() + PAUSE
        return self._last
