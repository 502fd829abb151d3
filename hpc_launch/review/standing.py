"""How a job stands: by what it has written down itself, and by what Slurm says of it.

What cannot be seen is not there to be guessed: a job that nobody can ask about is neither running nor over, unless it
has said so itself.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from shutil import which

from hpc_launch.records import words
from hpc_launch.records.model import Attempt, History, Run
from hpc_launch.review.find import SlurmStep
from hpc_launch.slurm import controller
from hpc_launch.slurm.job import OVER, WAITING, JobRecord

# A run that has written anything within these seconds lives: if nothing else happens, its agents say so every ten
# minutes (agent/recorder.py), and one such sign may be missed.
FRESH = 1300.0

# Seconds that the controller may take, and between two questions of one who keeps asking.
_PATIENCE = 5.0
_PAUSE = 15.0


class State(str, Enum):
    """How a job stands."""

    WAITING = "waiting"
    RUNNING = "running"
    REQUEUED = "requeued"
    DONE = "done"
    FAILED = "failed"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Seen:
    """What Slurm says of a job.

    Attributes:
        record: the job; None where Slurm does not know it any more, or nobody can ask.
        blind: why nobody can ask; empty where Slurm has answered.
        step: whether the step still runs; None where that was not asked.
    """

    record: JobRecord | None = None
    blind: str = ""
    step: bool | None = None


@dataclass(frozen=True)
class Standing:
    """How a job stands.

    Attributes:
        state: in a word.
        words: and in a few, for a person.
        over: nothing more comes of it.
        status: its exit status; None as long as it has none, or nobody knows it.
    """

    state: State
    words: str
    over: bool = False
    status: int | None = None


def judge(history: History, slurm: Seen | None, *, alive: bool | None, now: float, sign: float | None) -> Standing:
    """Say how a job stands. Pure.

    Args:
        history: what it has written down.
        slurm: what Slurm says; None where it is no job of Slurm's.
        alive: whether processes of it are there; None where that cannot be seen from here.
        now: the time.
        sign: when it gave a sign of life last; None where it never did.
    """
    run = history.last_run
    attempt = history.last_attempt
    ended = _ended(run, attempt)
    record = slurm.record if slurm is not None else None
    if ended is not None:
        return _after(history, run, slurm, ended)
    if slurm is not None and record is not None:
        return _by_slurm(record, slurm.step, run, sign, now)
    if alive:
        return Standing(State.RUNNING, "running")
    return _by_signs(slurm, alive=alive, age=None if sign is None else now - sign)


def _ended(run: Run | None, attempt: Attempt | None) -> Standing | None:
    """How the last run has ended, by its own word."""
    if attempt is not None and run is not None and attempt.run == run.first_attempt and attempt.ending:
        if attempt.ending == "done":
            return Standing(State.DONE, "done", over=True, status=0)
        if attempt.ending != "restart":
            how = f"stopped by {attempt.signal}" if attempt.signal else "failed"
            return Standing(State.FAILED, f"{how}, exit status {attempt.status}", over=True, status=attempt.status)
    if run is not None and run.end is not None and run.status is not None:
        how = f"failed, exit status {run.status}" if run.status else "done"
        return Standing(State.FAILED if run.status else State.DONE, how, over=True, status=run.status)
    return None


def _after(  # noqa: PLR0911 - a case each
    history: History, run: Run | None, slurm: Seen | None, ended: Standing
) -> Standing:
    """The last run is over: the job, too, unless it runs again."""
    restarts = run.restart_count if run is not None else 0
    asked = any(requeue.restart_count >= restarts for requeue in history.requeues)
    record = slurm.record if slurm is not None else None
    if record is None:
        if not asked:
            return ended
        if slurm is not None and not slurm.blind:
            how = "requeued, and then it came to nothing: Slurm does not know it any more"
            return Standing(State.FAILED, how, over=True, status=ended.status)
        return Standing(State.REQUEUED, f"requeued, after it {_was(ended)}")
    if record.state in OVER:
        if asked:
            return Standing(State.FAILED, f"requeued, and then {_slurms(record)}", over=True, status=ended.status)
        return ended
    if record.restarts > restarts or asked:
        if record.state in WAITING:
            return Standing(State.REQUEUED, f"requeued, and waits{_reason(record)}, after it {_was(ended)}")
        if record.restarts > restarts:
            return Standing(State.RUNNING, f"started again by Slurm, after it {_was(ended)}")
        return Standing(State.REQUEUED, f"about to be requeued, after it {_was(ended)}")
    return ended


def _by_slurm(  # noqa: PLR0911 - a case each
    record: JobRecord, step: bool | None, run: Run | None, sign: float | None, now: float
) -> Standing:
    """The run has not said that it is over."""
    if record.state in OVER:
        status = 128 + record.signal if record.signal else record.exit_code
        if record.state == "COMPLETED":
            return Standing(State.UNKNOWN, "over, as Slurm says, without a word of how it ended", over=True)
        return Standing(State.FAILED, f"{_slurms(record)}, without a last word of its own", over=True, status=status)
    if record.state in WAITING:
        state = State.REQUEUED if run is not None else State.WAITING
        return Standing(state, f"{'requeued, and waits' if run is not None else 'waits'}{_reason(record)}")
    if run is None:
        return Standing(State.WAITING, "Slurm runs it; its agents have not written anything yet")
    if record.restarts > run.restart_count:
        return Standing(State.RUNNING, "started again by Slurm")
    if step is False:
        silence = f" for {words.duration(now - sign)}" if sign is not None else ""
        return Standing(State.FAILED, f"its step has ended without a last word; silent{silence}", over=True)
    return Standing(State.RUNNING, "ending" if record.state == "COMPLETING" else "running")


def _by_signs(slurm: Seen | None, *, alive: bool | None, age: float | None) -> Standing:
    """Nobody but the run itself has ever said anything of it."""
    silent = f"its last sign of life is {words.duration(age)} old" if age is not None else "it gave no sign of life"
    if slurm is not None and not slurm.blind:
        return Standing(State.UNKNOWN, f"over: Slurm does not know it any more; {silent}", over=True)
    if alive is False:
        return Standing(State.FAILED, f"its processes are gone, without a last word; {silent}", over=True)
    if age is not None and age < FRESH:
        return Standing(State.RUNNING, f"running, by its own records; {silent}")
    return Standing(State.UNKNOWN, f"it cannot be seen whether it runs; {silent}")


def _was(ended: Standing) -> str:
    return "was done" if ended.state is State.DONE else ended.words if ended.words[0] == "f" else f"was {ended.words}"


def _slurms(record: JobRecord) -> str:
    return f"{record.state.lower().replace('_', ' ')} (Slurm)"


def _reason(record: JobRecord) -> str:
    return f" ({record.reason})" if record.reason else ""


# --- effects


def ask(step: SlurmStep, *, quiet: bool, patience: float = _PATIENCE) -> Seen:
    """Ask Slurm about a job, the controller first and then accounting.

    Args:
        step: which.
        quiet: it gives no signs of life, so that it matters whether its step is still there.
        patience: seconds that each answer may take.
    """
    if which("scontrol") is None:
        return Seen(blind="there is no scontrol here")
    records = controller.ask_jobs(step.job, patience)
    if records is None:
        return Seen(blind="Slurm does not answer")
    record = next((record for record in records if record.label == step.job), next(iter(records), None))
    if record is None:
        return Seen(next(iter(controller.ask_accounting(step.job, patience)), None))
    if not quiet or step.step is None or record.state in OVER | WAITING:
        return Seen(record)
    steps = controller.ask_steps(record.job_id, patience)
    there = None if steps is None else any(one.step_id.endswith(f".{step.step}") for one in steps)
    return Seen(record, step=there)


class Eyes:
    """Asks Slurm, but not all the time.

    Args:
        step: about what; None where it is no job of Slurm's.
        asked: asks.
    """

    def __init__(self, step: SlurmStep | None, asked: Callable[..., Seen] = ask) -> None:
        self._step = step
        self._ask = asked
        self._last: Seen | None = None
        self._next = 0.0

    def look(self, *, quiet: bool) -> Seen | None:
        """What Slurm says, or said a moment ago; None where it is no job of Slurm's."""
        if self._step is not None and time.monotonic() >= self._next:
            self._last = self._ask(self._step, quiet=quiet)
            self._next = time.monotonic() + _PAUSE
        return self._last
