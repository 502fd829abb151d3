"""The workers of functions, one by one and without an agent: what they write down, and how they leave."""

from __future__ import annotations

import functools
import json
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from hpc_launch.api import pickled_call, remote_exception
from hpc_launch.errors import CallError
from hpc_launch.records.directory import JobDirectory, RankFiles
from tests.support import mentions, wait_for

DEADLINE = 60.0


@dataclass
class Attempt:
    """An attempt of two ranks, of which some are started."""

    folder: Path
    number: int = 0
    workers: list[subprocess.Popen[str]] = field(default_factory=list)

    @property
    def job(self) -> JobDirectory:
        return JobDirectory(self.folder, "job")

    def files(self, rank: int = 0) -> RankFiles:
        return self.job.rank(self.number, "n1", rank)

    def start(
        self, function: Callable[..., Any], *args: Any, rank: int = 0, limit_mb: int = 1
    ) -> subprocess.Popen[str]:
        """Start the worker of a rank."""
        self.job.node(self.number, "n1").mkdir(parents=True, exist_ok=True)
        call = self.folder / "call.pkl"
        call.write_bytes(pickled_call.pack_call(function, args, {}, limit_mb))
        environ = {
            **os.environ,
            "RANK": str(rank),
            "WORLD_SIZE": "2",
            "HPC_LAUNCH_ATTEMPT": str(self.number),
            "HPC_LAUNCH_HOST": "n1",
            "HPC_LAUNCH_JOB_DIRECTORY": str(self.job.path),
        }
        line = [sys.executable, "-m", "hpc_launch.api.function_worker", str(call)]
        worker = subprocess.Popen(line, env=environ, cwd=self.folder, stderr=subprocess.PIPE, text=True)
        self.workers.append(worker)
        return worker

    def run(self, function: Callable[..., Any], *args: Any, **more: Any) -> tuple[int, str]:
        """Run the worker of a rank to its end: its status, and what it said."""
        worker = self.start(function, *args, **more)
        said = worker.communicate(timeout=DEADLINE)[1]
        return worker.returncode, said

    def raised(self) -> remote_exception.RemoteException:
        """What rank 0 has noted."""
        found = remote_exception.read_exception(self.files().raised)
        assert found is not None
        return found

    def up(self, name: str) -> None:
        """Wait until a worker says that it has begun."""
        wait_for((self.folder / name).exists, DEADLINE, lambda: str([*self.folder.rglob("*")]))


@pytest.fixture
def attempt(tmp_path: Path) -> Iterator[Attempt]:
    made = Attempt(tmp_path)
    yield made
    for worker in made.workers:
        worker.kill()
        worker.communicate()


def test_a_result_is_written_whole(attempt: Attempt) -> None:
    """After a header that says of how many it is one; leaving with status 0 is a result too."""
    assert attempt.run(lambda: {"x": 1}) == (0, "")
    with attempt.files().result.open("rb") as file:
        assert (pickle.load(file), pickle.load(file)) == ({"world_size": 2}, {"x": 1})
    assert attempt.run(sys.exit, 0) == (0, "")
    with attempt.files().result.open("rb") as file:
        assert (pickle.load(file), pickle.load(file)) == ({"world_size": 2}, None)


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (
            functools.partial(bytes, 2 << 20),
            "0 1 MB max_pickle_mb",
        ),
        (
            threading.Lock,
            "0 lock pickle '_thread.lock'",
        ),
    ],
    ids=["large", "lock"],
)
def test_a_result_that_cannot_be_sent(attempt: Attempt, function: Callable[[], Any], words: str) -> None:
    """One line says why, there and here, and the status is that of the error."""
    status, said = attempt.run(function)
    error = remote_exception.again(attempt.raised(), "1", "")

    assert (status, len(said.splitlines())) == (CallError.exit_status, 1)
    assert mentions(said, "hpc-launch:", words)
    assert isinstance(error, CallError)
    assert mentions(error, words)
    assert not attempt.files().result.exists()


def test_an_exception_is_noted_from_the_function_on(attempt: Attempt) -> None:
    """With its traceback, of which the frames of hpc-launch are no part; the worker ends as it would."""

    def wrong() -> None:
        raise ValueError("no such thing")

    status, said = attempt.run(wrong)
    raised = attempt.raised()

    assert status == 1
    assert said.splitlines()[-1] == "ValueError: no such thing"
    assert (raised.kind, raised.message, raised.rank, raised.host) == ("ValueError", "no such thing", 0, "n1")
    assert "hpc_launch" not in raised.text
    assert 'raise ValueError("no such thing")' in raised.text


# ---- checkpoints


class Counting:
    """Goes on for ever, and when it is told it is one further.

    Args:
        begun: how often it has been told.
        what: what a checkpoint comes to: a call, one with wrong arguments, None, or an exception.
    """

    def __init__(self, begun: int = 0, what: str = "call") -> None:
        self.begun = begun
        self.what = what

    def __call__(self, name: str) -> int:
        Path(f"up.{name}.{os.environ['RANK']}.{self.begun}").touch()
        if name == "last":
            return self.begun
        lock = threading.Lock()
        lock.acquire()
        lock.acquire()  # for ever, as in a collective that nobody else comes to
        return -1

    def checkpoint(self, name: str) -> Any:
        self.begun += 1
        if self.what == "fail":
            raise OSError("disk full")
        if self.what == "wrong":
            return Later(self.__call__, (name, self.begun))
        return None if self.what == "none" else Later(self, (name,))


@dataclass
class Later:
    """What submitit's DelayedSubmission has."""

    function: Any
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)


@pytest.mark.parametrize("told", [signal.SIGUSR1, signal.SIGUSR2])
def test_rank_0_saves_and_all_leave(attempt: Attempt, told: signal.Signals) -> None:
    """Rank 1, told first, stays until rank 0 has saved, and leaves though it hangs; the next attempt goes on."""
    first, second = (attempt.start(Counting(), "on", rank=rank) for rank in (0, 1))
    attempt.up("up.on.0.0")
    attempt.up("up.on.1.0")
    second.send_signal(told)
    assert not attempt.job.checkpoint(0).exists()
    assert second.poll() is None
    first.send_signal(told)

    assert (first.wait(DEADLINE), second.wait(DEADLINE)) == (0, 0)
    assert attempt.job.checkpoint(0).exists()
    later = Attempt(attempt.folder, 1, attempt.workers)
    later.start(Counting(), "on")
    later.up("up.on.0.1")
    # A stop, as of a preemption that Slurm does not announce.
    attempt.workers[-1].terminate()
    assert attempt.workers[-1].wait(DEADLINE) == 0
    last = Attempt(attempt.folder, 2, attempt.workers)
    last.start(Counting(), "on")
    last.up("up.on.0.2")


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("none", "checkpoint() returned None"),
        ("fail", "OSError: disk full"),
        ("wrong", "__call__() takes 1 argument by position"),
    ],
)
def test_without_a_checkpoint_nobody_leaves(attempt: Attempt, what: str, said: str) -> None:
    """The function goes on, and its log says why; it can be told again."""
    worker = attempt.start(Counting(what=what), "on")
    attempt.up("up.on.0.0")
    lines: list[str] = []
    assert worker.stderr is not None
    for _ in range(2):
        worker.send_signal(signal.SIGUSR2)
        while not lines or "goes on" not in lines[-1]:
            lines.append(worker.stderr.readline())
            assert lines[-1], lines
        assert any(said in line for line in lines), lines
        lines = []

    assert worker.poll() is None
    assert not attempt.job.checkpoint(0).exists()


def test_a_worker_imports_what_its_function_needs(attempt: Attempt) -> None:
    """And not torch, numpy or submitit by itself."""
    attempt.run(lambda: sorted(name for name in ("torch", "numpy", "submitit") if name in sys.modules))
    with attempt.files().result.open("rb") as file:
        pickle.load(file)

        assert json.dumps(pickle.load(file)) == "[]"
