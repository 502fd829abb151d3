"""A call, from here to a worker: the function and its arguments as bytes, with what is needed to read them.

Two pickles in a row: a header of plain values, which can be read anywhere, then the function with its arguments.
"""

from __future__ import annotations

import importlib
import io
import linecache
import pickle
import sys
from collections import ChainMap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import CodeType
from typing import Any, BinaryIO, ClassVar

from hpc_launch.api import pickle_diagnosis
from hpc_launch.errors import CallError

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


def dump(value: Any, file: BinaryIO, limit: int) -> frozenset[str]:
    """Pickle a value, with functions and classes of notebooks and scripts in it, up to a number of bytes.

    cloudpickle leaves out in which file the code of these stands, since 3.1. Here it is kept: tracebacks name it.

    Returns:
        The files of that code.

    Raises:
        TooLargeError: there are more bytes.
        Exception: whatever a value raises that cannot be pickled.
    """
    usual_pickler = importlib.import_module("cloudpickle").Pickler
    usual = usual_pickler.dispatch_table[CodeType]
    files = set()

    def reduce(code: CodeType) -> tuple[Any, ...]:
        files.add(code.co_filename)
        return _code_of, (code.co_filename, *usual(code))

    class Pickler(usual_pickler):  # type: ignore[misc, valid-type]  # it is imported late
        dispatch_table: ClassVar = ChainMap({CodeType: reduce}, usual_pickler.dispatch_table)

    Pickler(_Bounded(file, limit), protocol=pickle.HIGHEST_PROTOCOL).dump(value)
    return frozenset(files)


def _code_of(file: str, make: Callable[..., CodeType], values: tuple[Any, ...]) -> CodeType:
    """Make code again; on a node, while a call is read."""
    return make(*values).replace(co_filename=file)


def pack_call(function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], limit_mb: int) -> bytes:
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
    parts: Parts = (function, tuple(args), dict(kwargs))
    try:
        sources = dump(parts, file, limit_mb * MEGABYTE)
    except TooLargeError:
        what = pickle_diagnosis.find_largest(parts, limit_mb * MEGABYTE)
        raise CallError(
            f"{what} is too large to be sent: the limit is {limit_mb} MB (max_pickle_mb); write it to a file that the "
            "nodes see, and pass the path"
        ) from None
    except Exception as error:
        what = pickle_diagnosis.find_unpicklable(parts)
        raise CallError(
            f"cannot send {what}: {first_line(error)}; make it inside of the function, or pass a path"
        ) from error
    header = {
        "python": list(sys.version_info[:2]),
        "path": [str(Path(entry or ".").absolute()) for entry in sys.path],
        "limit_mb": limit_mb,
        # The cells of a notebook are in no file: their text goes along, for tracebacks.
        "sources": {name: linecache.getlines(name) for name in sources if not Path(name).exists()},
    }
    return pickle.dumps(header) + file.getvalue()


def unpack_call(file: BinaryIO, host: str) -> tuple[Parts, int]:
    """Read a call, on a node.

    Args:
        file: with the bytes.
        host: the node, for messages.

    Returns:
        The call, and its limit in MB.

    Raises:
        CallError: something that it needs is not on this node.
    """
    try:
        header = pickle.load(file)  # noqa: S301 - the user's own file, as all of these
        found = ".".join(map(str, header["python"]))
    except Exception as error:
        raise CallError(f"the call is damaged, as {host} sees it: {_named(error)}; submit it again") from error
    if tuple(header["python"]) != sys.version_info[:2]:
        raise CallError(
            f"{host} runs Python {sys.version_info[0]}.{sys.version_info[1]} ({sys.executable}), but the call was made "
            f"by {found}, and functions cannot be read by another release: use the same environment in both places"
        )
    for name, lines in header["sources"].items():
        linecache.cache[name] = (sum(map(len, lines)), None, lines, name)
    sys.path.extend(entry for entry in header["path"] if entry not in sys.path and Path(entry).is_dir())
    try:
        parts: Parts = pickle.load(file)  # noqa: S301 - as above
    except ImportError as error:
        name = error.name or str(error)
        raise CallError(
            f"module '{name}' cannot be imported on {host} by {sys.executable}: {first_line(error)}; install it there, "
            "put it where the nodes see it, or send it along: "
            f"cloudpickle.register_pickle_by_value({name.split('.')[0]})"
        ) from error
    except AttributeError as error:
        raise CallError(
            f"the call needs something that is not in the modules of {host}: {first_line(error)}; is the same version "
            f"installed there ({sys.executable})?"
        ) from error
    except Exception as error:
        raise CallError(
            f"the call cannot be read on {host} by {sys.executable}: {_named(error)}; an argument may need what only "
            "the submitting machine has"
        ) from error
    return parts, int(header["limit_mb"])


def first_line(error: BaseException) -> str:
    """The first line of an error, or its kind where it says nothing."""
    text = str(error).strip().splitlines()
    return text[0] if text else type(error).__name__


def _named(error: BaseException) -> str:
    return f"{type(error).__name__}: {first_line(error)}"
