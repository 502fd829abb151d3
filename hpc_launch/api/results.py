"""Read what the workers of a job have left: results by rank, and what ended it."""

from __future__ import annotations

import contextlib
import io
import pickle
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hpc_launch import codec
from hpc_launch.api import remote_exception
from hpc_launch.api.pickled_call import first_line
from hpc_launch.api.submission_files import read_json
from hpc_launch.errors import CallError, JobFailed, ResultError, UsageError, WorkerFailed, exit_status_of, reason
from hpc_launch.file_ownership import read_own
from hpc_launch.records import failure_messages, history, root_cause
from hpc_launch.records.directory import JobDirectory
from hpc_launch.records.history_model import Worker
from hpc_launch.records.plan_record import PlanRecord
from hpc_launch.text import count

# What another node has written may be seen here some seconds later.
LAG_SECONDS = 30.0

_PAUSE = 0.2

# Bytes; a result itself may have hundreds of megabytes.
_LONGEST_HEADER = 4096

_RESULT = re.compile(r"rank_(\d+)\.result\.pkl")
_RAISED = re.compile(r"rank_(\d+)\.raised\.pkl")


def read_results(job: JobDirectory, job_id: str, *, functions: bool, patience: float = LAG_SECONDS) -> list[Any]:
    """The results of all ranks, in their order, of the last attempt.

    Args:
        job: the job directory.
        job_id: the job's id, for messages.
        functions: a function was called; otherwise it was a script, which returns nothing.
        patience: how long to wait for what other nodes have written.

    Raises:
        JobFailed: those of some ranks are not there.
        ResultError: those of some ranks cannot be read; it has those of the others.
    """
    size, files = _await_files(job, job_id, None, functions=functions, patience=patience)
    if not functions:
        return [None] * size
    found: dict[int, Any] = {}
    errors: dict[int, Exception] = {}
    for rank in range(size):
        try:
            found[rank] = _read(job, files[rank])
        except Exception as error:  # noqa: BLE001 - a pickle may raise whatever it likes, and other ranks can be read
            errors[rank] = error
    if errors:
        raise _unreadable(job_id, found, {rank: files[rank] for rank in errors}, errors)
    return [found[rank] for rank in range(size)]


def read_result(job: JobDirectory, job_id: str, rank: int, *, functions: bool, patience: float = LAG_SECONDS) -> Any:
    """The result of one rank, of the last attempt: those of others need neither be there nor readable.

    Args:
        job: the job directory.
        job_id: the job's id, for messages.
        rank: which one.
        functions: a function was called; otherwise it was a script, which returns nothing.
        patience: how long to wait for what another node has written.

    Raises:
        UsageError: there is no such rank.
        JobFailed: its result is not there.
        ResultError: its result cannot be read.
    """
    _, files = _await_files(job, job_id, rank, functions=functions, patience=patience)
    if not functions:
        return None
    try:
        return _read(job, files[rank])
    except Exception as error:
        raise _unreadable(job_id, {}, {rank: files[rank]}, {rank: error}) from error


def _await_files(
    job: JobDirectory, job_id: str, rank: int | None, *, functions: bool, patience: float
) -> tuple[int, dict[int, Path]]:
    """How many ranks there are, and the files of their results; all of them, or that of one rank, are awaited."""
    end = time.monotonic() + patience
    while True:
        files = _numbered(job, _RESULT) if functions else {}
        size = _world_size(job, files)
        if rank is not None and size is not None:
            check_rank(rank, size, job_id)
        if size is not None and (not functions or {*range(size)} <= {*files} or rank in files):
            return size, files
        if time.monotonic() > end:
            absent = [rank] if rank is not None else sorted(set(range(size or 1)) - set(files))
            missing = ", ".join(map(str, absent))
            hint = "; result(rank=...) returns that of one rank" if rank is None and files else ""
            raise JobFailed(
                f"job {job_id} ended well, but there is no result of rank {missing} in {job.path}{hint}", job_id=job_id
            )
        time.sleep(_PAUSE)


def check_rank(rank: int, size: int, job_id: str) -> None:
    """Refuse a rank that a job does not have.

    Raises:
        UsageError: naming those that it has.
    """
    if rank not in range(size):
        raise UsageError(f"job {job_id} has no rank {rank!r}: its ranks are 0 to {size - 1}", option="rank")


def _unreadable(
    job_id: str, found: dict[int, Any], files: dict[int, Path], errors: dict[int, Exception]
) -> ResultError:
    ranks = ", ".join(map(str, errors))
    rank, error = next(iter(errors.items()))
    why = f"{type(error).__name__}: {first_line(error)}" if not isinstance(error, CallError) else str(error)
    others = f"; the attribute 'results' of this error has those of {count(len(found), 'other rank')}" if found else ""
    return ResultError(
        f"job {job_id}: the result of rank {ranks} cannot be read here: {why} ({files[rank]}){others}",
        results=found,
        files=files,
        errors=errors,
    )


def _numbered(job: JobDirectory, pattern: re.Pattern[str]) -> dict[int, Path]:
    """The files of that name in the last attempt, by rank."""
    attempts = job.attempts()
    if not attempts:
        return {}
    found = {}
    for path in job.attempt(attempts[-1]).glob("*/rank_*.pkl"):
        match = pattern.fullmatch(path.name)
        if match:
            found[int(match[1])] = path
    return found


def _world_size(job: JobDirectory, files: dict[int, Path]) -> int | None:
    """How many ranks there are: by any result that says so, else by the plan; None where nothing is known."""
    for path in files.values():
        with contextlib.suppress(Exception):  # it is looked at again, and then named
            size = _header(_open(job, path, _LONGEST_HEADER))
            if size > max(files):
                return size
    # Of files that all cannot be read, without a plan, these are the ranks that are known of.
    return _planned(job) or (max(files) + 1 if files else None)


def _planned(job: JobDirectory) -> int | None:
    """How many ranks the last attempt has; by the plan, where nobody has written down an attempt."""
    attempt = history.read_history(job.path).last_attempt
    if attempt is not None and attempt.world_size:
        return attempt.world_size
    derived = codec.salvage(PlanRecord, read_json(job.last_plan)).derived
    try:
        nodes, ranks = (int(derived[name].value.partition(":")[0]) for name in ("nnodes", "nproc_per_node"))
    except (KeyError, ValueError):
        return None
    return nodes * ranks


def _read(job: JobDirectory, path: Path) -> Any:
    """The result of one rank.

    Raises:
        Exception: whatever a pickle raises that cannot be read here.
    """
    file = _open(job, path)
    _header(file)
    return pickle.load(file)  # noqa: S301 - the user's own job wrote it


def _header(file: io.BytesIO) -> int:
    """How many ranks there are, as the beginning of a result says.

    Raises:
        Exception: as `_read`.
    """
    return int(pickle.load(file)["world_size"])  # noqa: S301 - as above


def _open(job: JobDirectory, path: Path, most: int = -1) -> io.BytesIO:
    """A pickle of one's own, or its first bytes: to load one is to run what it says.

    Raises:
        CallError: it cannot be read, or belongs to somebody else.
    """
    try:
        return io.BytesIO(read_own(path, job.path, most))
    except OSError as error:
        raise CallError(f"cannot load {path}: {reason(error)}") from error


def failure_of_job(
    job: JobDirectory, job_id: str, status: int, state: str, last_words: Callable[[], str]
) -> BaseException:
    """What ended a job: the exception of the worker that failed first, else an error that says what is known.

    Args:
        job: the job directory.
        job_id: the job's id.
        status: the exit status of the job.
        state: what Slurm calls it.
        last_words: gives what the launcher said last.
    """
    found = history.read_history(job.path)
    attempt = found.last_attempt
    cause = root_cause.root_cause_of(found, attempt) if attempt is not None else None
    blamed = cause.first if cause is not None else None
    # What workers raise because they are stopped, or others are lost, is no reason for anything.
    stopped = attempt is not None and bool(attempt.signal)
    lost = cause is not None and bool(cause.lost) and blamed is None
    raised = None if stopped or lost else _raised(job, blamed)
    if raised is not None:
        log = _log(job, raised.host, raised.rank)
        again = remote_exception.again(raised, job_id, log)
        if again is not None:
            return again
        error: BaseException = WorkerFailed(
            f"job {job_id}: rank {raised.rank} on {raised.host} raised {raised.kind}: {raised.message}; its log: {log}",
            job_id=job_id,
            rank=raised.rank,
            host=raised.host,
            status=status,
            log=log,
        )
        error.__cause__ = remote_exception.RemoteTraceback(raised.text, raised.rank, raised.host, log)
        return error
    if blamed is not None and blamed.exitcode is not None:
        log, code = str(blamed.files.err), blamed.exitcode
        why = root_cause.what_happened(blamed)
        return WorkerFailed(
            f"job {job_id}: rank {blamed.rank} on {blamed.host} ended with {root_cause.worker_ending(blamed)}"
            f"{f' ({why})' if why else ''}; its log: {log}",
            job_id=job_id,
            rank=blamed.rank,
            host=blamed.host,
            signal=root_cause.signal_name(code) if code < 0 else "",
            status=exit_status_of(code),
            log=log,
        )
    words = "; ".join(
        filter(None, [failure_messages.failure_headline(cause) if cause is not None and lost else "", last_words()])
    )
    why = f": {words}" if words else ""
    return JobFailed(
        f"job {job_id} ended with status {status} ({state}){why}", job_id=job_id, state=state, exit_status=status
    )


def _raised(job: JobDirectory, blamed: Worker | None) -> remote_exception.RemoteException | None:
    """What the worker that is to blame has raised; without one, what was raised first."""
    noted = _numbered(job, _RAISED)
    paths = [*noted.values()] if blamed is None else [noted[blamed.rank]] if blamed.rank in noted else []
    found = [raised for path in paths if (raised := remote_exception.read_exception(path, job.path)) is not None]
    return min(found, key=lambda raised: raised.time, default=None)


def _log(job: JobDirectory, host: str, rank: int) -> str:
    attempts = job.attempts()
    return str(job.rank(attempts[-1], host, rank).err) if attempts else ""
