"""The signals that the agent gets. A handler only notes what came; the agent deals with it where it looks.

*Stop* signals end the run in order; *notice* signals are passed on to the workers, and the agent lives on. Under
Slurm's cgroup tracking only the first process of a task is signalled, so that passing on is ours (slurm.conf(5),
ProctrackType; proctrack/cgroup of all releases; `SignalChildrenProcesses` in cgroup.conf(5) from 23.11 on).
"""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Iterator, Mapping, Sequence

from torch.distributed.elastic.multiprocessing import SignalException


class AgentSignals:
    """What has come so far.

    Attributes:
        stop: the first stop signal.
        stop_time: when it came (time.monotonic).
        hurry: a SIGINT came after it: somebody does not want to wait.
        relayed: it came to the workers' parent, the factory, and not to this process.
    """

    def __init__(self, stop: Sequence[str], notice: Sequence[str], *, at_once: bool) -> None:
        """Nothing is handled before `handle`; a SIGHUP that is ignored now, as nohup has it, never is.

        Args:
            stop: names of the stop signals; one that is among `notice` too stops.
            notice: names of the notice signals.
            at_once: raise torch's SignalException for the first stop signal, wherever it comes.
        """
        self.stop: signal.Signals | None = None
        self.stop_time = 0.0
        self.hurry = False
        self.relayed = False
        ignored = {signum for signum in (signal.SIGHUP,) if signal.getsignal(signum) is signal.SIG_IGN}
        self._stops = frozenset(signal.Signals[name] for name in stop) - ignored
        self._held = frozenset(signal.Signals[name] for name in notice)
        self._notices = self._held - self._stops - ignored
        self._raises = at_once
        # The handler changes values only: no key is added to what others may be looking at.
        self._came = dict.fromkeys(self._notices, 0)

    @property
    def notices(self) -> Mapping[signal.Signals, int]:
        """How often each notice signal has come so far; signals that come at the same time are one, as always."""
        came = self._came.copy()  # no handler runs within a call of C
        return {signum: count for signum, count in came.items() if count}

    @property
    def passed_on(self) -> frozenset[signal.Signals]:
        """The notice signals."""
        return self._notices

    def handle(self) -> None:
        """From here on signals are noted."""
        for signum in self._stops:
            signal.signal(signum, self._on_stop)
        for signum in self._notices:
            signal.signal(signum, self._on_notice)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, self._held)  # `launch.launcher` has held them back

    def ignore(self) -> None:
        """From here on nothing disturbs us."""
        for signum in self._stops | self._notices:
            signal.signal(signum, signal.SIG_IGN)

    @contextlib.contextmanager
    def raising(self) -> Iterator[None]:
        """Where nothing is there that would have to be ended in order: a stop signal raises torch's SignalException."""
        before, self._raises = self._raises, True
        try:
            if self.stop is not None:
                self._raise(self.stop)
            yield
        finally:
            self._raises = before

    def relay(self, signum: int) -> None:
        """A stop signal has come to the factory; where Slurm signals all processes of a step, it comes here as well."""
        if self.stop is None and signum in self._stops:
            self.relayed = True
            self._on_stop(signum, None)

    def _on_stop(self, signum: int, _frame: object) -> None:
        if self.relayed and self.stop == signum:
            self.relayed = False  # it is the same one
            return
        if self.stop is not None:
            # Slurm itself sends SIGTERM twice at a time limit; nobody but a person sends SIGINT again.
            self.hurry = self.hurry or signum == signal.SIGINT
            return
        self.stop_time = time.monotonic()  # first: other threads look at `stop`
        self.stop = signal.Signals(signum)
        if self._raises:
            self._raise(self.stop)

    def _on_notice(self, signum: int, _frame: object) -> None:
        self._came[signal.Signals(signum)] += 1

    @staticmethod
    def _raise(signum: signal.Signals) -> None:
        raise SignalException(f"stopped by {signum.name}", sigval=signum)
