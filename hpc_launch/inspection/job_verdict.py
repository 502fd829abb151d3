"""How a job went, in a word. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import tzinfo

from hpc_launch.inspection import job_state
from hpc_launch.inspection.job_state import JobState, State, last_sign
from hpc_launch.records import failure_messages, node_states
from hpc_launch.records.history_model import Attempt, History
from hpc_launch.text import count, date_and_time


@dataclass(frozen=True)
class JobVerdict:
    """How a job went: the word for its state, its `tone` (`good`, `bad`, `warn`, `plain`), and a sentence."""

    word: str
    tone: str
    sentence: str


# In which tone a report speaks of each.
_TONES = {
    State.WAITING: "warn",
    State.RUNNING: "plain",
    State.REQUEUED: "warn",
    State.DONE: "good",
    State.FAILED: "bad",
    State.STOPPED: "warn",
    State.UNKNOWN: "warn",
}


def judge_job(history: History, now: float, zone: tzinfo | None) -> JobVerdict:
    """Say how a job went, by its records alone.

    Args:
        history: what happened.
        now: seconds since the epoch.
        zone: what local time is.
    """
    seen = last_sign(history)
    standing = job_state.judge_job_state(history, None, now=now, sign=seen)
    sentence = _sentence(history, standing, f"The last sign of life is of {date_and_time(seen, zone)}" if seen else "")
    return JobVerdict(standing.state.value.capitalize(), _TONES[standing.state], sentence)


def _sentence(history: History, standing: JobState, seen: str) -> str:
    last = history.last_attempt
    if last is None and history.last_run is None:
        return "The job directory has no events that can be read."
    if standing.state is State.UNKNOWN:
        # Its records may be late, so nothing is claimed.
        asked = f"{seen}; hpc-launch status asks Slurm whether it still runs." if seen else "There is no sign of life."
        return f"No end is recorded. {asked}"
    if standing.state is State.RUNNING:
        return f"{seen}: {f'attempt {last.number}' if last is not None else 'its nodes are coming together'}."
    if standing.state is State.REQUEUED:
        by_itself = bool(history.requeues) and history.requeues[-1].by_slurm
        slurms = "runs the job again by itself" if by_itself else "was asked to run the job again"
        return f"The run has ended, and Slurm {slurms}."
    if standing.state is State.DONE:
        return _ended_well(last, len(node_states.node_states(history).lost))
    stopped = ""
    if standing.state is State.STOPPED and last is not None:
        stopped = f"was {failure_messages.stop_words(last.signal, last.job_ending, last.user)}, and "
    return f"It {stopped}ended with status {standing.status}."


def _ended_well(last: Attempt | None, lost: int) -> str:
    size = last.world_size if last is not None else 1
    said = "The only rank" if size == 1 else f"All {size:,} ranks"
    where = f" in attempt {last.number}" if last is not None and last.number else ""
    on_the_way = f"; {count(lost, 'node')} lost on the way" if lost else ""
    return f"{said} ended well{where}{on_the_way}."
