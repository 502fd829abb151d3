"""Run rank 0 of a task in this process, where a debugger can stop it."""

from __future__ import annotations

import contextlib
import io
import os
import runpy
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpc_launch.api import pickled_call
from hpc_launch.api.elastic_task import ElasticTask
from hpc_launch.api.function_worker import submitits_variables
from hpc_launch.api.submission_files import JobFiles
from hpc_launch.errors import UsageError, WorkerFailed
from hpc_launch.node import network

# What a script needs to be the only rank, unless it is set; and a port.
_ALONE = {
    "RANK": "0",
    "LOCAL_RANK": "0",
    "GROUP_RANK": "0",
    "WORLD_SIZE": "1",
    "LOCAL_WORLD_SIZE": "1",
    "MASTER_ADDR": "127.0.0.1",
}


@dataclass(frozen=True)
class DebugResult:
    """What came of it.

    Attributes:
        status: 0 where it went well.
        value: what the function returned.
        error: what it raised, with its traceback for a debugger.
    """

    status: int
    value: Any = None
    error: BaseException | None = None


def check_task(task: ElasticTask) -> None:
    """See that a task can run in this process.

    Raises:
        UsageError: it runs a program that is not Python.
    """
    if task.script and task.resources.launch_options.get("no-python"):
        raise UsageError("launch: no_python runs a program, and cluster='debug' runs Python in this process")


def run_in_process(task: ElasticTask, files: JobFiles) -> DebugResult:
    """Run a task, to its end.

    Args:
        task: what to run.
        files: those of its job.
    """
    with _alone(files.call):
        try:
            if task.script:
                module = bool(task.resources.launch_options.get("module"))
                _run_script(("-m", *task.script) if module else task.script)
                return DebugResult(0)
            (function, args, kwargs), _ = pickled_call.unpack_call(io.BytesIO(task.call), _host())
            return DebugResult(0, function(*args, **kwargs))
        except SystemExit as leaving:
            return _left(leaving, files.job_id)
        except Exception as error:  # noqa: BLE001 - it is the function's, for whoever asks for the result
            return DebugResult(1, error=error)


def _run_script(words: tuple[str, ...]) -> None:
    """Run `words` as `python words` does: modules beside a script are found, those in the working directory by `-m`."""
    arguments, path = sys.argv, [*sys.path]
    is_module = words[0] == "-m"
    sys.argv = [*(words[1:] if is_module else words)]
    sys.path.insert(0, str(Path.cwd() if is_module else Path(words[0]).resolve().parent))
    try:
        if is_module:
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(words[0], run_name="__main__")
    finally:
        sys.argv, sys.path[:] = arguments, path


def _left(leaving: SystemExit, job_id: str) -> DebugResult:
    """What came of a task that has left by `sys.exit`."""
    if leaving.code in (None, 0):
        return DebugResult(0)
    status = leaving.code if isinstance(leaving.code, int) else 1
    host = _host()
    said = f"rank 0 on {host} ended with exit status {status} (sys.exit({leaving.code!r}))"
    error = WorkerFailed(f"job {job_id}: {said}", job_id=job_id, rank=0, host=host, status=status)
    error.__cause__ = leaving
    return DebugResult(status, error=error)


def _host() -> str:
    return network.short_name(os.uname().nodename)


@contextlib.contextmanager
def _alone(call: Path) -> Iterator[None]:
    """The variables of a worker, while it runs here."""
    wanted = _ALONE | submitits_variables({**_ALONE, **os.environ}, call)
    with network.bound(_ALONE["MASTER_ADDR"], 0) as free:
        wanted["MASTER_PORT"] = str(free.getsockname()[1])
    missing = [name for name in wanted if name not in os.environ]
    for name in missing:
        os.environ[name] = wanted[name]
    try:
        yield
    finally:
        for name in missing:
            os.environ.pop(name, None)
