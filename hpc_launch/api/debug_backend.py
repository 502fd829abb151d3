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
from hpc_launch.node import network

# What a script needs to be the only rank, unless it is set.
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


def run_in_process(task: ElasticTask, call: Path) -> DebugResult:
    """Run a task, to its end.

    Args:
        task: what to run.
        call: the file that its call would be in.
    """
    with _alone(call):
        try:
            if task.script:
                with _arguments(task.script):
                    runpy.run_path(task.script[0], run_name="__main__")
                return DebugResult(0)
            (function, args, kwargs), _ = pickled_call.unpack_call(
                io.BytesIO(task.call), network.short_name(os.uname().nodename)
            )
            return DebugResult(0, function(*args, **kwargs))
        except SystemExit as leaving:
            if leaving.code in (None, 0):
                return DebugResult(0)
            return DebugResult(leaving.code if isinstance(leaving.code, int) else 1, error=leaving)
        except Exception as error:  # noqa: BLE001 - it is the function's, for whoever asks for the result
            return DebugResult(1, error=error)


@contextlib.contextmanager
def _alone(call: Path) -> Iterator[None]:
    """The variables of a worker, while it runs here."""
    wanted = _ALONE | submitits_variables({**_ALONE, **os.environ}, call)
    missing = [name for name in wanted if name not in os.environ]
    for name in missing:
        os.environ[name] = wanted[name]
    try:
        yield
    finally:
        for name in missing:
            os.environ.pop(name, None)


@contextlib.contextmanager
def _arguments(words: tuple[str, ...]) -> Iterator[None]:
    before = sys.argv
    sys.argv = list(words)
    try:
        yield
    finally:
        sys.argv = before
