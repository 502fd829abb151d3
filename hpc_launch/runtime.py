"""What a training script may ask its launcher, and tell it: `from hpc_launch import runtime`.

Everything works, and does no harm, without hpc-launch too: under torchrun, `srun python train.py` or `python train.py`.
The environment is read when a function is called. torch is imported only by what needs it: `device`, and `should_stop`
over several ranks.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import math
import numbers
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from hpc_launch.errors import LogDirError
from hpc_launch.records import directory
from hpc_launch.records.directory import JobDirectory

if TYPE_CHECKING:
    import torch

__all__ = [
    "attempt",
    "device",
    "job_directory",
    "local_rank",
    "local_world_size",
    "mark_progress",
    "node_rank",
    "on_notice",
    "rank",
    "requeue_count",
    "should_stop",
    "time_left",
    "world_size",
]

_Callback = TypeVar("_Callback", bound=Callable[[str], Any])
_Handler = Callable[[int, FrameType | None], Any] | int | None

# The notice signals, unless HPC_LAUNCH_NOTICE_SIGNALS names others.
_NOTICE_SIGNALS = "SIGUSR1,SIGUSR2"

# Seconds between two looks at the file with the job's end, and between two writes of the progress.
_LOOK_S = 1.0
_WRITE_S = 1.0

# How long a lease is meant to last, in seconds, and at most, in calls.
_LEASE_S = 1.0
_LEASE_CALLS = 100

# Seconds: until the store must answer; that a rank waits for rank 0, which may write a checkpoint; and that a rank 0
# which serves the store stays for the others to read its last word.
_CONNECT_S = 300.0
_PATIENCE_S = 1800.0
_LINGER_S = 10.0


def rank() -> int:
    """This process's number among all workers (RANK); 0 without a launcher."""
    return _number("RANK", 0)


def local_rank() -> int:
    """This process's number among the workers of its node (LOCAL_RANK); 0 without a launcher."""
    return _number("LOCAL_RANK", 0)


def world_size() -> int:
    """The number of all workers (WORLD_SIZE); 1 without a launcher."""
    return _number("WORLD_SIZE", 1)


def local_world_size() -> int:
    """The number of workers on this node (LOCAL_WORLD_SIZE); 1 without a launcher."""
    return _number("LOCAL_WORLD_SIZE", 1)


def node_rank() -> int:
    """The number of this node (GROUP_RANK, torchrun's name for it); 0 without a launcher."""
    return _number("GROUP_RANK", 0)


def device() -> torch.device:
    """The device of this process: the GPU of its local rank, else the CPU.

    `cuda:N` where CUDA (or ROCm) is usable, `xpu:N` where an Intel GPU is, `cpu` elsewhere. N is the local rank modulo
    the number of devices that this process sees, so that it is right too where each process is shown its own only.
    Nothing is set: call `torch.cuda.set_device(device)` where you want that.
    """
    import torch  # noqa: PLC0415 - scripts without torch use the rest

    for name, backend in (("cuda", torch.cuda), ("xpu", torch.xpu)):
        if backend.is_available():
            return torch.device(name, local_rank() % backend.device_count())
    return torch.device("cpu")


def attempt() -> int:
    """The number of this start of the workers, from 0.

    Under hpc-launch it counts on when Slurm requeues the job, as `attempt_<n>` in the job directory does; under
    torchrun it counts the restarts of one run.
    """
    return _number("HPC_LAUNCH_ATTEMPT", _number("TORCHELASTIC_RESTART_COUNT", 0))


def requeue_count() -> int:
    """How often Slurm has started this job again (SLURM_RESTART_COUNT); 0 without Slurm."""
    return _number("SLURM_RESTART_COUNT", 0)


def job_directory() -> Path | None:
    """The directory with the files of this job, None where hpc-launch did not start this process."""
    name = os.environ.get("HPC_LAUNCH_JOB_DIRECTORY")
    return Path(name) if name else None


def time_left() -> float | None:
    """Seconds until Slurm ends the job, never below 0.0; None where that is not known, or the job has no limit.

    Under hpc-launch this is the end that Slurm has set now, also when the limit was changed while the job runs.
    Elsewhere it is SLURM_JOB_END_TIME, which `sbatch` sets from Slurm 22.05 on. It is cheap enough for every step.
    """
    end = _process.end_time.find()
    return None if end is None else max(0.0, end - time.time())


def should_stop(*, all_ranks: bool = False, before_end: float | None = None) -> bool:
    """Say whether it is time to write a checkpoint and leave.

    The answer is True once this process was told to leave: by a notice signal (those of HPC_LAUNCH_NOTICE_SIGNALS, else
    SIGUSR1 and SIGUSR2) or by SIGTERM. None of them ends the process any more: the script is expected to leave by
    itself.

    The first call of this function, or of `on_notice`, installs the handlers: make one before the training loop, in the
    main thread. A handler that was there before is called after this one; a signal that was ignored is noted only. A
    handler that the script installs later takes the place of this one, and the signal is not noted. Processes that are
    forked later (data loaders) survive notice signals, and meet SIGTERM as if nothing had been installed.

    With `all_ranks` all ranks get the same answer at the same call, True if any of them was told. Every rank must call
    it equally often and at the same place of the training loop, as with a collective of torch.distributed; and after
    True it is True for ever. Most calls cost nothing: rank 0 decides, and promises about once a second that it will not
    stop before call number n. Others ask it only when they get there. Where calls suddenly become much slower, a
    promise that was already made (for at most 100 calls) lasts longer.

    This cannot deadlock. Rank 0 waits for nobody. Another rank waits only for rank 0 to reach the same call, and
    whatever rank 0 has to do with the others before that (collectives, say) the waiting rank has done already.

    Without hpc-launch or torchrun, `all_ranks` needs what `init_process_group()` needs, RANK, WORLD_SIZE, MASTER_ADDR
    and MASTER_PORT, and rank 0 serves that port. Without WORLD_SIZE a process is the only one.

    Args:
        all_ranks: agree with all other ranks.
        before_end: be True also when fewer than these seconds are left (`time_left`); with `all_ranks`, rank 0's count.

    Raises:
        RuntimeError: the first call was not made in the main thread, where alone Python can handle signals; or, with
            `all_ranks`, the store of the ranks cannot be reached or rank 0 did not call for half an hour.
        ValueError: HPC_LAUNCH_NOTICE_SIGNALS names what is no signal.
    """
    notices = _process.watch()

    def wanted() -> bool:
        if notices.told:
            return True
        left = None if before_end is None or (all_ranks and rank()) else time_left()
        return left is not None and before_end is not None and left < before_end

    if not all_ranks:
        return wanted()
    if world_size() == 1:
        _process.stopped = _process.stopped or wanted()
        return _process.stopped
    return _process.agreement().answer(wanted)


def on_notice(callback: _Callback) -> _Callback:
    """Have `callback(signal_name)` called whenever a notice signal or SIGTERM arrives, for instance with "SIGUSR1".

    It is called in the main thread, from the signal handler, between any two instructions of the script: set a flag or
    print a line there, and do the work in the training loop. Callbacks are called in the order in which they were
    given. An exception leaves the handler as it leaves any: it comes up in the main thread wherever that is, and later
    callbacks, and a handler that was installed before, are not called.

    Installs the handlers as `should_stop` does. Can be used as a decorator.

    Returns:
        The callback.

    Raises:
        RuntimeError: this is the first call, and it was not made in the main thread.
        ValueError: HPC_LAUNCH_NOTICE_SIGNALS names what is no signal.
    """
    _process.watch().callbacks.append(callback)
    return callback


def mark_progress(step: float | None = None, total: float | None = None, **values: float | str) -> None:
    """Say that training has come further, best when a checkpoint was written.

    The last word of each rank is in `progress/rank_<rank>.json` of the job directory. Without hpc-launch nothing
    happens. It is cheap enough for every step: the file is written at once for the first call, for one that reaches the
    total, and otherwise at most once a second; what was held back is written with a later call or when Python exits. A
    file that cannot be written (no space, no job directory) is no error. A call that says the same step, total and
    values as the one before is not progress.

    Args:
        step: how far training is, in units of your choice.
        total: where it will be at the end, in the same units.
        values: more to show, such as `loss=0.3`: numbers and strings. What is not finite is written as a string.

    Raises:
        TypeError: naming a value that is neither a number nor a string, or a step or total that is no number.
    """
    job = _job()
    word = {
        "time": round(time.time(), 3),
        "attempt": attempt(),
        "step": None if step is None else _checked("step", step),
        "total": None if total is None else _checked("total", total),
        "values": {name: value if isinstance(value, str) else _checked(name, value) for name, value in values.items()},
    }
    if job is not None:
        _process.arrange()
        done = step is not None and total is not None and step >= total
        _process.progress.mark(job.progress(rank()), word, done=done)


def _job() -> JobDirectory | None:
    path = job_directory()
    return None if path is None else JobDirectory(path.parent, path.name)


def _number(name: str, default: int) -> int:
    text = os.environ.get(name)
    if not text:
        return default
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"{name}={text}: a number is expected") from None


def _checked(name: str, value: object) -> float | str:
    """Make a number one that JSON has."""
    if isinstance(value, (bool, int)):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):  # numpy's as well
        number = float(value)
        return number if math.isfinite(number) else str(number)
    raise TypeError(f"{name} is a {type(value).__name__}: mark_progress takes numbers and strings")


class _EndTime:
    """When the job ends: what the launcher wrote last, else what Slurm said when the job began."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._path: Path | None = None
        self._looked = -math.inf
        self._version: tuple[int, int, int] | None = None
        self._end: float | None = None
        self._known = False

    def find(self) -> float | None:
        """The end in seconds since the epoch, None where it is not known."""
        job = _job()
        if job is not None:
            self._look(job.end_time)
            if self._known:
                return self._end
        return _seconds(os.environ.get("SLURM_JOB_END_TIME"))

    def _look(self, path: Path) -> None:
        now = self._clock()
        if path == self._path and now - self._looked < _LOOK_S:
            return
        if path != self._path:
            self._version = None
        self._path, self._looked = path, now
        try:
            status = path.stat()
            version = (status.st_mtime_ns, status.st_ino, status.st_size)
            if version != self._version:
                self._known = False
                end = json.loads(path.read_bytes())["end"]
                self._end = _seconds(end)
                self._known = end is None or self._end is not None
                self._version = version
        except (OSError, ValueError, TypeError, KeyError):
            self._known, self._version = False, None


def _seconds(value: object) -> float | None:
    """Read seconds since the epoch; None for what is none."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


class _Progress:
    """Writes how far training is, not more often than anybody would read it."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._written = -math.inf
        self._last: Mapping[str, Any] | None = None
        self._pending: tuple[Path, Mapping[str, Any]] | None = None
        # Never waited for: a signal handler may say something while the main thread is writing.
        self._writing = threading.Lock()

    def mark(self, path: Path, word: Mapping[str, Any], *, done: bool) -> None:
        """Remember a word, and write it if it is time."""
        if not self._same(word):
            self._last = word
            self._pending = (path, word)
        if done or self._clock() - self._written > _WRITE_S:
            self.flush()

    def _same(self, word: Mapping[str, Any]) -> bool:
        last = self._last
        return (
            last is not None
            and word["step"] is not None
            and all(last[name] == word[name] for name in ("attempt", "step", "total", "values"))
        )

    def flush(self) -> None:
        """Write what was held back."""
        if self._pending is None or not self._writing.acquire(blocking=False):
            return
        try:
            (path, word), self._pending = self._pending, None
            self._written = self._clock()
            if path.parent.parent.is_dir():
                directory.write_json(path, word)
        except (OSError, LogDirError):
            pass
        finally:
            self._writing.release()


class _Notices:
    """The signals that tell this process to leave."""

    def __init__(self) -> None:
        self.told = False
        self.callbacks: list[Callable[[str], Any]] = []
        self._previous: dict[int, _Handler] = {}
        self._installed = False
        self._inherited = False

    def install(self) -> None:
        """Install the handlers, the first time."""
        if self._installed:
            return
        if threading.current_thread() is not threading.main_thread():
            raise RuntimeError(
                "only the main thread can handle signals: call hpc_launch.runtime.should_stop() there once, "
                "before it is called in other threads"
            )
        signals = _notice_signals()
        self._installed = True
        for signum in (*signals, signal.SIGTERM):
            self._previous[signum] = signal.getsignal(signum)
            signal.signal(signum, self._handle)

    def inherit(self) -> None:
        """Be no more than a memory, in a process that was forked: it has another life, and other ends."""
        self._inherited = True
        if self._installed and signal.getsignal(signal.SIGTERM) == self._handle:
            previous = self._previous[signal.SIGTERM]
            signal.signal(signal.SIGTERM, signal.SIG_DFL if previous is None else previous)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if not self._inherited:
            self.told = True
            for callback in tuple(self.callbacks):
                callback(signal.Signals(signum).name)
        previous = self._previous.get(signum)
        if callable(previous):  # what is not from Python cannot be called from there
            previous(signum, frame)


def _notice_signals() -> list[signal.Signals]:
    variable = "HPC_LAUNCH_NOTICE_SIGNALS"
    words = [word.strip() for word in os.environ.get(variable, _NOTICE_SIGNALS).split(",")]
    try:
        found = [signal.Signals[word] for word in words if word]
    except KeyError as error:
        raise ValueError(f"{variable}: {error.args[0]} is no signal; names such as SIGUSR1 are expected") from None
    if {signal.SIGKILL, signal.SIGSTOP} & set(found):
        raise ValueError(f"{variable}: no process can handle SIGKILL or SIGSTOP")
    return [signum for signum in dict.fromkeys(found) if signum != signal.SIGTERM]


class _Store(Protocol):
    """What an agreement needs of torch's stores."""

    def set(self, key: str, value: str, /) -> object: ...
    def get(self, key: str, /) -> bytes: ...
    def check(self, keys: list[str], /) -> bool: ...


class _Clock(Protocol):
    """What an agreement needs of the module `time`."""

    def monotonic(self) -> float: ...
    def sleep(self, seconds: float, /) -> None: ...


class _Agreement:
    """One answer at the same call, on all ranks.

    Rank 0 keeps one record in the store, which grows from call to call: "n" says that the answer is False up to call n,
    "n stop" that it is False up to there and True from n + 1 on. What it has published binds rank 0 as well: it decides
    only at calls that the record does not cover yet, and publishes before it answers. So an answer of any rank follows
    from the record alone, whichever version of it the rank has read: a later one says the same of all earlier calls.

    Others look at the record when their call is not covered, until it is. They look again and again, with pauses: a
    wait inside of the store would hold up signal handlers, and torch logs each that times out.

    Args:
        store: shared by all ranks, and used by this agreement only.
        confirm: have readers say what they have read, for a rank 0 that serves the store and must not leave before.
        patience: seconds that a rank waits for rank 0.
    """

    def __init__(
        self, store: _Store, rank: int, clock: _Clock = time, *, confirm: bool = False, patience: float = _PATIENCE_S
    ) -> None:
        self._store = store
        self._rank = rank
        self._clock = clock
        self._confirm = confirm
        self._patience = patience
        self._calls = 0
        self._granted = 0
        self._stop = False
        self._record = ""
        self._said = False
        self._lease = 0
        self._called: float | None = None
        self._slowest = 0.0

    def answer(self, wanted: Callable[[], bool]) -> bool:
        """Make the next call.

        Args:
            wanted: whether this rank wants to stop.
        """
        self._calls += 1
        if self._rank == 0:
            self._lead(wanted)
        else:
            self._follow(wanted)
        return self._stop and self._calls > self._granted

    def _lead(self, wanted: Callable[[], bool]) -> None:
        now = self._clock.monotonic()
        if self._called is not None:
            self._slowest = max(self._slowest, now - self._called)
        self._called = now
        if self._stop or self._calls <= self._granted:
            return
        if wanted() or self._ask(self._store.check, ["wanted"]):
            self._publish(self._calls - 1, stop=True)
            return
        # By the slowest of the last calls, and growing slowly: a promise cannot be taken back.
        fitting = int(_LEASE_S / max(self._slowest, _LEASE_S / _LEASE_CALLS))
        self._lease = max(1, min(fitting, 2 * self._lease))
        self._slowest = 0.0
        self._publish(self._calls + self._lease - 1, stop=False)

    def _publish(self, granted: int, *, stop: bool) -> None:
        record = f"{granted} stop" if stop else str(granted)
        self._ask(self._store.set, "record", record)
        self._record, self._granted, self._stop = record, granted, stop

    def _follow(self, wanted: Callable[[], bool]) -> None:
        self._say(wanted)
        if self._stop or self._calls <= self._granted:
            return
        began = self._clock.monotonic()
        while not self._read():
            waited = self._clock.monotonic() - began
            if waited > self._patience:
                raise RuntimeError(
                    f"rank 0 has not made call {self._calls} of should_stop(all_ranks=True) in {self._patience:.0f} s: "
                    "every rank must call it equally often"
                )
            self._clock.sleep(min(max(0.001, waited / 4), 1.0))
            self._say(wanted)

    def _say(self, wanted: Callable[[], bool]) -> None:
        """Tell rank 0, once, that this rank wants to stop."""
        if not (self._said or self._stop) and wanted():
            self._ask(self._store.set, "wanted", str(self._rank))
            self._said = True

    def _read(self) -> bool:
        """Read the record; whether it covers this call."""
        if not (self._granted or self._ask(self._store.check, ["record"])):
            return False
        self._record = self._ask(self._store.get, "record").decode()
        granted, _, word = self._record.partition(" ")
        self._granted, self._stop = int(granted), bool(word)
        covered = self._stop or self._calls <= self._granted
        if covered and self._confirm:
            self._ask(self._store.set, f"read {self._rank}", self._record)
        return covered

    def linger(self, others: int) -> None:
        """Stay, for a short time, until ranks 1 to `others` have read the last record: the store ends with rank 0."""
        deadline = self._clock.monotonic() + _LINGER_S
        with contextlib.suppress(RuntimeError):
            for other in range(1, others + 1):
                while self._record and not self._has_read(other):
                    if self._clock.monotonic() > deadline:
                        return
                    self._clock.sleep(0.01)

    def _has_read(self, other: int) -> bool:
        key = f"read {other}"
        return bool(self._ask(self._store.check, [key])) and self._ask(self._store.get, key).decode() == self._record

    @staticmethod
    def _ask(operation: Callable[..., Any], *arguments: Any) -> Any:
        """Use the store: the single place where its failures come from."""
        try:
            return operation(*arguments)
        except RuntimeError as error:  # all of torch.distributed's are
            raise RuntimeError(
                f"should_stop(all_ranks=True) lost the store of the ranks: {_first_line(error)}"
            ) from error


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def _open_store(*, serve: bool) -> _Store:
    """Reach the store at MASTER_ADDR:MASTER_PORT.

    Args:
        serve: serve it from this process, together with the `init_process_group()` of this process.

    Raises:
        RuntimeError: in one line.
    """
    # Scripts without torch use the rest.
    from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]  # noqa: PLC0415

    host, port = os.environ.get("MASTER_ADDR"), _number("MASTER_PORT", 0)
    if not host or not port:
        raise RuntimeError(
            "should_stop(all_ranks=True) needs MASTER_ADDR and MASTER_PORT, as init_process_group() does"
        )
    timeout = timedelta(seconds=_CONNECT_S)
    store: TCPStore | None = None
    if serve:
        # A port that is taken is served already, by a store that this process or another has made in its own way.
        with contextlib.suppress(RuntimeError):
            store = TCPStore(host, port, None, True, timeout, wait_for_workers=False, multi_tenant=True)
    try:
        if store is None:
            store = TCPStore(host, port, None, False, timeout, wait_for_workers=False)
    except RuntimeError as error:
        raise RuntimeError(
            f"should_stop(all_ranks=True) cannot reach the store of the ranks at {host}:{port}: {_first_line(error)}"
        ) from error
    return PrefixStore(f"hpc_launch/runtime/{_number('TORCHELASTIC_RESTART_COUNT', 0)}", store)


class _Process:
    """What this process knows; a process that it forks begins anew."""

    def __init__(self) -> None:
        self._arranged = False
        self._begin()

    def _begin(self) -> None:
        self.notices = _Notices()
        self.end_time = _EndTime()
        self.progress = _Progress()
        self.stopped = False
        self._agreement: _Agreement | None = None
        self._serves = 0

    def arrange(self) -> None:
        """Be called at forks and at the end, from the first time on that there is something to do."""
        if not self._arranged:
            self._arranged = True
            os.register_at_fork(after_in_child=self._forked)
            atexit.register(self._end)

    def watch(self) -> _Notices:
        """The notices, with handlers."""
        self.arrange()
        self.notices.install()
        return self.notices

    def agreement(self) -> _Agreement:
        """The agreement with the other ranks."""
        if self._agreement is None:
            served = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
            leads = rank() == 0
            store = _open_store(serve=leads and not served)
            self._agreement = _Agreement(store, rank(), confirm=not served)
            self._serves = world_size() - 1 if leads and not served else 0
        return self._agreement

    def _forked(self) -> None:
        self.notices.inherit()
        self._begin()

    def _end(self) -> None:
        self.progress.flush()
        if self._agreement is not None:
            self._agreement.linger(self._serves)


_process = _Process()
