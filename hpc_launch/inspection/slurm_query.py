"""What Slurm says of a job is asked here, by whoever looks at one job, and not all the time."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from shutil import which

from hpc_launch.inspection.job_search import SlurmStep
from hpc_launch.inspection.job_state import SlurmAnswer
from hpc_launch.slurm import controller
from hpc_launch.slurm.job import OVER, WAITING

# Seconds that the controller may take, and between two questions of one who keeps asking.
_PATIENCE = 5.0
_PAUSE = 15.0


def ask(step: SlurmStep, *, quiet: bool, patience: float = _PATIENCE) -> SlurmAnswer:
    """Ask Slurm about a job, the controller first and then accounting.

    Args:
        step: which.
        quiet: it gives no signs of life, so that it matters whether its step is still there.
        patience: seconds that each answer may take.
    """
    if which("scontrol") is None:
        return SlurmAnswer(blind="there is no scontrol here")
    records = controller.ask_jobs(step.job, patience)
    if records is None:
        return SlurmAnswer(blind="Slurm does not answer")
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
            self._next = time.monotonic() + _PAUSE
        return self._last
