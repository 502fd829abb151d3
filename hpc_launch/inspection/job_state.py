"""How a job stands: by what it has written down itself, and by what Slurm says of it. Pure.

What cannot be seen is not there to be guessed: a job that nobody can ask about is neither running nor over, unless it
has said so itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from hpc_launch.node.users import user_name
from hpc_launch.records.failure_messages import stop_words
from hpc_launch.records.history_model import Attempt, History, Run
from hpc_launch.slurm.job import OVER, WAITING, Ending, JobRecord, ending_of, explain
from hpc_launch.text import duration

# A run that has written anything within these seconds lives: if nothing else happens, its agents say so every ten
# minutes (agent/recorder.py), and one such sign may be missed.
FRESH = 1300.0

# States that say what ended a job; a job that FAILED has ended by itself.
_SAID_BY_STATE = frozenset({"CANCELLED", "DEADLINE", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "TIMEOUT"})
_WHY_FAILED = frozenset({"NODE_FAIL", "OUT_OF_MEMORY"})
_CANCELLED_OR_OVER = frozenset({Ending.CANCELLED.value, Ending.CANCELLED_OR_OVER.value})

# What else a job does that Slurm counts as one that runs.
_RUNNING = {
    "COMPLETING": "ending",
    "STAGE_OUT": "ending",
    "SUSPENDED": "running, but suspended (Slurm)",
    "STOPPED": "running, but suspended (Slurm)",
}


class State(str, Enum):
    """How a job stands, in the one word that commands, notebooks and reports have for it."""

    WAITING = "waiting"
    RUNNING = "running"
    REQUEUED = "requeued"
    DONE = "done"
    FAILED = "failed"
    STOPPED = "stopped"
    """It was ended on somebody's order: by a signal, scancel or a preemption."""
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class SlurmAnswer:
    """What Slurm says of a job.

    Attributes:
        record: the job; None where Slurm does not know it any more. Where nobody can ask, what Slurm said before.
        blind: why nobody can ask; empty where Slurm has answered.
        step: whether the step still runs; None where that was not asked.
    """

    record: JobRecord | None = None
    blind: str = ""
    step: bool | None = None


@dataclass(frozen=True)
class JobState:
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


def judge_job_state(
    history: History,
    slurm: SlurmAnswer | None,
    *,
    now: float,
    alive: bool | None = None,
    sign: float | None = None,
    outcome: int | None = None,
) -> JobState:
    """Say how a job stands.

    Args:
        history: what it has written down.
        slurm: what Slurm says; None where it is no job of Slurm's, or nobody has asked.
        now: the time.
        alive: whether processes of it are there; None where that cannot be seen from here.
        sign: when it gave a sign of life last; None where it never did.
        outcome: the exit status that was written down for the whole job; None as long as there is none.
    """
    run = history.last_run
    # What was said of a job before it began is no news of a run.
    record = slurm.record if slurm is not None and (run is None or not slurm.blind) else None
    ended = _own_end(run, history.last_attempt, record) or (None if outcome is None else _by_status(outcome))
    if ended is not None:
        forgotten = slurm is not None and record is None and not slurm.blind
        return _after(history, record, ended, forgotten=forgotten)
    if slurm is not None and record is not None:
        return _by_slurm(record, slurm.step, run, sign, now)
    if alive:
        return JobState(State.RUNNING, "running")
    return _by_signs(slurm, alive=alive, age=None if sign is None else now - sign)


def last_sign(history: History, newest: float | None = None) -> float | None:
    """When a job gave a sign of life last; None where it never did.

    Args:
        history: what happened in it.
        newest: when any of its ranks wrote anything last; None where that was not looked at.
    """
    times = [*(node.last for node in history.nodes), *(mark.time for mark in history.progress), newest]
    return max((time for time in times if time is not None), default=None)


def _own_end(run: Run | None, attempt: Attempt | None, record: JobRecord | None) -> JobState | None:
    """How the last run has ended, by its own word; what stopped it Slurm knows better."""
    if attempt is not None and run is not None and attempt.run == run.first_attempt and attempt.ending:
        if attempt.ending == "done":
            return _by_status(0)
        if attempt.ending != "restart" and attempt.signal:
            how = f"{_stop_words(run, attempt, record)}, exit status {attempt.status}"
            return JobState(State.STOPPED, how, over=True, status=attempt.status)
        if attempt.ending != "restart":
            return _failed(attempt.status, _aggravation(run, record))
    if run is not None and run.end is not None and run.status is not None:
        return _by_status(run.status)
    return None


def _by_status(status: int) -> JobState:
    return JobState(State.DONE, "done", over=True, status=0) if status == 0 else _failed(status)


def _failed(status: int | None, slurm: str = "") -> JobState:
    return JobState(State.FAILED, f"failed, exit status {status}{slurm}", over=True, status=status)


def _stop_words(run: Run, attempt: Attempt, record: JobRecord | None) -> str:
    """What stopped an attempt: as Slurm said then, or says now."""
    ending, user = attempt.job_ending, attempt.user
    if record is not None and record.state in OVER:
        # What ended the job later is another matter: a step that was cancelled alone, a signal to it.
        unsaid = not ending and record.state in _SAID_BY_STATE
        # While it ends a job Slurm leaves open which of the two it is; earlier versions have named the first then.
        if unsaid or (ending in _CANCELLED_OR_OVER and not user):
            ending = ending_of(record, run.restart_count).value
    if record is not None and record.state == "CANCELLED":
        user = user or user_name(record.cancelled_by)
    return stop_words(attempt.signal, ending, user)


def _aggravation(run: Run, record: JobRecord | None) -> str:
    """What Slurm says of the job of a run that failed, where that says why it did."""
    if record is None or _ran_before(run, record) or record.state not in _WHY_FAILED:
        return ""
    return f"; Slurm: {record.state_in_words}"


def _after(  # noqa: PLR0911 - a case each
    history: History, record: JobRecord | None, ended: JobState, *, forgotten: bool
) -> JobState:
    """The last run is over: the job, too, unless it runs again."""
    run = history.last_run
    restarts = run.restart_count if run is not None else 0
    asked = any(requeue.restart_count >= restarts for requeue in history.requeues)
    again = record is not None and (_ran_before(run, record) if run is not None else record.restarts > 0)
    if not asked and not again:
        return ended
    over = forgotten or (record is not None and record.state in OVER)
    if over and not again and history.requeues[-1].unknown:
        return ended
    if record is None:
        if forgotten:
            how = "requeued, and then it came to nothing: Slurm does not know it any more"
            return JobState(State.FAILED, how, over=True, status=ended.status)
        return JobState(State.REQUEUED, f"requeued, after it {_was(ended)}")
    if record.state in OVER:
        if not asked and record.state == "COMPLETED" and ended.state is State.DONE:
            return ended
        how = f"requeued, and then {_slurms(record)}"
        status = ended.status if asked else record.exit_status
        return JobState(_end_by_slurm(record), how, over=True, status=status)
    if record.state in WAITING:
        return JobState(State.REQUEUED, f"requeued, and waits{_reason(record)}, after it {_was(ended)}")
    if again:
        return JobState(State.RUNNING, f"started again by Slurm, after it {_was(ended)}")
    return JobState(State.REQUEUED, f"about to be requeued, after it {_was(ended)}")


def _ran_before(run: Run, record: JobRecord) -> bool:
    """Whether Slurm has had the job requeued since a run.

    One that began since the job did is of now, though it does not know how often the job was started: its step came
    from outside (`srun --jobid`), without SLURM_RESTART_COUNT.
    """
    began = run.begin is not None and record.start is not None and run.begin >= record.start
    return record.restarts > run.restart_count and not began


def _by_slurm(  # noqa: PLR0911 - a case each
    record: JobRecord, step: bool | None, run: Run | None, sign: float | None, now: float
) -> JobState:
    """The run has not said that it is over."""
    if record.state == "COMPLETED":
        return JobState(State.UNKNOWN, "over, as Slurm says, without a word of how it ended", over=True)
    if record.state in OVER:
        how = f"{_slurms(record)}{', without a last word of its own' if run is not None else ''}"
        return JobState(_end_by_slurm(record), how, over=True, status=record.exit_status)
    if record.state in WAITING:
        if run is not None:
            return JobState(State.REQUEUED, f"requeued, and waits{_reason(record)}")
        return JobState(State.WAITING, f"waiting{_reason(record)}")
    if run is None:
        # A step of it may have begun without hpc-launch, or its agents are about to write.
        doing = _RUNNING.get(record.state, "running (Slurm)")
        return JobState(State.RUNNING, f"{doing}; hpc-launch has not written anything yet")
    if _ran_before(run, record):
        return JobState(State.RUNNING, "started again by Slurm")
    if step is False:
        silence = f" for {duration(now - sign)}" if sign is not None else ""
        return JobState(State.FAILED, f"its step has ended without a last word; silent{silence}", over=True)
    return JobState(State.RUNNING, _RUNNING.get(record.state, "running"))


def _by_signs(slurm: SlurmAnswer | None, *, alive: bool | None, age: float | None) -> JobState:
    """Nobody but the run itself has ever said anything of it."""
    silent = f"its last sign of life is {duration(age)} old" if age is not None else "it gave no sign of life"
    if slurm is not None and not slurm.blind:
        return JobState(State.UNKNOWN, f"over: Slurm does not know it any more; {silent}", over=True)
    if alive is False:
        return JobState(State.FAILED, f"its processes are gone, without a last word; {silent}", over=True)
    if age is not None and age < FRESH:
        return JobState(State.RUNNING, f"running, by its own records; {silent}")
    return JobState(State.UNKNOWN, f"it cannot be seen whether it runs; {silent}")


def _end_by_slurm(record: JobRecord) -> State:
    if record.state == "COMPLETED":
        return State.UNKNOWN
    return State.STOPPED if record.state in ("CANCELLED", "PREEMPTED", "REVOKED") else State.FAILED


def _was(ended: JobState) -> str:
    return ended.words if ended.state is State.FAILED else f"was {ended.words}"


def _slurms(record: JobRecord) -> str:
    return f"{record.state_in_words} (Slurm)"


def _reason(record: JobRecord) -> str:
    why = explain(record.reason)
    return f" ({why})" if why else ""
