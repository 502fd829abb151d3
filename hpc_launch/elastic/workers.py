"""Start, watch and end the processes that train."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.distributed.elastic.multiprocessing import PContext
from torch.distributed.elastic.multiprocessing.api import RunProcsResult
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

from hpc_launch.elastic.console import say
from hpc_launch.warm.factory import Factory, Order

# How long a killed process may take to be gone; after that it hangs in the kernel and is left behind.
_KILL_SECONDS = 5.0


class Wakeup:
    """Lets the main thread wait until a child ends, or some time has passed.

    The end of a worker is then known within milliseconds, and the first failure is the first to be reported.
    """

    def __init__(self) -> None:
        self._read, self._write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._old_descriptor = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        # Without a Python-level handler the descriptor is not written to.
        self._old_handler = signal.signal(signal.SIGCHLD, lambda *_: None)

    def wait(self, seconds: float) -> None:
        """Return when a child ended, another signal came, or the time is over."""
        select.select([self._read], [], [], seconds)
        with contextlib.suppress(BlockingIOError):
            while os.read(self._read, 4096):
                pass

    def close(self) -> None:
        """Put back what was there before."""
        signal.set_wakeup_fd(self._old_descriptor)
        signal.signal(signal.SIGCHLD, self._old_handler)
        os.close(self._read)
        os.close(self._write)


@contextlib.contextmanager
def wakeup() -> Iterator[Wakeup]:
    """A Wakeup for a while."""
    made = Wakeup()
    try:
        yield made
    finally:
        made.close()


@dataclass(frozen=True)
class _Forked:
    """A child that somebody else has forked for us; as far as this needs it, a Popen."""

    pid: int

    def wait(self) -> None:
        """Reap it."""
        os.waitpid(self.pid, 0)


class CommandWorkers(PContext):
    """Workers that are commands, each leading a process group of its own; or forked, and then become the same.

    Unlike torch's SubprocessContext it gives each worker exactly the environment it is told (which can lack variables
    of the agent's), appends to log files, and reports a failure before it ends the other workers, so that the other
    nodes hear of it first.

    A worker that has ended is not reaped before `close`: until then its process id, and so its group's, cannot belong
    to anybody else, and what is left of the group can be killed safely.
    """

    def __init__(self, *args: Any, grace: float, factory: Factory | None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._grace = grace
        self._factory = factory
        self._processes: dict[int, subprocess.Popen[bytes] | _Forked] = {}
        self._statuses: dict[int, int] = {}

    def start(self) -> None:
        """Start them all; unlike torch's, without installing signal handlers (`elastic.run` has)."""
        self._start()

    def _start(self) -> None:
        if self._factory is not None:
            self._processes.update(self._fork(self._factory))
            return
        for local_rank in range(self.nprocs):
            self._processes[local_rank] = self._spawn(local_rank)

    def _fork(self, factory: Factory) -> dict[int, _Forked]:
        with contextlib.ExitStack() as stack:
            orders = []
            for local_rank in range(self.nprocs):
                files = (_destination(stack, path[local_rank]) for path in (self.stdouts, self.stderrs))
                out, err = (file.fileno() if file is not None else None for file in files)
                arguments = tuple(map(str, self.args[local_rank]))
                orders.append(Order(arguments, self.envs[local_rank], (out, err)))
            return {local_rank: _Forked(pid) for local_rank, pid in enumerate(factory.fork(orders))}

    def _spawn(self, local_rank: int) -> subprocess.Popen[bytes]:
        with contextlib.ExitStack() as stack:
            return subprocess.Popen(
                [str(self.entrypoint), *map(str, self.args[local_rank])],
                env=self.envs[local_rank],
                stdout=_destination(stack, self.stdouts[local_rank]),
                stderr=_destination(stack, self.stderrs[local_rank]),
                start_new_session=True,
            )

    def _poll(self) -> RunProcsResult | None:
        for local_rank in self._processes:
            self._look(local_rank)
        failures = {
            local_rank: ProcessFailure(
                local_rank=local_rank,
                pid=self._processes[local_rank].pid,
                exitcode=status,
                error_file=self.error_files[local_rank],
            )
            for local_rank, status in self._statuses.items()
            if status != 0
        }
        if failures:
            return RunProcsResult(failures=failures, stdouts=self.stdouts, stderrs=self.stderrs)
        if len(self._statuses) < self.nprocs:
            return None
        return RunProcsResult(
            return_values=dict.fromkeys(range(self.nprocs)), stdouts=self.stdouts, stderrs=self.stderrs
        )

    def _look(self, local_rank: int) -> bool:
        """Whether a worker has ended; its status is noted, the process not reaped."""
        if local_rank in self._statuses:
            return True
        ended = os.waitid(os.P_PID, self._processes[local_rank].pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if ended is None:
            return False
        by_itself = ended.si_code == os.CLD_EXITED
        self._statuses[local_rank] = ended.si_status if by_itself else -ended.si_status
        return True

    def pids(self) -> dict[int, int]:
        """Process ids by local rank."""
        return {local_rank: process.pid for local_rank, process in self._processes.items()}

    def _close(self, death_sig: signal.Signals, timeout: int = 30) -> None:  # noqa: ARG002 - `grace` is the one place
        running = [rank for rank in self._processes if not self._look(rank)]
        for local_rank in running:
            self._signal_group(local_rank, death_sig)
        self._await_ends(self._grace)
        late = [rank for rank in self._processes if not self._look(rank)]
        if late:
            say(
                f"local rank {', '.join(map(str, late))} did not end within {self._grace:.0f} s of {death_sig.name} "
                "and is killed (--shutdown-timeout)"
            )
        for local_rank in self._processes:
            self._signal_group(local_rank, signal.SIGKILL)
        self._await_ends(_KILL_SECONDS)
        for local_rank, process in list(self._processes.items()):
            if self._look(local_rank):
                process.wait()
                del self._processes[local_rank]
            else:
                say(f"process {process.pid} (local rank {local_rank}) hangs in the kernel and cannot be killed")
        self._processes.clear()

    def _await_ends(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        pause = 0.001
        while not self._all_ended() and time.monotonic() < deadline:
            time.sleep(pause)
            pause = min(pause * 2, 0.05)

    def _all_ended(self) -> bool:
        return sum(self._look(rank) for rank in self._processes) == len(self._processes)

    def _signal_group(self, local_rank: int, signum: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._processes[local_rank].pid, signum)


def _destination(stack: contextlib.ExitStack, path: str) -> Any:
    """Where a stream goes: the agent's own for an empty path, else the end of that file."""
    return stack.enter_context(Path(path).open("ab")) if path else None


def status_of(exitcode: int) -> int:
    """The exit status for a worker's exit code as subprocess gives it: 128+N for signal N, as shells say it."""
    return exitcode if exitcode >= 0 else 128 - exitcode


def describe(exitcode: int) -> str:
    """An exit code in words."""
    if exitcode >= 0:
        return f"exit status {exitcode}"
    try:
        return signal.Signals(-exitcode).name
    except ValueError:
        return f"signal {-exitcode}"


def replace_local_rank(arguments: Sequence[str], local_rank: int) -> tuple[str, ...]:
    """Fill in the local rank where torch's macro stands for it (torch/distributed/elastic/utils/api.py)."""
    return tuple(argument.replace("${local_rank}", str(local_rank)) for argument in arguments)


def run_path(hidden: Sequence[str], script: str, *arguments: str) -> None:
    """Run a script in this process, as --run-path asks; the entry point of workers that are functions.

    Args:
        hidden: variables that the worker is not to see.
        script: path of the script.
        arguments: its arguments.
    """
    import runpy  # noqa: PLC0415 - only workers of this kind need it
    import sys  # noqa: PLC0415

    for name in hidden:
        os.environ.pop(name, None)
    sys.argv = [script, *arguments]
    runpy.run_path(script, run_name="__main__")


def hidden_variables(agent: Mapping[str, str], worker: Mapping[str, str]) -> tuple[str, ...]:
    """Variables of the agent that a worker is not to have."""
    return tuple(name for name in agent if name not in worker)
