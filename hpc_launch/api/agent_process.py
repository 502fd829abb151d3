"""Run the agent of one node in a process of its own: signals go in, the exit status comes out.

Its own process, because an agent wants to fork workers before anything has started threads, and to handle signals in
its main thread; what runs this is submitit's process, or a small one that `submit` has started.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import FrameType

from hpc_launch import held_signals
from hpc_launch.api.submission_files import JobFiles, Outcome, write_json
from hpc_launch.errors import exit_status_of
from hpc_launch.node import processes
from hpc_launch.records import history, requeue_ledger
from hpc_launch.records.directory import JobDirectory
from hpc_launch.slurm import controller
from hpc_launch.slurm.environment import requeue_id, restart_count
from hpc_launch.slurm.job import Ending, ending_of

_SIGNALS = (
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
)


# The stop signals among them.
STOPS = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT})


@dataclass(frozen=True)
class AgentEnding:
    """How an agent's process has ended.

    Attributes:
        status: its exit status, 128+N where signal N ended it.
        stopped: it ended by a stop signal that this process passed on.
    """

    status: int
    stopped: bool = False


def run_agent_process(words: Sequence[str], *, alone: bool = False) -> AgentEnding:
    """Run an agent to its end.

    Args:
        words: the line that starts it.
        alone: where this process is killed, the agent is as well, and others go on without it; it stops all otherwise.
    """
    early: list[int] = []
    told: set[int] = set()
    child: subprocess.Popen[bytes] | None = None

    def pass_on(number: int, _frame: FrameType | None) -> None:
        told.add(number)
        if child is None:
            early.append(number)
        else:
            child.send_signal(number)

    by = signal.SIGKILL if alone else signal.SIGTERM
    before = {number: signal.signal(number, pass_on) for number in _SIGNALS}
    # The parent may have blocked these signals until this handler was there.
    mask = signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    try:
        child = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            # A job from Python needs the agent: for its calls, its results and how it has ended.
            env={name: value for name, value in os.environ.items() if name != "HPC_LAUNCH_PLAIN"},
            preexec_fn=_in_child(processes.tied_to(os.getpid(), by)),  # noqa: PLW1509 - it takes no lock
        )
        for number in early:
            child.send_signal(number)
        status = child.wait()
    finally:
        # Nor does anybody listen from now on: a signal that comes too late must not keep the end from being written.
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
    status = exit_status_of(status)
    return AgentEnding(status, status - 128 in told & STOPS)


def _in_child(tie: Callable[[], None]) -> Callable[[], None]:
    """What the agent's process does before it is the agent: signals wait until it listens."""

    def prepare() -> None:
        tie()
        held_signals.hold()

    return prepare


def final_status(job: JobDirectory, environ: Mapping[str, str]) -> int | None:
    """The status of a run that may lose nodes, by its records; None as long as it goes on, without this node perhaps.

    Args:
        job: the job directory.
        environ: the environment.
    """
    found = history.read_history(job.path)
    run, attempt = found.last_run, found.last_attempt
    if run is None or attempt is None or run.restart_count != restart_count(environ):
        return None
    over = attempt.run == run.first_attempt and attempt.ending in ("done", "failed")
    return attempt.status if over else None


def conclude(
    files: JobFiles, job: JobDirectory, status: int, environ: Mapping[str, str], *, cancelled: bool = False
) -> bool:
    """Write down how a job has ended, unless it is going to run again.

    Args:
        files: the submission's.
        job: the job directory.
        status: the exit status of the agent.
        environ: the environment.
        cancelled: the job was cancelled, outside of Slurm.

    Returns:
        Whether the job has ended.
    """
    if _runs_again(job, status, environ):
        return False
    write_json(files.outcome, Outcome(status, job.path, round(time.time(), 3), cancelled))
    return True


def _runs_again(job: JobDirectory, status: int, environ: Mapping[str, str]) -> bool:
    """Whether the agent has had the job requeued, or somebody else has."""
    job_id = requeue_id(environ)
    if not job_id:
        return False
    restarts = restart_count(environ)
    if any(entry.restart_count == restarts for entry in requeue_ledger.load_ledger(job).entries):
        return True
    if status <= 128:  # noqa: PLR2004 - statuses of signals follow
        return False
    return ending_of(controller.ask_job(job_id), restarts) is Ending.REQUEUED
