"""What is typed into a terminal goes to the first worker of a step, for `input()` and `breakpoint()`.

srun is in a session of its own (`launch.srun_step`), where no job control would keep it from the terminal once this
process is in the background. So this process reads, as long as it is in the foreground. A pipe or a file is not read:
as with ssh, a loop such as `while read lr; do hpc-launch ...; done < list` would lose its other lines to the first run.
"""

from __future__ import annotations

import fcntl
import os
import select
import signal
import stat
import termios
import threading

_STDIN = 0

# How often it looks whether this process is in the foreground again.
_LOOK_SECONDS = 0.2

_CHUNK = 4096


def in_foreground() -> bool:
    """Whether standard input is a terminal, and what is typed there is for this process."""
    try:
        return os.isatty(_STDIN) and os.tcgetpgrp(_STDIN) == os.getpgrp()
    except OSError:
        return False  # closed, or a terminal of another session


def has_input() -> bool:
    """Whether something can still come on standard input: there is a terminal, or somebody at the other end."""
    try:
        mode = os.fstat(_STDIN).st_mode
        if not (os.isatty(_STDIN) or stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)):
            return False
        poll = select.poll()
        poll.register(_STDIN, select.POLLIN)
        events = dict(poll.poll(0)).get(_STDIN, 0)
    except OSError:
        return False  # it is closed
    return bool(events & select.POLLIN) or not events & select.POLLHUP


def has_waiting_input() -> bool:
    """Whether a pipe or a file that is standard input has something to read."""
    try:
        status = os.fstat(_STDIN)
        if stat.S_ISREG(status.st_mode):
            return os.lseek(_STDIN, 0, os.SEEK_CUR) < status.st_size
        if not stat.S_ISFIFO(status.st_mode):
            return False
        count = fcntl.ioctl(_STDIN, termios.FIONREAD, bytes(4))
    except OSError:
        return False  # it is closed
    return any(count)


def pass_on(target: int) -> None:
    """Write what is typed to a descriptor, from now on, in a thread. It is closed at the end of the input (Ctrl-D)."""
    # Reading in the background then fails (EIO) instead of stopping this process.
    signal.signal(signal.SIGTTIN, signal.SIG_IGN)
    threading.Thread(target=_pump, args=(target,), name="typed input", daemon=True).start()


def _pump(target: int) -> None:
    while True:
        ready, _, _ = select.select([_STDIN] if in_foreground() else [], [], [], _LOOK_SECONDS)
        if not ready:
            continue
        try:
            data = os.read(_STDIN, _CHUNK)
        except OSError:
            continue  # it is in the background since a moment ago, or the terminal is gone
        try:
            if not data:
                os.close(target)
                return
            os.write(target, data)
        except OSError:
            return  # srun has ended
