"""The signals that tell a script to leave."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

_Handler = Callable[[int, FrameType | None], Any] | int | None

# The notice signals, unless HPC_LAUNCH_NOTICE_SIGNALS names others.
_NOTICE_SIGNALS = "SIGUSR1,SIGUSR2"


class NoticeHandler:
    """The signals that tell this process to leave."""

    def __init__(self) -> None:
        self.told = False
        self.callbacks: list[Callable[[str], Any]] = []
        self._previous: dict[int, _Handler] = {}
        self._installed = False
        self._inherited = False

    def install(self) -> None:
        """Install the handlers, the first time."""
        if self._installed:
            return
        if threading.current_thread() is not threading.main_thread():
            raise RuntimeError(
                "only the main thread can handle signals: call hpc_launch.runtime.should_stop() there once, "
                "before it is called in other threads"
            )
        signals = _notice_signals()
        self._installed = True
        for signum in (*signals, signal.SIGTERM):
            self._previous[signum] = signal.getsignal(signum)
            signal.signal(signum, self._handle)

    def inherit(self) -> None:
        """Be no more than a memory, in a process that was forked: it has another life, and other ends."""
        self._inherited = True
        if self._installed and signal.getsignal(signal.SIGTERM) == self._handle:
            previous = self._previous[signal.SIGTERM]
            signal.signal(signal.SIGTERM, signal.SIG_DFL if previous is None else previous)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if not self._inherited:
            self.told = True
            for callback in tuple(self.callbacks):
                callback(signal.Signals(signum).name)
        previous = self._previous.get(signum)
        if callable(previous):  # what is not from Python cannot be called from there
            previous(signum, frame)


def _notice_signals() -> list[signal.Signals]:
    variable = "HPC_LAUNCH_NOTICE_SIGNALS"
    words = [word.strip() for word in os.environ.get(variable, _NOTICE_SIGNALS).split(",")]
    try:
        found = [signal.Signals[word] for word in words if word]
    except KeyError as error:
        raise ValueError(f"{variable}: {error.args[0]} is no signal; names such as SIGUSR1 are expected") from None
    if {signal.SIGKILL, signal.SIGSTOP} & set(found):
        raise ValueError(f"{variable}: no process can handle SIGKILL or SIGSTOP")
    return [signum for signum in dict.fromkeys(found) if signum != signal.SIGTERM]
