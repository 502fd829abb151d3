"""How long workers may take to end: the time that is really left. Pure but for the clock."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from hpc_launch.plan.termination_forecast import MARGIN
from hpc_launch.rendezvous.messages import Message
from hpc_launch.workers.signals import AgentSignals

# torch's own (torch/distributed/elastic/multiprocessing/api.py), where nothing else is known.
USUAL_GRACE = 30.0

# What Slurm gives by default between SIGTERM and SIGKILL (slurm.conf(5), KillWait).
USUAL_KILL_WAIT = 30.0


@dataclass(frozen=True)
class SlurmFacts(Message):
    """What Slurm says about the end of a job, as the agents tell each other.

    Attributes:
        kill_wait: seconds between SIGTERM and SIGKILL.
        grace_end: when the job ends, in seconds since the epoch, if that is later than the signal: preemption with a
            GraceTime; 0 where Slurm is about to kill.
    """

    kill_wait: float = USUAL_KILL_WAIT
    grace_end: float = 0.0


@dataclass
class GracePeriod:
    """The time that workers have to end, from `open` on. It can change while it is open.

    Attributes:
        grace: seconds, as the user said; None where nothing was said.
        slurm: gives what Slurm says; None outside of a step.
        signals: what has come.
        stopped: a stop signal is why they end, if only one that came to another node so far.
    """

    grace: float | None
    slurm: Callable[[], SlurmFacts | None]
    signals: AgentSignals
    stopped: bool = False
    _opened: float = 0.0

    def open(self) -> None:
        """The workers have been told to end."""
        self._opened = time.monotonic()

    @property
    def left(self) -> float:
        """Seconds that are left; 0 when it is over."""
        return max(0.0, self._end()[0] - time.monotonic())

    @property
    def reason(self) -> str:
        """What ended it, for the log."""
        return self._end()[1]

    def _end(self) -> tuple[float, str]:
        """When it ends (time.monotonic), and why."""
        if self.signals.hurry:
            return self._opened, "SIGINT came again"
        own = self.signals.stop is not None
        facts = self.slurm() if own or self.stopped else None
        limits = []
        if self.grace is not None:
            limits.append((self._opened + self.grace, f"{self.grace:g} s as --grace says"))
        elif facts is None:
            limits.append((self._opened + USUAL_GRACE, f"{USUAL_GRACE:g} s, see --grace"))
        if facts is not None:
            since = self.signals.stop_time if own else self._opened
            more = max(0.0, facts.grace_end - (time.time() - (time.monotonic() - since)))
            waits = max(0.0, more + facts.kill_wait - MARGIN)
            reason = (
                f"{waits:.0f} s: Slurm's KillWait is {facts.kill_wait:g} s here; let it warn earlier, with "
                "--signal=USR1@SECONDS"
            )
            limits.append((since + waits, reason))
        return min(limits, default=(math.inf, ""))
