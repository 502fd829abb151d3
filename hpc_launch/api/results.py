"""Read what the workers of a job have left: results by rank, and what ended it."""

from __future__ import annotations

import io
import pickle
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hpc_launch import codec
from hpc_launch.api import remote_exception
from hpc_launch.api.submission_files import read_json
from hpc_launch.errors import CallError, JobFailed, WorkerFailed, exit_status_of, reason
from hpc_launch.file_ownership import read_own
from hpc_launch.records import failure_messages, history, root_cause
from hpc_launch.records.directory import JobDirectory
from hpc_launch.records.history_model import Worker
from hpc_launch.records.plan_record import PlanRecord

# What another node has written may be seen here some seconds later.
LAG_SECONDS = 30.0

_PAUSE = 0.2

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
        CallError: those of some ranks belong to somebody else.
    """
    end = time.monotonic() + patience
    while True:
        files = _numbered(job, _RESULT)
        size = _world_size(job, files) if functions else _planned(job)
        if not functions and size is not None:
            return [None] * size
        if size is not None and set(files) == set(range(size)):
            return [_result(job, files[rank]) for rank in range(size)]
        if time.monotonic() > end:
            missing = ", ".join(map(str, sorted(set(range(size or 1)) - set(files))))
            raise JobFailed(
                f"job {job_id} ended well, but there is no result of rank {missing} in {job.path}", job_id=job_id
            )
        time.sleep(_PAUSE)


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
    for path in files.values():
        size: int = pickle.load(_open(job, path))["world_size"]  # noqa: S301 - the user's own job wrote it
        return size
    return None


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


def _result(job: JobDirectory, path: Path) -> Any:
    file = _open(job, path)
    pickle.load(file)  # noqa: S301 - the header
    return pickle.load(file)  # noqa: S301 - as above


def _open(job: JobDirectory, path: Path) -> io.BytesIO:
    """A pickle of one's own: to load one is to run what it says.

    Raises:
        CallError: it cannot be read, or belongs to somebody else.
    """
    try:
        return io.BytesIO(read_own(path, job.path))
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
