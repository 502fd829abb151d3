"""The supervisor of one round: it watches the workers here, and hears from the coordinator how the round ends."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from torch.distributed.elastic.agent.server.api import RunResult, WorkerState

from hpc_launch.agent import hang_detector, log_messages
from hpc_launch.agent.hang_detector import HangWatch
from hpc_launch.agent.recorder import Recorder
from hpc_launch.agent.run_context import RunContext
from hpc_launch.errors import exit_status_of
from hpc_launch.records import events, failure_messages, hardware_faults, root_cause
from hpc_launch.rendezvous.handler import SlurmRendezvous
from hpc_launch.rendezvous.messages import RoundEnd
from hpc_launch.workers.signals import AgentSignals

# A failure that looks as if it followed another one is reported when nobody has reported that one for so long.
_SYMPTOM_SECONDS = 1.0
_LOOK_SECONDS = 0.05


@dataclass(frozen=True)
class LocalFailure:
    """A failure of workers here.

    Attributes:
        status: the exit status that it gives the job, if it was the first.
        cause: what happened, in a line.
        follows: it looks as if it followed another one, on another node perhaps.
    """

    status: int
    cause: str
    follows: bool


def judge_local_failure(context: RunContext, recorder: Recorder) -> LocalFailure:
    """Judge a failure of workers here, which is written down."""
    worker = root_cause.deciding_failure(recorder.workers)
    if worker is None or worker.exitcode is None:
        return LocalFailure(70, f"the agent on {context.host} lost track of its workers", follows=False)
    return LocalFailure(
        exit_status_of(worker.exitcode), failure_messages.failure_line(worker), bool(root_cause.follows(worker, None))
    )


@dataclass
class RoundSupervisor:
    """One agent's look at a round.

    Attributes:
        context: the run.
        handler: this agent's end of the rendezvous.
        signals: what has come to this process.
        recorder: writes down what happens.
        hang: watches whether the job hangs; None where nobody asked for it.
        monitor: looks at the workers here.
        wait: waits for a worker's end, a signal, or so many seconds.
    """

    context: RunContext
    handler: SlurmRendezvous
    signals: AgentSignals
    recorder: Recorder
    hang: HangWatch | None
    monitor: Callable[[], RunResult]
    wait: Callable[[float], None]
    _done: bool = False
    _report_at: float = math.inf

    def follow(self) -> tuple[RoundEnd, RunResult]:
        """Watch until the round has ended; returns how, and how the workers here stood then.

        Raises:
            RendezvousError: when the others are lost.
        """
        while True:
            result = self.monitor()
            end = self._report(result) or self.handler.end() or self._hanging()
            if end is not None:
                return end, result
            self.wait(self._pause)

    @property
    def _pause(self) -> float:
        """Seconds until there is something to do here."""
        pause = self.hang.pause if self.hang is not None else math.inf
        return pause if self._report_at == math.inf else min(pause, _LOOK_SECONDS)

    def _report(self, result: RunResult) -> RoundEnd | None:
        """Tell the others how it stands here; returns the end of the round where that was to end it."""
        stop = self.signals.stop
        if result.state is WorkerState.SUCCEEDED and not self._done:
            self.handler.report_done()
            self._done = True
        if stop is not None:
            by = ", which a worker sent to its parent" if self.signals.relayed else ""
            cause = f"stopped by {stop.name} on {self.context.host}{by}"
            return self.handler.report_end(128 + stop, cause, stop.name)
        if result.state in (WorkerState.SUCCEEDED, WorkerState.HEALTHY):
            return None
        failure = judge_local_failure(self.context, self.recorder)
        self._report_at = min(self._report_at, time.monotonic() + (_SYMPTOM_SECONDS if failure.follows else 0))
        if time.monotonic() < self._report_at:
            return None
        fault = hardware_faults.evidence_of_any(self.recorder.workers)
        return self._report_failure(failure.status, failure.cause, own=not failure.follows, fault=fault)

    def _hanging(self) -> RoundEnd | None:
        """Watch whether the job hangs; the end of the round if it does, and all stacks have been taken."""
        verdict = self.hang.turn(self.handler) if self.hang is not None else None
        if verdict is None:
            return None
        log_messages.hang(self.context, verdict)
        name = verdict.path.name if verdict.path is not None else ""
        seconds = self.context.plan.settings.hang_timeout
        self.recorder.say(events.HANG, seconds=seconds, cause=verdict.cause, stacks=name)
        return self._report_failure(hang_detector.STATUS, verdict.cause, own=False, hung=True)

    def _report_failure(
        self, status: int, cause: str, *, own: bool, fault: str = "", hung: bool = False
    ) -> RoundEnd | None:
        """Have the round end, unless a stop signal comes first: then that is what the others are told of next."""
        return self.handler.report_failure(
            status, cause, own=own, fault=fault, hang=hung, stopped=lambda: self.signals.stop is not None
        )
