"""The worker factory: a process of each agent that makes its workers, watches them, and leaves nothing of them behind.

The order matters. The agent's process imports what workers need while it has a single thread, and forks the factory;
only then does it start threads, open its store and install signal handlers. The factory stays as it was at that moment
for the whole run, so that each worker, of every attempt, is forked from a process without threads, without CUDA and
without anything of the agent's. Where workers are not forked but started anew, the factory is a small program that has
imported nothing.

`factory_server` is what runs there; this is the agent's side.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hpc_launch import codec, imports
from hpc_launch.errors import UsageError
from hpc_launch.node import cuda_driver, processes
from hpc_launch.workers import factory_server, forked_child
from hpc_launch.workers.factory_channel import Channel, GoneError
from hpc_launch.workers.factory_server import EndedWorker, Order, Surroundings
from hpc_launch.workers.script import hidden_modules

# A program that finds modules where this one does: the directory that it is started in may hold any.
_PLAIN = (
    "import sys; sys.path[:] = sys.argv[3:]; from hpc_launch.workers.factory_server import serve_plainly; "
    "serve_plainly(*sys.argv[1:3])"
)

# How long the factory may take to answer before it counts as hung: it takes milliseconds.
_PATIENCE = 60.0


class CannotBeWarmError(Exception):
    """Workers cannot be forked from this process; the message says why, for a line of the log."""


class FactoryLostError(Exception):
    """The factory is gone, and its workers with it: somebody has killed it."""


class Factory:
    """The agent's handle of its worker factory.

    All methods raise FactoryLostError when it is gone.

    Attributes:
        forks: whether workers can be forked from it.
        lost: whether it is known to be gone.
        mask: the signals that are blocked for workers.
        left_out: which modules of users are not imported, and why.
    """

    def __init__(
        self,
        pid: int,
        connection: socket.socket,
        mask: frozenset[int],
        *,
        forks: bool,
        left_out: Mapping[str, str] | None = None,
    ) -> None:
        self.forks = forks
        self.left_out = left_out or {}
        self.mask = mask
        self.lost = False
        self._pid = pid
        connection.settimeout(_PATIENCE)
        self._channel = Channel(connection)
        self._ended: list[EndedWorker] = []
        self._signalled: list[int] = []

    def fileno(self) -> int:
        """A descriptor that can be read when a worker has ended."""
        return self._channel.fileno()

    def start(self, orders: Sequence[Order]) -> list[int]:
        """Start workers; returns their process ids.

        Raises:
            OSError: when processes cannot be made; then none was.
        """
        with self._lost():
            self._channel.send({"start": len(orders)})
            for order in orders:
                given = [descriptor is not None for descriptor in order.outputs]
                self._channel.send({**codec.plain(order), "given": given}, order.descriptors)
        answer = self._answer()
        if "failed" in answer:
            raise OSError(f"workers could not be started: {answer['failed']}")
        pids: list[int] = answer["started"]
        return pids

    @property
    def has_news(self) -> bool:
        """Whether `ended` or `signalled` knows of something without having to read."""
        return bool(self._ended or self._signalled)

    def signalled(self) -> list[int]:
        """The stop signals that the factory has got, as far as `ended` and the like have heard of them."""
        found, self._signalled = self._signalled, []
        return found

    def ended(self) -> list[EndedWorker]:
        """The workers that have ended since this was last asked, in that order."""
        with self._lost():
            while self._channel.ready():
                self._on_message(self._channel.receive()[0])
        found, self._ended = self._ended, []
        return found

    def signal(self, pids: Sequence[int], signum: int, *, group: bool = False) -> None:
        """Signal workers, or the process groups that they lead; those that have ended are left out."""
        with self._lost():
            self._channel.send({"signal": int(signum), "pids": list(pids), "group": group})

    def heard(self, signum: int) -> bool:
        """Whether the factory has got a signal since this was last asked: then the workers got it as well."""
        with self._lost():
            self._channel.send({"heard": int(signum)})
        return bool(self._answer()["heard"])

    def sweep(self, patience: float) -> list[int]:
        """End all workers, and all that they have left behind.

        Args:
            patience: seconds between SIGTERM and SIGKILL; 0 for SIGKILL at once.

        Returns:
            The processes that cannot be killed, because they hang in the kernel.
        """
        with self._lost():
            self._channel.send({"sweep": patience})
        left: list[int] = self._answer()["swept"]
        return left

    def close(self) -> None:
        """End the factory, and everything that it has started. It may be closed already."""
        self._channel.close()
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self._pid, 0)

    def _answer(self) -> dict[str, Any]:
        with self._lost():
            while True:
                message: dict[str, Any] = self._channel.receive()[0]
                if "ended" not in message and "signalled" not in message:
                    return message
                self._on_message(message)

    def _on_message(self, message: Mapping[str, Any]) -> None:
        if "signalled" in message:
            self._signalled.append(message["signalled"])
        else:
            self._ended.append(codec.build(EndedWorker, message))

    @contextlib.contextmanager
    def _lost(self) -> Iterator[None]:
        try:
            yield
        except GoneError as error:
            self.lost = True
            raise FactoryLostError(f"the worker factory (process {self._pid}) is gone ({error})") from error


@dataclass(frozen=True)
class Imports:
    """What a factory imports for its workers.

    Attributes:
        modules: what has to be imported.
        preload: what is imported as well, if workers can be forked after that.
        settings: environment variables of the workers that libraries read when they are loaded.
        home: the directory of the script's own modules.
    """

    modules: Sequence[str] = ()
    preload: Sequence[str] = ()
    settings: Mapping[str, str] = field(default_factory=dict)
    home: str = "."


def build_factory(what: Imports, mask: Iterable[int]) -> Factory:
    """Import modules, once, and fork the factory. In a worker this raises `Become`.

    The modules of users are imported after the fork. One that starts threads, or initialises CUDA, takes that process
    with it, and the factory is forked again without it (`Factory.left_out`).

    Args:
        what: what to import.
        mask: the signals that are to be blocked for workers.

    Raises:
        UsageError: when a module cannot be imported.
        CannotBeWarmError: when the process cannot be forked safely after that.
    """
    forked_child.find_name()
    before = len(processes.threads())
    if before > 1:
        raise CannotBeWarmError(f"this process has {before} threads already")
    own_place = None if getattr(sys.flags, "safe_path", False) else sys.path[0]
    unfit = _import(what.modules, what)
    if unfit:
        raise CannotBeWarmError("; ".join(f"the import of {name} {why}" for name, why in unfit.items()))
    processes.become_subreaper()  # for what is left should the factory be killed
    closed = _occupy_closed_streams()
    blocked = frozenset(map(int, mask))
    left_out: dict[str, str] = {}
    while True:
        extra = tuple(name for name in what.preload if name not in left_out)
        made = _fork()
        if made.pid == 0:
            if extra:
                _preload(extra, what, made)
            path = list(sys.path)
            if own_place in path:
                path.remove(own_place)  # where Python found the launcher's program
            keep = tuple(name.partition(".")[0] for name in (*what.modules, *extra))
            surroundings = Surroundings(tuple(path), keep, blocked, closed, BlasLibraries().allow)
            factory_server.serve(made.connection, surroundings)
        found = _outcome(made, extra) if extra else {}
        if not found:
            return Factory(made.pid, made.connection, blocked, forks=True, left_out=left_out)
        left_out |= found


@dataclass(frozen=True)
class _Fork:
    """One side of a fork.

    Attributes:
        pid: that of the new process; 0 there.
        connection: to the other side.
        agent: the process that has forked.
        mask: the signals that it has blocked. In the new process all are.
    """

    pid: int
    connection: socket.socket
    agent: int
    mask: set[int]


def _flush() -> None:
    """Write what was printed, or each process that is forked from this one would write it again."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()


def _fork() -> _Fork:
    _flush()
    ours, theirs = socket.socketpair()
    agent = os.getpid()
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    pid = os.fork()
    if pid == 0:
        ours.close()
        return _Fork(0, theirs, agent, mask)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    theirs.close()
    return _Fork(pid, ours, agent, mask)


def _preload(names: Sequence[str], what: Imports, made: _Fork) -> None:
    """In the process that is to be the factory: import the modules of users, and say what came of it.

    Where no factory can come of it this process ends. Code of theirs runs with the signals that the agent lets through.
    """
    processes.tied_to(made.agent, signal.SIGKILL)()
    answer: dict[str, dict[str, str]] = {}
    try:
        signal.pthread_sigmask(signal.SIG_SETMASK, made.mask)
        unfit = _import(names, what)
        answer = {"unfit": unfit} if unfit else {}
        if not unfit:
            _flush()
    except UsageError as error:
        answer = {"refused": {"usage": str(error)}}
    except CannotBeWarmError as error:
        answer = {"refused": {"cold": str(error)}}
    except BaseException:  # noqa: BLE001 - KeyboardInterrupt for instance, which the agent gets as well
        os._exit(1)
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    processes.untied()
    with contextlib.suppress(GoneError):
        Channel(made.connection).send(answer)
    if answer:
        os._exit(0)


def _outcome(made: _Fork, names: Sequence[str]) -> dict[str, str]:
    """Wait until the modules of users are imported; returns what has to be left out, and why.

    Raises:
        UsageError: when one of them cannot be imported.
        CannotBeWarmError: when no process comes of it in which they are.
    """
    try:
        answer = Channel(made.connection).receive()[0]
    except GoneError:
        gone = f"the process that imported {', '.join(names)} (--preload) has ended"
        answer = {"refused": {"cold": gone}}
    if not answer:
        return {}
    made.connection.close()
    os.waitpid(made.pid, 0)
    refused = answer.get("refused", {})
    if "usage" in refused:
        raise UsageError(refused["usage"])
    if "cold" in refused:
        raise CannotBeWarmError(refused["cold"])
    unfit: dict[str, str] = answer["unfit"]
    return unfit


def _import(names: Sequence[str], what: Imports) -> dict[str, str]:
    """Import modules; returns the first after which no worker can be forked from this process, and why.

    Their libraries start no threads by themselves: OpenBLAS does, when it is loaded, unless told.

    Raises:
        UsageError: when one of them cannot be imported.
        CannotBeWarmError: when the script would get one of them for a module of its own.
    """
    with imports.without_garbage_collection(), _changed({**what.settings, "OPENBLAS_NUM_THREADS": "1"}):
        for name in names:
            try:
                importlib.import_module(name)
            except Exception as error:
                why = f"{type(error).__name__}: {error}"
                raise UsageError(f"cannot import '{name}' (--preload) with {sys.executable}: {why}") from error
            unfit = _unfit()
            if unfit:
                return {name: unfit}
    hidden = hidden_modules(what.home)
    if hidden:
        raise CannotBeWarmError(f"{what.home} has its own {', '.join(hidden)}, but another one is imported already")
    return {}


def _unfit() -> str:
    """Why no worker can be forked from this process; empty where one can."""
    threads = len(processes.threads()) - 1
    if threads:
        return "has started a thread" if threads == 1 else f"has started {threads} threads"
    cuda = sys.modules.get("torch.cuda")
    # torch counts only its own use, and not that it has counted devices.
    used = (cuda is not None and cuda.is_initialized()) or cuda_driver.is_initialised()
    return "has initialised CUDA" if used else ""


def spawn_factory(mask: Iterable[int]) -> Factory:
    """Start a factory that has imported nothing, for workers that are not forked. Threads here do not matter.

    Args:
        mask: the signals that are to be blocked for workers.

    Raises:
        OSError: when processes cannot be made.
    """
    processes.become_subreaper()
    _occupy_closed_streams()
    ours, theirs = socket.socketpair()
    blocked = frozenset(map(int, mask))
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # it would die of one while Python starts
    try:
        with theirs:
            words = [str(theirs.fileno()), ",".join(map(str, blocked)), *sys.path]
            command = [sys.executable, "-c", _PLAIN, *words]
            process = subprocess.Popen(command, pass_fds=[theirs.fileno()], start_new_session=True)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    process.returncode = 0  # it is waited for by `close`
    return Factory(process.pid, ours, blocked, forks=False)


def _occupy_closed_streams() -> tuple[int, ...]:
    """See that nothing else gets the descriptor of a standard stream that is closed.

    They stay occupied here, too: the launcher's own lines would otherwise go to whatever is opened next.
    """
    closed = []
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            closed.append(os.open(os.devnull, os.O_RDWR))  # the lowest number that is free: this one
    return tuple(closed)


@contextlib.contextmanager
def _changed(environ: Mapping[str, str]) -> Iterator[None]:
    """The environment with some changes, for a while."""
    before = {name: os.environ.get(name) for name in environ}
    os.environ.update(environ)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


class BlasLibraries:
    """The OpenBLAS libraries that were loaded with one thread."""

    def __init__(self) -> None:
        self._libraries: list[Any] = []
        if "numpy" in sys.modules:
            from threadpoolctl import ThreadpoolController  # noqa: PLC0415 - it looks for what is loaded by now

            self._libraries = ThreadpoolController().select(internal_api="openblas").lib_controllers

    def allow(self, environ: Mapping[str, str]) -> None:
        """Give them the threads that they would have taken by themselves (OpenBLAS, driver/others/memory.c)."""
        cpus = len(os.sched_getaffinity(0))
        asked = (_number(environ.get(f"{name}_NUM_THREADS", "")) for name in ("OPENBLAS", "GOTO", "OMP"))
        threads = min(next((number for number in asked if number > 0), cpus), cpus)
        for library in self._libraries:
            if library.get_num_threads() != threads:
                library.set_num_threads(threads)


def _number(text: str) -> int:
    """Read a number as C's atoi does."""
    digits = ""
    for character in text.strip():
        if not character.isdigit():
            break
        digits += character
    return int(digits or 0)
