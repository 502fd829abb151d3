"""A worker of a function: `python -m hpc_launch.api.function_worker CALL`, once on every rank."""

from __future__ import annotations

import io
import os
import pickle
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpc_launch.api import pickled_call, remote_exception
from hpc_launch.api.checkpoint import Checkpoints
from hpc_launch.api.submission_files import PICKLE_MODE
from hpc_launch.errors import CallError, reason
from hpc_launch.file_ownership import read_own, read_shared
from hpc_launch.records import directory
from hpc_launch.records.directory import JobDirectory, RankFiles


@dataclass(frozen=True)
class WorkerIdentity:
    """Which worker this is.

    Attributes:
        job: the job directory.
        attempt: the number of this start of the workers.
        host: the node.
        rank: of all workers.
        world_size: how many there are.
    """

    job: JobDirectory
    attempt: int
    host: str
    rank: int
    world_size: int

    @classmethod
    def of(cls, environ: Mapping[str, str]) -> WorkerIdentity:
        """Read the variables of a worker."""
        path = Path(environ["HPC_LAUNCH_JOB_DIRECTORY"])
        numbers = (int(environ[name]) for name in ("HPC_LAUNCH_ATTEMPT", "RANK", "WORLD_SIZE"))
        attempt, rank, world_size = numbers
        return cls(JobDirectory(path.parent, path.name), attempt, environ["HPC_LAUNCH_HOST"], rank, world_size)

    @property
    def files(self) -> RankFiles:
        """The files of this worker."""
        return self.job.rank(self.attempt, self.host, self.rank)


def main(call: str) -> None:
    """Call the function, and write down what it returns, or raises.

    Args:
        call: the file with it, unless an earlier attempt has left a later one.
    """
    here = WorkerIdentity.of(os.environ)
    os.environ.update(submitits_variables(os.environ, Path(call)))
    try:
        (function, args, kwargs), limit_mb = _read(Path(call), here)
        if hasattr(function, "checkpoint"):
            Checkpoints(here.job, here.attempt, here.rank, limit_mb).watch(function, args, kwargs)
        result = _run(function, args, kwargs, here)
        _write(result, here, limit_mb)
    except CallError as error:
        remote_exception.write_exception(
            here.files.raised, error, error.__traceback__, here.rank, here.host, job=here.job.path
        )
        print(f"hpc-launch: {error}", file=sys.stderr)  # noqa: T201 - this is the worker's own log
        raise SystemExit(error.exit_status) from None


def submitits_variables(environ: Mapping[str, str], call: Path) -> dict[str, str]:
    """What makes submitit's `JobEnvironment` speak of this worker. Pure.

    Of Slurm's variables it takes what it says of a task, and these speak of the worker (`--slurm-env`).

    Args:
        environ: the environment of the worker.
        call: the file with its call, which is in submitit's folder.
    """
    folder = {"SUBMITIT_FOLDER": environ.get("SUBMITIT_FOLDER", str(call.parent))}
    if "SLURM_PROCID" in environ:
        return {**folder, "SUBMITIT_EXECUTOR": "slurm"}
    names = {
        "NTASKS": "WORLD_SIZE",
        "JOB_NUM_NODES": "GROUP_WORLD_SIZE",
        "NODEID": "GROUP_RANK",
        "GLOBALID": "RANK",
        "LOCALID": "LOCAL_RANK",
    }
    found = {f"SUBMITIT_LOCAL_{name}": environ[ours] for name, ours in names.items() if ours in environ}
    job_id = call.stem.removesuffix("_call")
    return {**folder, **found, "SUBMITIT_EXECUTOR": "local", "SUBMITIT_LOCAL_JOB_ID": job_id}


def _read(call: Path, here: WorkerIdentity) -> tuple[pickled_call.Parts, int]:
    saved = (here.job.checkpoint(number) for number in reversed(here.job.attempts()) if number < here.attempt)
    path = next((path for path in saved if path.exists()), None)
    try:
        data = read_shared(call) if path is None else read_own(path, here.job.path)
    except OSError as error:
        # What another user has put there would be run as this one.
        raise CallError(f"cannot read the call on {here.host}: {reason(error)}; see {path or call}") from error
    return pickled_call.unpack_call(io.BytesIO(data), here.host)


def _run(function: Any, args: Any, kwargs: Any, here: WorkerIdentity) -> Any:
    try:
        return function(*args, **kwargs)
    except SystemExit as leaving:
        if leaving.code in (None, 0):
            return None
        raise
    except Exception as error:
        trace = error.__traceback__
        remote_exception.write_exception(
            here.files.raised, error, trace.tb_next if trace else None, here.rank, here.host, job=here.job.path
        )
        raise


def _write(result: Any, here: WorkerIdentity, limit_mb: int) -> None:
    """Write a result, after a header that says of how many it is one.

    Raises:
        CallError: it cannot be pickled, or is too large.
    """
    file = io.BytesIO()
    pickle.dump({"world_size": here.world_size}, file)
    try:
        pickled_call.dump(result, file, limit_mb * pickled_call.MEGABYTE)
    except pickled_call.TooLargeError:
        raise CallError(
            f"the result of rank {here.rank} is larger than {limit_mb} MB (max_pickle_mb): write it to a file, in "
            "runtime.job_directory() for instance, and return the path"
        ) from None
    except Exception as error:
        raise CallError(
            f"the result of rank {here.rank}, of type {type(result).__qualname__}, cannot be sent back: {error}; "
            "return numbers, arrays, or the path of a file"
        ) from error
    directory.write_whole(here.files.result, file.getvalue(), here.job.path, mode=PICKLE_MODE)


if __name__ == "__main__":
    main(sys.argv[1])
