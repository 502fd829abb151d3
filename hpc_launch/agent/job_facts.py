"""When the job ends, as Slurm says: one agent asks (`job_monitor`), and the others hear it from that one."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping

from hpc_launch.agent.job_monitor import JobMonitor
from hpc_launch.agent.peers import Peers
from hpc_launch.errors import RendezvousError
from hpc_launch.plan.launch_plan import Plan
from hpc_launch.slurm import controller
from hpc_launch.slurm.environment import requeue_id
from hpc_launch.slurm.job import Ending, JobRecord, ending_of
from hpc_launch.workers.grace_period import SlurmFacts

# Under this name the agents share what Slurm says, and so often they ask for it while workers end.
_FACTS = "slurm"
_FACTS_SECONDS = 1.0

# How long Slurm's answer is waited for before it is said how long the workers have.
_ANSWER_SECONDS = 1.0


class JobFacts:
    """What one agent knows of it."""

    def __init__(self, peers: Peers, begin: Callable[[Plan], JobMonitor | None], *, in_step: bool) -> None:
        """Nothing is asked before `follow`.

        Args:
            peers: the other agents.
            begin: begins to ask, where a plan makes that this agent's task.
            in_step: whether this is a step, which Slurm may end.
        """
        self._in_step = in_step
        self._peers = peers
        self._begin = begin
        self._job_monitor: JobMonitor | None = None
        self._facts = SlurmFacts()
        self._next_look = 0.0

    def follow(self, plan: Plan) -> None:
        """Begin to ask, if that is this agent's task by now."""
        if self._job_monitor is None:
            self._job_monitor = self._begin(plan)

    def pass_on(self) -> None:
        """Let the others have what is new, for when they need it."""
        if self._job_monitor is not None:
            self.facts()

    def facts(self) -> SlurmFacts | None:
        """What Slurm says about the time between its signals; None outside of a step."""
        if not self._in_step:
            return None
        now = time.monotonic()
        if self._job_monitor is not None and self._job_monitor.facts != self._facts:
            self._facts = self._job_monitor.facts
            with contextlib.suppress(RendezvousError):
                self._peers.share(_FACTS, self._facts)
        elif self._job_monitor is None and now >= self._next_look:
            self._next_look = now + _FACTS_SECONDS
            self._facts = self._peers.shared(_FACTS, SlurmFacts) or self._facts
        return self._facts

    def ask_again(self) -> None:
        """Ask soon, because something has happened."""
        if self._job_monitor is not None:
            self._job_monitor.ask_again()

    def await_answer(self) -> None:
        """Wait for the answer to what was asked, as long as a person can wait for the line that needs it."""
        if self._job_monitor is not None:
            self._job_monitor.answer(_ANSWER_SECONDS)

    @property
    def left(self) -> float | None:
        """Seconds until the job ends; None where that is not known here, or it has no limit."""
        return self._job_monitor.left if self._job_monitor is not None else None

    def ending(self, since: float, restarts: int) -> Ending:
        """What Slurm means by a stop signal that came then (time.monotonic); UNKNOWN without an answer since.

        Args:
            since: when.
            restarts: the SLURM_RESTART_COUNT of this run.
        """
        monitor = self._job_monitor
        if monitor is None or monitor.asked_at < since:
            return Ending.UNKNOWN
        return ending_of(monitor.record, restarts)

    def record(self, environ: Mapping[str, str]) -> JobRecord | None:
        """What Slurm says of the job now; None where it says nothing."""
        if self._job_monitor is None:
            return controller.ask_job(requeue_id(environ))
        return self._job_monitor.asked_now()
