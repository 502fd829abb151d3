"""The workers of one attempt: started by the factory, watched, and ended."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch.distributed.elastic.multiprocessing.api import RunProcsResult
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

from hpc_launch import redaction, slow_storage
from hpc_launch.console import say
from hpc_launch.file_ownership import NotOwnError
from hpc_launch.records import directory
from hpc_launch.torch_private import WorkerContext
from hpc_launch.workers.factory import Factory, FactoryLostError
from hpc_launch.workers.factory_channel import readable
from hpc_launch.workers.factory_server import EndedWorker, Order
from hpc_launch.workers.grace_period import GracePeriod

# What workers have left behind when they ended by themselves may take so long to end, before it is killed.
_LEFTOVER_SECONDS = 3.0

# How often to look whether the time that workers have has changed.
_LOOK_SECONDS = 0.05


class Wakeup:
    """Lets the main thread wait until a worker ends, a signal or a message comes, or some time has passed.

    The end of a worker is then known within milliseconds, and the first failure is the first to be reported.
    """

    def __init__(self) -> None:
        self._read, self._write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._old_descriptor = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)

    def wait(self, seconds: float, factory: Factory, others: Sequence[int] = ()) -> None:
        """Return when a worker ended, a signal came, or the time is over.

        Args:
            seconds: the time.
            factory: of the workers.
            others: descriptors on which messages of other agents come.
        """
        waited_for = [self._read, *others] if factory.lost else [self._read, factory.fileno(), *others]
        readable(waited_for, 0 if factory.has_news else seconds)
        with contextlib.suppress(BlockingIOError):
            while os.read(self._read, 4096):
                pass

    def close(self) -> None:
        """Put back what was there before."""
        signal.set_wakeup_fd(self._old_descriptor)
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


class CommandWorkers(WorkerContext):
    """Workers that are commands, each leading a process group of its own; or forked, and then become the same.

    Unlike torch's SubprocessContext it gives each worker exactly the environment it is told (which can lack variables
    of the agent's), appends to log files, reports a failure before it ends the other workers, so that the other nodes
    hear of it first, and leaves nothing behind: what workers have started ends with them.

    Attributes:
        endings: how workers have ended, by local rank.
        told: the last signal that workers were sent to end them, by local rank; none for those that had ended before.
        hung: process ids that could not be killed.
    """

    def __init__(
        self,
        *args: Any,
        factory: Factory,
        forked: bool,
        group: bool,
        grace_period: GracePeriod,
        job: Path,
        secret_names: Sequence[str] = (),
        cpus: Callable[[int], Sequence[int]] = lambda _: (),
        open_files: int | None = None,
        **kwargs: Any,
    ) -> None:
        """Prepare them.

        Args:
            args: as torch's PContext has them.
            factory: makes the processes.
            forked: fork them, instead of starting programs.
            group: signals are for the process group of a worker, not only for itself.
            grace_period: the time they have to end.
            job: the job directory: their files in it have to be one's own.
            secret_names: more names of arguments whose values are no part of a process title (`redaction`).
            cpus: gives the CPUs that a worker may use, by local rank; none leaves it all.
            open_files: the soft limit of open files of a worker; None leaves it.
            kwargs: as torch's PContext has them.
        """
        super().__init__(*args, **kwargs)
        self._factory = factory
        self._forked = forked
        self._group = group
        self._grace_period = grace_period
        self._job = job
        self._secret_names = secret_names
        self._cpus = cpus
        self._open_files = open_files
        self._pids: dict[int, int] = {}
        self._statuses: dict[int, int] = {}
        self._swept = True
        self.endings: dict[int, EndedWorker] = {}
        self.told: dict[int, signal.Signals] = {}
        self.hung: tuple[int, ...] = ()

    def start(self) -> None:
        """Start them all. Signals are handled already (`agent.agent_run`)."""
        with contextlib.ExitStack() as stack:
            orders = []
            paths = [(self.stdouts[local_rank], self.stderrs[local_rank]) for local_rank in range(self.nprocs)]
            destinations = slow_storage.wait_for(
                lambda: [tuple(_destination(stack, path, self._job) for path in pair) for pair in paths],
                f"the files of the workers' output {' and '.join(filter(None, paths[0]))}",
            )
            for local_rank, files in enumerate(destinations):
                out, err = (file.fileno() if file is not None else None for file in files)
                arguments = tuple(map(str, self.args[local_rank]))
                order = Order(
                    program=str(self.entrypoint),
                    arguments=arguments,
                    environ=self.envs[local_rank],
                    outputs=(out, err),
                    forked=self._forked,
                    cpus=tuple(self._cpus(local_rank)),
                    open_files=self._open_files,
                    title=" ".join([sys.executable, *redaction.redacted_arguments(arguments, self._secret_names)]),
                )
                orders.append(order)
            self._swept = False
            self._pids = dict(enumerate(self._factory.start(orders)))

    def poll(self) -> RunProcsResult | None:
        """How they have ended: all well, or some not; None while they run."""
        self._look()
        failed = {local_rank: status for local_rank, status in self._statuses.items() if status != 0}
        if failed:
            place = f"the log directory {Path(self.error_files[next(iter(failed))]).parent}"
            failures = slow_storage.wait_for(lambda: self._failures(failed), place)
            return RunProcsResult(failures=failures, stdouts=self.stdouts, stderrs=self.stderrs)
        if self.running:
            return None
        return RunProcsResult(
            return_values=dict.fromkeys(range(self.nprocs)), stdouts=self.stdouts, stderrs=self.stderrs
        )

    def _failures(self, failed: Mapping[int, int]) -> dict[int, ProcessFailure]:
        """What torch makes of failures: it reads the error files of the workers."""
        return {local_rank: self._failure(local_rank, status) for local_rank, status in failed.items()}

    def _failure(self, local_rank: int, status: int) -> ProcessFailure:
        facts = {"local_rank": local_rank, "pid": self._pids[local_rank], "exitcode": status}
        try:
            return ProcessFailure(**facts, error_file=self.error_files[local_rank])
        except Exception:  # noqa: BLE001 - it is the worker's file: empty, cut off, or anything else
            return ProcessFailure(**facts, error_file=os.devnull)

    def _look(self) -> None:
        """Note which workers have ended."""
        ranks = {pid: local_rank for local_rank, pid in self._pids.items()}
        try:
            for ended in self._factory.ended():
                if ended.pid in ranks:
                    self._statuses[ranks[ended.pid]] = ended.status
                    self.endings[ranks[ended.pid]] = ended
        except FactoryLostError as error:
            # The kernel kills its workers with it.
            if self.running:
                say(f"{error}, and the workers with it")
            for local_rank, pid in self.running.items():
                self._statuses[local_rank] = -signal.SIGKILL
                self.told[local_rank] = signal.SIGKILL
                self.endings[local_rank] = EndedWorker(pid, -signal.SIGKILL, time.time(), (0.0, 0.0, 0))

    @property
    def running(self) -> dict[int, int]:
        """Process ids by local rank of the workers that are not known to have ended."""
        return {local_rank: pid for local_rank, pid in self._pids.items() if local_rank not in self._statuses}

    def pids(self) -> dict[int, int]:
        """Process ids by local rank."""
        return self._pids

    def send(self, pid: int, signum: int) -> None:
        """Signal one worker."""
        self._factory.signal([pid], signum, group=self._group)

    def stop(self, signum: signal.Signals, *, told: bool, then: Callable[[], None] = lambda: None) -> None:
        """End them all: with a signal first, and for good when the grace period is over.

        Args:
            signum: the signal.
            told: they have got it already.
            then: is called when they have.
        """
        if self._swept:
            return
        self._swept = True
        try:
            self._stop(signum, told=told, then=then)
        except FactoryLostError:
            self._look()

    def _stop(self, signum: signal.Signals, *, told: bool, then: Callable[[], None]) -> None:
        self._grace_period.open()
        self._look()
        self.told.update(dict.fromkeys(self.running, signum))
        if self.running and not told:
            self._factory.signal([*self.running.values()], signum, group=self._group)
        then()
        while self.running and self._grace_period.left > 0:
            readable([self._factory.fileno()], min(self._grace_period.left, _LOOK_SECONDS))
            self._look()
        if self.running:
            late = ", ".join(map(str, self.running))
            say(
                f"local rank {late} did not end in time after {signum.name} and is killed ({self._grace_period.reason})"
            )
            self.told.update(dict.fromkeys(self.running, signal.SIGKILL))
        left = self._factory.sweep(0 if self.running else min(_LEFTOVER_SECONDS, self._grace_period.left))
        self._look()
        if left:
            self.hung = tuple(left)
            say(f"process {', '.join(map(str, left))} hangs in the kernel and cannot be killed")

    def end(self, signum: signal.Signals) -> None:
        """End them all, within the grace period."""
        self.stop(signum, told=False)


def _destination(stack: contextlib.ExitStack, path: str, job: Path) -> Any:
    """Where a stream goes: the agent's own for an empty path, else the end of that file, or nowhere if it has none.

    That there is no room for files is said elsewhere, and is no reason not to train.
    """
    if not path:
        return None
    file = Path(path)
    try:
        # Others than JobLogs (--logs-specs) name files wherever they like.
        return stack.enter_context(directory.open_output(file, job) if job in file.parents else file.open("ab"))
    except OSError as error:
        if isinstance(error, NotOwnError):
            say(f"the output for {file.name} is lost: {error.strerror}")
        return stack.enter_context(Path(os.devnull).open("ab"))
