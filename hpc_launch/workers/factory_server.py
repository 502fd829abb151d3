"""The worker factory's own process: starts workers, tells how they end, and outlives nobody and is outlived by nobody.

It is the parent of all workers and, as a subreaper (PR_SET_CHILD_SUBREAPER, prctl(2)), of everything that they leave
behind: so it can find and end all of it, whatever became of the agent. It has a single thread, whence workers can be
forked from it, and it blocks all signals, whence it can tell whether Slurm signals whole process trees: it is then
signalled itself.

What the agent asks, and the answers (see `factory.Factory`, which is the other end):

    {"start": N}, then N orders with descriptors    {"started": [PID, ...]} or {"failed": "reason"}
    {"signal": NUMBER, "pids": [...], "group": B}   no answer
    {"heard": NUMBER}                               {"heard": BOOL}
    {"sweep": SECONDS}                              {"swept": [PID, ...]}

and, at any time, {"ended": PID, "status": EXITCODE, "time": SECONDS, "usage": [USER, SYSTEM, MAX_RSS]}, and
{"signalled": NUMBER} for a stop signal: of torchrun's workers the agent is the parent, and some scripts end a run by a
signal to it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from hpc_launch import codec
from hpc_launch.codec import APART
from hpc_launch.node import limits, processes, reserved_signals
from hpc_launch.workers import forked_child, stack_answers
from hpc_launch.workers.factory_channel import Channel, GoneError, readable
from hpc_launch.workers.script import Become, Script

# How long a killed process may take to be gone; after that it hangs in the kernel and is left behind.
KILL_SECONDS = 5.0

# How long a worker may take to be more than a copy of the factory; its program may have to be read from far away.
_BEGIN_SECONDS = 20.0

# How often to look again for processes that are to end: grandchildren end without a signal to us.
_LOOK_SECONDS = 0.02


# torchrun stops for these when a worker sends them to its parent (torch/distributed/elastic/multiprocessing/api.py).
_STOPS = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT})


@dataclass(frozen=True)
class Order:
    """A worker to be made.

    Attributes:
        program: what is run: Python where it is forked.
        arguments: the program's arguments: for Python -u, perhaps -m, the script and its arguments.
        environ: its whole environment.
        outputs: descriptors for its stdout and stderr; None is the launcher's own.
        forked: become the script without starting Python anew.
        cpus: the CPUs that it may use; none for all.
        title: what ps shows of a forked one.
        open_files: its soft limit of open files; None leaves the factory's.
    """

    program: str
    arguments: tuple[str, ...]
    environ: dict[str, str]
    outputs: tuple[int | None, int | None] = field(metadata=APART)
    forked: bool
    cpus: tuple[int, ...] = ()
    title: str = "hpc-launch: worker"
    open_files: int | None = None

    @property
    def descriptors(self) -> list[int]:
        """Those of `outputs` that there are."""
        return [descriptor for descriptor in self.outputs if descriptor is not None]


@dataclass(frozen=True)
class EndedWorker:
    """A worker that has ended.

    Attributes:
        pid: its process id.
        status: its exit code: -N for signal N.
        time: when (seconds since the epoch).
        usage: CPU seconds in user mode and in system mode, its children's included; and the most memory that it, or one
            of its children, has had at a time, in bytes.
    """

    pid: int = field(metadata={"name": "ended"})
    status: int
    time: float
    usage: tuple[float, float, int]


@dataclass(frozen=True)
class Surroundings:
    """What the launcher found when it began, and a worker is to find.

    Attributes:
        path: the module search path, without the launcher's own place.
        keep: packages that stay imported although the launcher uses them.
        mask: the signals that are blocked.
        closed: descriptors of standard streams that are closed.
        allow_threads: gives libraries the threads that they were not to start when they were imported.
    """

    path: tuple[str, ...]
    keep: tuple[str, ...]
    mask: frozenset[int]
    closed: tuple[int, ...]
    allow_threads: Callable[[dict[str, str]], None]


def serve(connection: socket.socket, surroundings: Surroundings) -> NoReturn:
    """Do what the agent asks until it is gone, then end everything. A forked worker leaves by `Become`."""
    if os.getsid(0) != os.getpid():
        os.setsid()
    forked_child.name_process("hpc-launch: worker factory", reserved_signals.FACTORY)
    processes.become_subreaper()
    server = _Server(Channel(connection), surroundings)
    status = 0
    try:
        while True:
            server.turn()
    except GoneError:
        pass  # the agent has closed it, or is gone
    except Exception:  # noqa: BLE001 - a fault of our own is said here: above is the launcher's code, of another process
        with contextlib.suppress(OSError):  # a console that is gone
            traceback.print_exc()
        status = 70
    server.end_all()
    os._exit(status)


def serve_plainly(descriptor: str, mask: str) -> NoReturn:
    """The same in a program of its own, which forks no workers but starts them.

    Args:
        descriptor: of the connection.
        mask: the signals that are blocked for workers, separated by commas. Here all are, from the beginning.
    """
    blocked = frozenset(map(int, filter(None, mask.split(","))))
    serve(socket.socket(fileno=int(descriptor)), Surroundings((), (), blocked, (), lambda _: None))


class _Server:
    def __init__(self, channel: Channel, surroundings: Surroundings) -> None:
        self._pid = os.getpid()
        self._channel = channel
        self._surroundings = surroundings
        self._workers: set[int] = set()
        self._heard: set[int] = set()
        self._stops = processes.signal_file(_STOPS)
        # Everything is blocked but SIGCHLD, which ends the wait.
        self._wakeup, write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        self._sigchld = signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.pthread_sigmask(signal.SIG_SETMASK, signal.valid_signals() - {signal.SIGCHLD})

    def turn(self) -> None:
        """Wait for something to do, and do it."""
        ready = readable([self._channel.fileno(), self._wakeup, self._stops])
        if self._stops in ready:
            self._relay()
        self._reap()
        if self._channel.fileno() in ready:
            self._on_order()

    def _on_order(self) -> None:
        request, _ = self._channel.receive()
        if "start" in request:
            self._channel.send(self._start(self._take_orders(request["start"])))
        elif "signal" in request:
            for pid in self._workers.intersection(request["pids"]):
                processes.send(pid, request["signal"], group=request["group"])
        elif "heard" in request:
            self._relay()
            came = signal.sigtimedwait([request["heard"]], 0) is not None or request["heard"] in self._heard
            self._heard.discard(request["heard"])
            self._channel.send({"heard": came})
        elif "sweep" in request:
            self._channel.send({"swept": self._sweep(request["sweep"])})

    def _relay(self) -> None:
        """Tell the agent of stop signals that have come here, and remember them."""
        while (info := signal.sigtimedwait(_STOPS, 0)) is not None:
            self._heard.add(info.si_signo)
            self._channel.send({"signalled": info.si_signo})

    # ---- starting

    def _take_orders(self, count: int) -> list[Order]:
        orders = []
        for _ in range(count):
            order, descriptors = self._channel.receive()
            left = iter(descriptors)
            out, err = (next(left) if given else None for given in order["given"])
            orders.append(codec.build(Order, order, outputs=(out, err)))
        return orders

    def _start(self, orders: Sequence[Order]) -> dict[str, Any]:
        """Make all workers, or none of them; returns when they have begun, so that each meets signals as itself."""
        pids: list[int] = []
        answer: dict[str, Any] = {"started": pids}
        beginning, begun = os.pipe2(os.O_CLOEXEC)
        for order in orders:
            try:
                pid = os.fork()
            except OSError as error:
                for started in pids:
                    processes.send(started, signal.SIGKILL)
                self._workers.difference_update(pids)
                answer = {"failed": str(error.strerror or error)}
                break
            if pid == 0:
                self._be_worker(order, begun)
            pids.append(pid)
            self._workers.add(pid)
        for descriptor in (descriptor for order in orders for descriptor in order.descriptors):
            os.close(descriptor)
        os.close(begun)
        readable([beginning], _BEGIN_SECONDS)  # closed by the last that has begun, or ended
        os.close(beginning)
        return answer

    def _be_worker(self, order: Order, begun: int) -> NoReturn:
        """In the child: run the program, or let the launcher's frames unwind and the script be run instead of them."""
        surroundings, mask = self._surroundings, set(self._surroundings.mask)
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, self._sigchld)
            self._channel.forget()  # what is closed here must not be closed again when it is collected
            processes.tied_to(self._pid, signal.SIGKILL)()
            forked_child.detach_from_parent(order.outputs, surroundings.closed, keep=begun)
            forked_child.bind(order.cpus)
            if order.open_files is not None:
                limits.set_open_files(order.open_files)
            if not order.forked:
                forked_child.execute(order.program, order.arguments, order.environ, mask)
            forked_child.reset_python(order.environ, mask)
            stack_answers.install_stack_handlers(order.environ)
            os.close(begun)
            forked_child.name_process(order.title, Path(sys.executable).name)
            surroundings.allow_threads(order.environ)
        except BaseException:  # noqa: BLE001 - whatever it is
            with contextlib.suppress(OSError):  # a console that is gone
                traceback.print_exc()
            os._exit(70)  # it must never go on as the factory
        raise Become(Script.of(order.arguments, surroundings.path, surroundings.keep))

    # ---- ending

    def _reap(self) -> None:
        """Tell of workers that have ended, and take leave of what they had left behind."""
        with contextlib.suppress(BlockingIOError):
            while os.read(self._wakeup, 4096):
                pass
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status, used = os.wait4(-1, os.WNOHANG)
                if pid == 0:
                    return
                if pid in self._workers:
                    self._workers.remove(pid)
                    # Linux counts memory in KiB here (getrusage(2)).
                    usage = (used.ru_utime, used.ru_stime, used.ru_maxrss * 1024)
                    self._channel.send(EndedWorker(pid, os.waitstatus_to_exitcode(status), time.time(), usage))

    def _sweep(self, patience: float) -> list[int]:
        """End all that is below this process: ask it to, for so many seconds, then kill it; returns what is left."""
        if patience > 0:
            asked: set[int] = set()
            deadline = time.monotonic() + patience
            while (rest := self._rest()) and time.monotonic() < deadline:
                for pid in [pid for pid in rest if pid not in asked]:
                    processes.send(pid, signal.SIGTERM)
                    asked.add(pid)
                self._pause()
        deadline = time.monotonic() + KILL_SECONDS
        while (rest := self._rest()) and time.monotonic() < deadline:
            for pid in rest:
                processes.send(pid, signal.SIGKILL)
            self._pause()
        self._reap()  # the last of them
        return rest

    def _rest(self) -> list[int]:
        self._reap()
        return processes.descendants(self._pid)

    def _pause(self) -> None:
        readable([self._wakeup], _LOOK_SECONDS)

    def end_all(self) -> None:
        """The agent is gone: so is everything that it started."""
        with contextlib.suppress(OSError):  # nobody listens
            self._channel.close()
        self._channel = _Nobody()
        self._sweep(0)


class _Nobody(Channel):
    """Stands for an agent that is gone."""

    def __init__(self) -> None:
        pass

    def send(self, value: Any, descriptors: Sequence[int] = ()) -> None:
        """Nobody hears it."""
