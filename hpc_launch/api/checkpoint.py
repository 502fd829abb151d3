"""submitit's checkpoint protocol in the workers: rank 0 saves the call as it is to go on, and then all leave.

A callable with a method `checkpoint(*args, **kwargs)` is told by a notice signal, or by the SIGTERM of a preemption. On
rank 0 the method is called, between any two instructions of the function, and returns what is to be called instead when
the job runs again: an object with `function`, `args` and `kwargs` (submitit's DelayedSubmission). The other ranks go
on meanwhile, so that rank 0 is not left waiting in a collective, and leave as soon as that is written. They do so even
where their main thread hangs in one, because a thread of their own waits for it. All end with status 0, which the
agents take for what it is: the workers have left after a notice, and `--requeue` decides.

Where there is nothing to go on with (`checkpoint` returns None, or fails) nobody leaves, and the time limit
ends the job.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hpc_launch.api import call_arguments, pickled_call
from hpc_launch.api.submission_files import PICKLE_MODE
from hpc_launch.records import directory
from hpc_launch.records.directory import JobDirectory

_NOTICES = "SIGUSR1,SIGUSR2"

# How often to look whether rank 0 has saved.
_LOOK_SECONDS = 0.1


class Checkpoints:
    """Saves on rank 0, and leaves on the others."""

    def __init__(self, job: JobDirectory, attempt: int, rank: int, limit_mb: int) -> None:
        self._path = job.checkpoint(attempt)
        self._top = job.path
        self._rank = rank
        self._limit_mb = limit_mb
        self._saving = False

    def watch(self, function: Any, args: Any, kwargs: Any) -> None:
        """Begin. In the main thread, before the function."""
        names = os.environ.get("HPC_LAUNCH_NOTICE_SIGNALS", _NOTICES)
        notices = [signal.Signals[name] for name in names.split(",") if name and name != "none"]
        if self._rank == 0:

            def save(_number: int, _frame: Any) -> None:
                self._save(lambda: function.checkpoint(*args, **kwargs))

            for number in (*notices, signal.SIGTERM):
                signal.signal(number, save)
            return
        reading, writing = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(writing, False)
        signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        for number in notices:
            signal.signal(number, lambda *_: None)  # without a handler the descriptor is not written to
        threading.Thread(target=self._leave_with_rank_0, args=(reading, notices), daemon=True).start()

    def _save(self, checkpoint: Callable[[], Any]) -> None:
        if self._saving:
            return  # told again while it is at it
        self._saving = True
        try:
            later = checkpoint()
            if later is not None:
                call_arguments.check_arguments(later.function, later.args, later.kwargs)
                data = pickled_call.pack_call(later.function, later.args, later.kwargs, self._limit_mb)
                directory.write_whole(self._path, data, self._top, mode=PICKLE_MODE)
                _leave()
            what = "returned None"
        except Exception:  # noqa: BLE001 - whatever it is, it is no reason to lose what the function is doing
            traceback.print_exc()
            what = "has failed"
        finally:
            self._saving = False
        _say(f"checkpoint() {what}: the job goes on, and is not requeued")

    def _leave_with_rank_0(self, descriptor: int, notices: list[signal.Signals]) -> None:
        while not set(os.read(descriptor, 64)) & set(notices):
            pass
        while not _is_there(self._path):
            time.sleep(_LOOK_SECONDS)
        _leave()


def _is_there(path: Path) -> bool:
    """Whether a file is there. Its directory is read: file systems remember for long that a name was not there."""
    try:
        return path.name in os.listdir(path.parent)  # noqa: PTH208 - names are all that is wanted
    except OSError:
        return False


def _leave() -> None:
    """End at once: what Python does at its end may wait for threads, or for other ranks."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    os._exit(0)


def _say(line: str) -> None:
    print(f"hpc-launch: {line}", file=sys.stderr)  # noqa: T201 - this is the worker's own log
