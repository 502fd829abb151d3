"""`--run-path`: a script that is run by `runpy.run_path` under the name `__main__`, as torchrun's option does it.

To what makes workers it is a module like any other: `python -u -m hpc_launch.workers.run_path SCRIPT ARGUMENTS`, in a
new process or in a forked one. What torch has around a function (`errors.record`) is here around the script:
faulthandler reports crashes, and an exception leaves the worker's error file.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import runpy
import signal
import sys
from types import TracebackType

from hpc_launch.node import reserved_signals
from hpc_launch.workers import exception_file, stack_answers

# Files whose frames lie between the worker's start and the script.
_BELOW = (__file__, runpy.run_path.__code__.co_filename)


def main() -> None:
    """Run the script that the arguments name, which are then its own."""
    del sys.argv[0]
    if signal.getsignal(reserved_signals.ASK) is signal.SIG_DFL:  # a forked worker answers already
        stack_answers.install_stack_handlers(os.environ)
    with contextlib.suppress(Exception):  # a closed stderr
        faulthandler.enable()
    left, pid = os.environ.get(exception_file.VARIABLE), os.getpid()
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit:
        raise
    except BaseException as error:
        if left and os.getpid() == pid:  # and not a process that the script has forked
            exception_file.write_exception_file(left, error, _of_script(error))
        raise


def _of_script(error: BaseException) -> TracebackType | None:
    """The part of a traceback that begins in the script."""
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename in _BELOW:
        trace = trace.tb_next
    return trace


if __name__ == "__main__":
    main()
