"""An exception of a worker, as it is written on the node and made again where the job was submitted."""

from __future__ import annotations

import contextlib
import importlib
import pickle
import sys
import time
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType

from hpc_launch.api.submission_files import PICKLE_MODE
from hpc_launch.errors import LogDirError
from hpc_launch.file_ownership import read_own
from hpc_launch.records import directory

# An exception with more than this, of a batch of images for example, is told in words.
_LARGEST = 16 << 20


class RemoteTraceback(Exception):
    """The cause of an exception that was made again here: where it was raised there.

    Attributes:
        rank: of the worker.
        host: its node.
        log: the file with its errors.
    """

    def __init__(self, text: str, rank: int, host: str, log: str) -> None:
        super().__init__(text)
        self.rank = rank
        self.host = host
        self.log = log

    def __str__(self) -> str:
        return f'\n"""\n{self.args[0]}"""'


@dataclass(frozen=True)
class RemoteException:
    """An exception of a worker.

    Attributes:
        kind: its type's name.
        message: its text.
        text: its traceback.
        rank: of the worker.
        host: its node.
        time: when it was raised, in seconds since the epoch, by the clock there.
        pickled: the exception itself, where it can be read again.
    """

    kind: str
    message: str
    text: str
    rank: int
    host: str
    time: float
    pickled: bytes | None = None


def write_exception(
    path: Path, error: BaseException, trace: TracebackType | None, rank: int, host: str, *, job: Path | None = None
) -> None:
    """Write an exception down, on its node; where that is not possible it is in the worker's log all the same.

    Args:
        path: where.
        error: the exception.
        trace: its traceback, from where the user's own code begins.
        rank: of the worker.
        host: the node.
        job: the job directory.
    """
    pickled = _pickled(error)
    text = "".join(traceback.format_exception(type(error), error, trace))
    kind = type(error)
    name = (
        kind.__qualname__ if kind.__module__ in ("builtins", "__main__") else f"{kind.__module__}.{kind.__qualname__}"
    )
    raised = RemoteException(name, str(error), text, rank, host, time.time(), pickled)
    with contextlib.suppress(LogDirError):
        directory.write_whole(path, pickle.dumps(asdict(raised)), job, mode=PICKLE_MODE)


def _pickled(error: BaseException) -> bytes | None:
    try:
        data: bytes = importlib.import_module("cloudpickle").dumps(error)
        pickle.loads(data)  # noqa: S301 - some can be written and not be read: those with arguments of their own
    except Exception:  # noqa: BLE001 - the words remain
        return None
    return data if len(data) <= _LARGEST else None


def read_exception(path: Path, job: Path | None = None) -> RemoteException | None:
    """Read what a worker has noted in a job directory; None where there is nothing, or what is there is of others."""
    try:
        return RemoteException(**pickle.loads(read_own(path, job)))  # noqa: S301 - plain values, of a file of one's own
    except Exception:  # noqa: BLE001 - a damaged pickle raises anything, and what ended the job is known without it
        return None


def again(raised: RemoteException, job_id: str, log: str) -> BaseException | None:
    """Make an exception again, with the traceback of the worker as its cause; None where only words are left.

    Args:
        raised: what was noted.
        job_id: of the job.
        log: the file with the worker's errors.
    """
    if raised.pickled is None:
        return None
    try:
        error = pickle.loads(raised.pickled)  # noqa: S301 - as above
    except Exception:  # noqa: BLE001 - its module may not be here
        return None
    if not isinstance(error, BaseException):
        return None
    error.__cause__ = RemoteTraceback(raised.text, raised.rank, raised.host, log)
    if sys.version_info >= (3, 11):
        error.add_note(f"raised by rank {raised.rank} on {raised.host}, job {job_id}; its log: {log}")
    return error
