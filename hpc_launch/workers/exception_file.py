"""What a script that ends with an exception leaves for the launcher: a file in torch's format.

It is the file that `torch.distributed.elastic.multiprocessing.errors.record` writes, with more in `extraInfo`: the time
as a fraction, the type of the exception and where it was raised. One that is there already stays: the script uses
`record`.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from hpc_launch import codec

# torch's name for where the file is to be (torch/distributed/elastic/multiprocessing/errors/error_handler.py).
VARIABLE = "TORCHELASTIC_ERROR_FILE"

# How long a file system may take, in seconds.
_PATIENCE = 3.0

# What is longer is cut in the middle: the beginning and the end say most.
_LONGEST = 1 << 16

# Where installed packages and Python's own modules are: what went wrong there was asked for elsewhere.
_LIBRARIES = ("/site-packages/", "/dist-packages/", os.path.dirname(os.__file__) + "/", "<frozen ")  # noqa: PTH120


@dataclass(frozen=True)
class ErrorDetails:
    """What is known of an exception besides its words.

    Attributes:
        py_callstack: Python's report.
        timestamp: when it was raised, in whole seconds since the epoch.
        time: the same as a fraction; not of torch.
        type: its type; not of torch.
        where: `FILE:LINE` where it was raised; not of torch.
    """

    py_callstack: str = ""
    timestamp: str = ""
    time: float | None = None
    type: str = ""
    where: str = ""


@dataclass(frozen=True)
class ErrorMessage:
    """An exception: its type and its words in a line, and more."""

    message: str = ""
    details: ErrorDetails = field(default_factory=ErrorDetails, metadata={"name": "extraInfo"})


@dataclass(frozen=True)
class ErrorFile:
    """The content of the file; of some versions of torch the words alone."""

    message: ErrorMessage | str = ""


def write_exception_file(path: str, error: BaseException, trace: TracebackType | None) -> None:
    """Leave the file; nothing that goes wrong with it makes a difference to the script.

    Args:
        path: where.
        error: the exception.
        trace: where it came from, from the script on.
    """
    with contextlib.suppress(Exception):
        now = time.time()
        details = ErrorDetails(
            py_callstack=_cut("".join(traceback.format_exception(type(error), error, trace))),
            timestamp=str(int(now)),
            time=round(now, 6),
            type=_name(type(error)),
            where=_where(error, trace),
        )
        text = codec.line(ErrorFile(ErrorMessage(f"{type(error).__name__}: {_cut(str(error))}", details)))
        # A file server that hangs must not keep the worker from ending: others wait for it, or for the news of its end.
        writer = threading.Thread(target=_write, args=(path, text), daemon=True)
        writer.start()
        writer.join(_PATIENCE)


def _write(path: str, text: str) -> None:
    with contextlib.suppress(Exception):
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        try:
            with os.fdopen(handle, "w") as stream:
                stream.write(text)
        except OSError:  # no room: what is cut off says nothing
            Path(path).unlink()


def _name(kind: type[BaseException]) -> str:
    """A type as Python's reports name it."""
    known = kind.__module__ in ("builtins", "__main__")
    return kind.__qualname__ if known else f"{kind.__module__}.{kind.__qualname__}"


def _where(error: BaseException, trace: TracebackType | None) -> str:
    """The innermost frame of the user's own; where there is none, the innermost."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}"
    frames = traceback.extract_tb(trace)
    own = [frame for frame in frames if not any(place in frame.filename for place in _LIBRARIES)]
    return next((f"{frame.filename}:{frame.lineno}" for frame in [*frames[-1:], *own[-1:]][::-1]), "")


def _cut(text: str) -> str:
    if len(text) <= _LONGEST:
        return text
    return f"{text[: _LONGEST // 2]}\n[...]\n{text[-_LONGEST // 2 :]}"
