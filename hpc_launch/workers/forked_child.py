"""A forked process becomes a worker: as a new process would begin, with nothing of its parent's."""

from __future__ import annotations

import contextlib
import errno
import faulthandler
import io
import multiprocessing
import os
import signal
import stat
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NoReturn, TextIO

from hpc_launch.node import processes

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

# Why nothing can be written to a file although nothing is wrong with the script: no room, no quota, a limit of sizes,
# a file server that is in trouble.
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ESTALE})

# Standard streams by their descriptors.
_STREAMS = ("stdin", "stdout", "stderr")


def detach_from_parent(outputs: Sequence[int | None], closed: Sequence[int], keep: int) -> None:
    """Become a process of its own: with its own session and outputs, and no descriptor of its parent's.

    Args:
        outputs: descriptors for stdout and stderr; None leaves the parent's.
        closed: standard streams that are to be closed, unless they are given.
        keep: a descriptor that is left open.
    """
    os.setsid()
    for descriptor, target in zip(outputs, (1, 2), strict=True):
        if descriptor is not None:
            os.dup2(descriptor, target)
        elif target in closed:
            os.close(target)
    if 0 in closed:
        os.close(0)
    for descriptor in processes.descriptors():
        if descriptor > 2 and descriptor != keep:  # noqa: PLR2004 - the standard streams
            with contextlib.suppress(OSError):
                os.close(descriptor)


def bind(cpus: Sequence[int], thread: int = 0) -> None:
    """Let a thread of this process, and whatever it starts from now on, run on some CPUs only.

    Slurm may have taken them away in the meantime, or a CPU be gone: that is said, and is no reason not to train.

    Args:
        cpus: their numbers; none leaves it all.
        thread: which one; 0 for the caller.
    """
    if not cpus:
        return
    try:
        os.sched_setaffinity(thread, cpus)
    except ProcessLookupError:
        pass  # the thread has ended
    except OSError as error:
        words = f"hpc-launch: cannot run on CPU {','.join(map(str, cpus))} only: {error.strerror}\n"
        os.write(2, words.encode())


def execute(program: str, arguments: Sequence[str], environ: Mapping[str, str], mask: set[int]) -> NoReturn:
    """Run another program in this process; if there is none, end as a shell does, having said why.

    Args:
        program: its name, looked for on the PATH of `environ`, or its path.
        arguments: its arguments.
        environ: the whole environment.
        mask: the signals that are to be blocked.
    """
    for ignored in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(ignored, signal.SIG_DFL)  # Python ignores them; others do not expect it (subprocess, too)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    try:
        os.execvpe(program, [program, *arguments], environ)  # noqa: S606 - no shell is wanted
    except OSError as error:
        os.write(2, f"hpc-launch: cannot start {program}: {error.strerror or error}\n".encode(errors="replace"))
        os._exit(127 if isinstance(error, FileNotFoundError) else 126)


def reset_python(environ: Mapping[str, str], mask: set[int]) -> None:
    """Be as Python is when it has just started.

    Args:
        environ: the whole environment.
        mask: the signals that are to be blocked.
    """
    _replace_environment(environ)
    _reopen_streams()
    _set_faulthandler(environ)
    _forget_chance()
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _replace_environment(environ: Mapping[str, str]) -> None:
    for name in [name for name in os.environ if name not in environ]:
        del os.environ[name]
    for name, value in environ.items():
        if os.environ.get(name) != value:
            os.environ[name] = value


def _set_faulthandler(environ: Mapping[str, str]) -> None:
    """Have the stacks written on a fatal signal, or not, as a new process would (PYTHONFAULTHANDLER)."""
    faulthandler.disable()
    asked = bool(environ.get("PYTHONFAULTHANDLER")) and not sys.flags.ignore_environment
    if asked or sys.flags.dev_mode or "faulthandler" in sys._xoptions:  # noqa: SLF001 - documented (using/cmdline)
        with contextlib.suppress(RuntimeError, ValueError, OSError):  # stderr is closed
            faulthandler.enable()


def _reopen_streams() -> None:
    """Open the standard streams as `python -u` does (`create_stdio` in Python/pylifecycle.c)."""
    model = next((stream for stream in (sys.__stdout__, sys.__stdin__, sys.__stderr__) if stream is not None), None)
    encoding = model.encoding if model is not None else "utf-8"
    errors = next(
        (stream.errors for stream in (sys.__stdout__, sys.__stdin__) if stream is not None and stream.errors), "strict"
    )
    for descriptor, name in enumerate(_STREAMS):
        stream = _open(descriptor, name, encoding, "backslashreplace" if name == "stderr" else errors)
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


class FileIO(io.FileIO):
    """A standard stream that goes to a file which may be full: then what is written is lost, and the script goes on.

    The launcher says so. Where there was room for a part, the rest is tried; `TextIOWrapper` would not do that. It has
    the name of what it stands for, since scripts may print it.
    """

    __module__ = "_io"

    def write(self, data: ReadableBuffer, /) -> int:
        """Write what there is room for."""
        rest = memoryview(data).cast("B")
        size = len(rest)
        try:
            while len(rest) and (written := super().write(rest)):
                rest = rest[written:]
        except OSError as error:
            if error.errno not in _FULL:
                raise
        return size


def _open(descriptor: int, name: str, encoding: str, errors: str) -> TextIO | None:
    try:
        filed = stat.S_ISREG(os.fstat(descriptor).st_mode)
    except OSError:
        return None
    reading = name == "stdin"
    kind = FileIO if filed and not reading else io.FileIO
    raw = kind(descriptor, "rb" if reading else "wb", closefd=False)
    raw.name = f"<{name}>"
    buffer: io.BufferedReader | io.FileIO = io.BufferedReader(raw) if reading else raw
    stream = io.TextIOWrapper(
        buffer,
        encoding,
        errors,
        newline="\n",
        write_through=True,
    )
    stream.mode = "r" if reading else "w"  # type: ignore[misc]  # as Python itself does
    return stream


def _forget_chance() -> None:
    """Let no two workers draw the same random numbers. Python's own generator sees to it after a fork by itself."""
    multiprocessing.current_process().authkey = os.urandom(32)
    numpy, torch = sys.modules.get("numpy.random"), sys.modules.get("torch")
    if numpy is not None:
        numpy.seed()
    if torch is not None:
        torch.default_generator.seed()  # those of devices are made when they are first used


def name_process(title: str, name: str) -> None:
    """Give this process a command line for `ps`, and a name for `top`."""
    with contextlib.suppress(ImportError):  # names are a comfort, and nothing fails for want of them
        from setproctitle import setproctitle, setthreadtitle  # noqa: PLC0415 - as above

        setproctitle(title.encode(errors="replace").decode())
        setthreadtitle(name)


def find_name() -> None:
    """Look for where the title of this process is: it cannot be found once the environment was changed."""
    with contextlib.suppress(ImportError):
        from setproctitle import getproctitle  # noqa: PLC0415 - as above

        getproctitle()
