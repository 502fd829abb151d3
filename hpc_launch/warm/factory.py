"""The worker factory: one process per agent that has imported what workers need, and forks them.

The order matters. The agent's process imports while it has a single thread, and forks the factory; only then does it
start threads, open its store and install signal handlers. The factory stays as it was at that moment for the whole run,
so that each worker, of every attempt, is forked from a process without threads, without CUDA and without anything of
the agent's. Workers are the agent's children, as when it starts them by itself: the factory forks a starter, the
starter forks the workers and ends, and the kernel hands them to the agent (PR_SET_CHILD_SUBREAPER, prctl(2)).
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import json
import os
import signal
import socket
import struct
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from hpc_launch.errors import UsageError
from hpc_launch.warm import child
from hpc_launch.warm.script import Become, Script, hidden_modules

_PR_SET_CHILD_SUBREAPER = 36

# How long workers may take to be forked before the factory counts as hung: it takes milliseconds.
_PATIENCE = 60.0

_LENGTH = struct.Struct("!I")


class CannotBeWarmError(Exception):
    """Workers cannot be forked from this process; the message says why, for a line of the log."""


@dataclass(frozen=True)
class Order:
    """A worker to be made.

    Attributes:
        arguments: what Python would be started with: -u, perhaps -m, the script and its arguments.
        environ: its whole environment.
        outputs: descriptors for its stdout and stderr; None is the launcher's own.
    """

    arguments: tuple[str, ...]
    environ: Mapping[str, str]
    outputs: tuple[int | None, int | None]


class Factory:
    """The agent's handle of its worker factory."""

    def __init__(self, pid: int, connection: socket.socket) -> None:
        self._pid = pid
        self._connection = connection

    def fork(self, orders: Sequence[Order]) -> list[int]:
        """Fork workers, and return their process ids; they are children of this process.

        Raises:
            CannotBeWarmError: when the factory is gone, or processes cannot be made.
        """
        try:
            _send(self._connection, len(orders))
            for order in orders:
                given = [descriptor is not None for descriptor in order.outputs]
                descriptors = [descriptor for descriptor in order.outputs if descriptor is not None]
                facts = {"arguments": order.arguments, "environ": dict(order.environ), "given": given}
                _send(self._connection, facts, descriptors)
            answer, _ = _receive(self._connection)
        except (OSError, EOFError) as error:
            raise CannotBeWarmError(f"the worker factory (process {self._pid}) is gone ({error})") from error
        if isinstance(answer, str):
            raise CannotBeWarmError(f"workers could not be forked: {answer}")
        pids: list[int] = answer
        return pids

    def close(self) -> None:
        """End the factory; its workers live on."""
        self._connection.close()
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self._pid, 0)


def build(modules: Sequence[str], settings: Mapping[str, str], home: str) -> Factory:
    """Import modules, once, and fork the factory. In a worker this raises `Become`.

    Args:
        modules: what to import.
        settings: environment variables of the workers that libraries read when they are loaded.
        home: the directory of the script's own modules.

    Raises:
        UsageError: when a module cannot be imported.
        CannotBeWarmError: when the process cannot be forked safely after that.
    """
    child.find_name()
    before = _threads()
    if before > 1:
        raise CannotBeWarmError(f"this process has {before} threads already")
    own_place = None if getattr(sys.flags, "safe_path", False) else sys.path[0]
    blas = _import_quietly(modules, settings)
    threads = _threads()
    if threads > 1:
        raise CannotBeWarmError(f"importing {', '.join(modules)} has started threads ({threads - 1})")
    if _uses_cuda():
        raise CannotBeWarmError(f"importing {', '.join(modules)} has initialised CUDA")
    hidden = hidden_modules(home)
    if hidden:
        raise CannotBeWarmError(f"{home} has its own {', '.join(hidden)}, but another one is imported already")
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    gc.collect()
    gc.freeze()
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    closed = _occupy_closed_streams()
    ours, theirs = socket.socketpair()
    mask = set(map(int, signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())))
    launcher, pid = os.getpid(), os.fork()
    if pid == 0:
        ours.close()
        path = list(sys.path)
        if own_place in path:
            path.remove(own_place)  # where Python found the launcher's program
        keep = tuple(name.partition(".")[0] for name in modules)
        _serve(theirs, _Surroundings(launcher, tuple(path), keep, mask, closed, blas))
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    theirs.close()
    for descriptor in closed:
        os.close(descriptor)
    ours.settimeout(_PATIENCE)
    return Factory(pid, ours)


def _occupy_closed_streams() -> tuple[int, ...]:
    """See that nothing else gets the descriptor of a standard stream that is closed."""
    closed = []
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            closed.append(os.open(os.devnull, os.O_RDWR))  # the lowest number that is free: this one
    return tuple(closed)


def _threads() -> int:
    return len(os.listdir("/proc/self/task"))  # noqa: PTH208 - it is the number that counts


def _uses_cuda() -> bool:
    cuda = sys.modules.get("torch.cuda")
    return cuda is not None and bool(cuda.is_initialized())


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


def _import_quietly(modules: Sequence[str], settings: Mapping[str, str]) -> Blas:
    """Import modules without that their libraries start threads: OpenBLAS does, when it is loaded, unless told."""
    with _changed({**settings, "OPENBLAS_NUM_THREADS": "1"}):
        for name in modules:
            try:
                importlib.import_module(name)
            except Exception as error:
                what = f"{type(error).__name__}: {error}"
                raise UsageError(f"cannot import '{name}' (--preload) with {sys.executable}: {what}") from error
    return Blas()


class Blas:
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


# ---- in the factory


@dataclass(frozen=True)
class _Surroundings:
    """What the launcher found when it began, and a script is to find.

    Attributes:
        launcher: the process id of the launcher, whose children the workers are.
        path: the module search path, without the launcher's own place.
        keep: packages that stay imported although the launcher uses them.
        mask: the signals that are blocked.
        closed: descriptors of standard streams that are closed.
        blas: the libraries whose threads were not started.
    """

    launcher: int
    path: tuple[str, ...]
    keep: tuple[str, ...]
    mask: set[int]
    closed: tuple[int, ...]
    blas: Blas


def _serve(connection: socket.socket, surroundings: _Surroundings) -> NoReturn:
    """Fork workers as they are asked for, until the agent is gone. Returns to nobody; a worker raises `Become`."""
    os.setsid()
    child.name_process("hpc-launch: worker factory", "hpc-launch")
    while True:
        try:
            orders = _take_orders(connection)
        except (OSError, EOFError):
            os._exit(0)
        answer, order = _start(orders)
        if order is not None:
            connection.detach()  # what is closed here must not be closed again when it is collected
            child.prepare(order.environ, order.outputs, surroundings.closed, surroundings.mask)
            child.end_with(surroundings.launcher)
            child.name_process(" ".join([sys.executable, *order.arguments]), Path(sys.executable).name)
            surroundings.blas.allow(order.environ)
            raise Become(Script.of(order.arguments, surroundings.path, surroundings.keep))
        for descriptor in (descriptor for order in orders for descriptor in order.outputs if descriptor is not None):
            os.close(descriptor)
        try:
            _send(connection, answer)
        except OSError:
            os._exit(0)


def _take_orders(connection: socket.socket) -> list[Order]:
    count, _ = _receive(connection)
    orders = []
    for _ in range(count):
        order, descriptors = _receive(connection)
        left = iter(descriptors)
        out, err = (next(left) if given else None for given in order["given"])
        orders.append(Order(tuple(order["arguments"]), order["environ"], (out, err)))
    return orders


def _start(orders: Sequence[Order]) -> tuple[Any, Order | None]:
    """Fork the workers.

    Returns:
        In the factory, their process ids or what went wrong, and None; in a worker, nothing and its order.
    """
    gate, gatekeeper = os.pipe()
    report, reporter = os.pipe()
    try:
        starter = os.fork()
    except OSError as error:
        for descriptor in (gate, gatekeeper, report, reporter):
            os.close(descriptor)
        return str(error), None
    if starter == 0:
        os.close(gatekeeper)
        order = _fork_each(orders, reporter)
        if order is None:
            os._exit(0)
        if not os.read(gate, 1):  # until the starter has ended, and the agent is the parent
            os._exit(1)  # the others could not be forked
        return None, order
    os.close(reporter)
    with os.fdopen(report, "rb") as stream:
        answer = json.loads(stream.read() or b'"the process that forks them ended"')
    os.waitpid(starter, 0)
    if isinstance(answer, list):
        os.write(gatekeeper, bytes(len(answer)))  # a byte for each worker lets it begin
    os.close(gatekeeper)
    os.close(gate)
    return answer, None


def _fork_each(orders: Sequence[Order], reporter: int) -> Order | None:
    """In the starter: fork one worker for each order, and report; returns the order in a worker, None here."""
    pids: list[int] = []
    answer: list[int] | str = pids
    for order in orders:
        try:
            pid = os.fork()
        except OSError as error:
            answer = str(error)
            break
        if pid == 0:
            os.close(reporter)
            return order
        pids.append(pid)
    os.write(reporter, json.dumps(answer).encode())
    return None


# ---- messages: a length, JSON of that length, and descriptors that come with the length


def _send(connection: socket.socket, value: Any, descriptors: Sequence[int] = ()) -> None:
    data = json.dumps(value).encode()
    socket.send_fds(connection, [_LENGTH.pack(len(data))], list(descriptors))
    connection.sendall(data)


def _receive(connection: socket.socket) -> tuple[Any, list[int]]:
    head, descriptors, _, _ = socket.recv_fds(connection, _LENGTH.size, 2)
    if len(head) < _LENGTH.size:
        raise EOFError("it closed the connection")
    (length,) = _LENGTH.unpack(head)
    data = b""
    while len(data) < length:
        part = connection.recv(length - len(data))
        if not part:
            raise EOFError("it closed the connection")
        data += part
    return json.loads(data), descriptors
