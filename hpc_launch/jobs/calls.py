"""A call, from here to a worker: the function and its arguments as bytes, with what is needed to read them.

Two pickles in a row: a header of plain values, which can be read anywhere, then the function with its arguments.
"""

from __future__ import annotations

import importlib
import io
import pickle
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from hpc_launch.errors import CallError
from hpc_launch.jobs import culprit

MEGABYTE = 1 << 20

Parts = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]


class TooLargeError(Exception):
    """More was written than may be."""


class _Bounded(io.RawIOBase):
    """Writes to another file, up to a limit: a pickle of gigabytes is refused before it is made."""

    def __init__(self, file: BinaryIO, limit: int) -> None:
        super().__init__()
        self._file = file
        self._left = limit

    def write(self, data: Any) -> int:
        self._left -= memoryview(data).nbytes
        if self._left < 0:
            raise TooLargeError
        return self._file.write(data)


def dump(value: Any, file: BinaryIO, limit: int) -> None:
    """Pickle a value, with functions and classes of notebooks and scripts in it, up to a number of bytes.

    Raises:
        TooLargeError: there are more.
        Exception: whatever a value raises that cannot be pickled.
    """
    cloudpickle = importlib.import_module("cloudpickle")
    cloudpickle.dump(value, _Bounded(file, limit), protocol=pickle.HIGHEST_PROTOCOL)


def pack(function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], limit_mb: int) -> bytes:
    """Make bytes of a call.

    Args:
        function: what is to be called.
        args: its arguments.
        kwargs: those with names.
        limit_mb: how large it may be, in MB.

    Raises:
        CallError: it cannot be pickled, and what of it cannot; or it is too large.
    """
    file = io.BytesIO()
    path = [str(Path(entry or ".").absolute()) for entry in sys.path]
    header = {"python": list(sys.version_info[:2]), "path": path, "limit_mb": limit_mb}
    pickle.dump(header, file)
    parts: Parts = (function, tuple(args), dict(kwargs))
    try:
        dump(parts, file, limit_mb * MEGABYTE)
    except TooLargeError:
        what = culprit.largest(parts, limit_mb * MEGABYTE)
        raise CallError(
            f"{what} is too large to be sent: the limit is {limit_mb} MB (max_pickle_mb); write it to a file that the "
            "nodes see, and pass the path"
        ) from None
    except Exception as error:
        what = culprit.find(parts)
        raise CallError(f"cannot send {what}: {_line(error)}; make it inside of the function, or pass a path") from error
    return file.getvalue()


def unpack(file: BinaryIO, host: str) -> tuple[Parts, int]:
    """Read a call, on a node.

    Args:
        file: with the bytes.
        host: the node, for messages.

    Returns:
        The call, and its limit in MB.

    Raises:
        CallError: something that it needs is not on this node.
    """
    header = pickle.load(file)  # noqa: S301 - the user's own file, as all of these
    found = ".".join(map(str, header["python"]))
    if tuple(header["python"]) != sys.version_info[:2]:
        raise CallError(
            f"{host} runs Python {sys.version_info[0]}.{sys.version_info[1]} ({sys.executable}), but the call was made "
            f"by {found}, and functions cannot be read by another release: use the same environment in both places"
        )
    sys.path.extend(entry for entry in header["path"] if entry not in sys.path and Path(entry).is_dir())
    try:
        parts: Parts = pickle.load(file)  # noqa: S301 - as above
    except ImportError as error:
        name = error.name or str(error)
        raise CallError(
            f"module '{name}' cannot be imported on {host} by {sys.executable}: {_line(error)}; install it there, put "
            f"it where the nodes see it, or send it along: cloudpickle.register_pickle_by_value({name.split('.')[0]})"
        ) from error
    except AttributeError as error:
        raise CallError(
            f"the call needs something that is not in the modules of {host}: {_line(error)}; is the same version "
            f"installed there ({sys.executable})?"
        ) from error
    return parts, int(header["limit_mb"])


def _line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return text[0] if text else type(error).__name__
