"""Take the stacks of workers of this node, without harm to them.

By py-spy where it is installed and may (it needs the right to trace: root, or a kernel that lets a user's processes
trace each other); else by asking the worker (`reserved_signals`). A signal that a process does not handle would kill
it: one is sent only to a process that has the file open in which it answers, and handles the signal, as the kernel
shows.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import IO

from hpc_launch.node import processes, reserved_signals
from hpc_launch.node.reserved_signals import Owner
from hpc_launch.records.stack_traces import ProcessStacks

_CANNOT_ANSWER = "it cannot answer a signal now"

# The ways there are to take stacks (--by).
WAYS = ("py-spy", "signal")

# Seconds: that a main thread has to answer in Python; for a thread to begin to dump itself, and to end; between looks.
_ANSWER = 0.5
_BEGIN = 1.0
_DUMP = 10.0
_LOOK = 0.003

# So many looks in a row must show that a signal is neither pending nor being handled: between them it is neither.
_LOOKS = 3

# Seconds after which a process that hangs in the kernel, or blocks signals, is believed to: when it forks, or starts a
# thread, it does for a moment.
_HANGS = 2.0

# Seconds that py-spy may take for a process: it reads symbol tables of large libraries.
_SPY = 15.0

# So many children of a worker, and threads of a process, are looked at.
_MOST_CHILDREN = 64
_MOST_THREADS = 64

_AT_ONCE = 16

_NOT_ASKED = "it does not answer signal {signal}: started by exec, or its script has closed the file for the answers"


def find_workers(job: str, attempt: int) -> dict[int, int]:
    """The workers of an attempt that run on this node: process ids by rank.

    They are known by the file that they answer in, or by the environment that they were started with; of those that
    have the same, the worker is the oldest.

    Args:
        job: the name of the job directory.
        attempt: which of its attempts.
    """
    found: dict[int, tuple[int, int]] = {}
    for pid in processes.numbers():
        owner = _owner(pid)
        if owner is not None and owner.same(Owner(job, attempt, owner.rank)):
            age = int(processes.start_time(pid) or sys.maxsize), pid
            found[owner.rank] = min(age, found.get(owner.rank, age))
    return {rank: pid for rank, (_, pid) in sorted(found.items())}


def may_be_worker(pid: int) -> bool:
    """Whether a process is below a worker factory: one that was a worker, and has the number of one, still is it."""
    return processes.name(processes.parent(pid)) == reserved_signals.FACTORY


def dump_stacks(
    workers: Mapping[int, int], host: str, *, ways: Sequence[str] = WAYS, patience: float = 30.0
) -> tuple[ProcessStacks, ...]:
    """The stacks of workers, and of the processes below them.

    Args:
        workers: process ids by rank.
        host: the name of this node.
        ways: the ways to try, in order.
        patience: seconds for all of it; what is not reached in that time is not looked at.
    """
    deadline = time.monotonic() + patience
    taker = _Taker(host, tuple(ways), deadline)
    with ThreadPoolExecutor(min(_AT_ONCE, max(1, len(workers)))) as pool:
        return tuple(one for found in pool.map(lambda item: [*taker.worker(*item)], workers.items()) for one in found)


def spy() -> str | None:
    """The path of py-spy, beside this Python or on the PATH."""
    return shutil.which("py-spy", path=str(Path(sys.executable).parent)) or shutil.which("py-spy")


def _owner(pid: int) -> Owner | None:
    """Whose process it is, by the file that it has open, else by its first environment."""
    if found := _answer_file(pid):
        return found[1]
    environ = processes.process_environment(pid)
    try:
        job = Path(environ["HPC_LAUNCH_JOB_DIRECTORY"]).name
        return Owner(job, int(environ["HPC_LAUNCH_ATTEMPT"]), int(environ["RANK"]))
    except (KeyError, ValueError):
        return None


def _answer_file(pid: int) -> tuple[str, Owner] | None:
    """The path of the open file that a process answers in, and whose it is."""
    for descriptor in processes.descriptors(pid):
        if descriptor >= reserved_signals.LOWEST:
            with contextlib.suppress(OSError):
                path = processes.file_of(pid, descriptor)
                if owner := Owner.of_link(os.readlink(path)):  # noqa: PTH115 - it is a text, not a path
                    return path, owner
    return None


class _Taker:
    def __init__(self, host: str, ways: Sequence[str], deadline: float) -> None:
        self._host, self._ways, self._deadline = host, ways, deadline
        self._spy = spy() if "py-spy" in ways else None

    def worker(self, rank: int, pid: int) -> Iterator[ProcessStacks]:
        """A worker, and what is below it, one after another: they share a file."""
        below = processes.descendants(pid)
        yield self._look(ProcessStacks(rank, self._host, pid))
        for child in below[:_MOST_CHILDREN]:
            seen = self._look(ProcessStacks(rank, self._host, child, processes.parent(child)))
            if seen.parent:  # it is still there
                yield seen

    def _look(self, seen: ProcessStacks) -> ProcessStacks:
        late = time.monotonic() > self._deadline
        _wait(lambda: late or processes.state(seen.pid)[0] not in "DTt", _HANGS)
        letter, words = processes.state(seen.pid)
        about = replace(seen, name=processes.name(seen.pid), state=words)
        if letter in ("", "Z", "X"):
            return replace(about, why="it has ended")
        if late:
            return replace(about, why="there was no time left to look at it")
        reasons = []
        for way in self._ways:
            method: Callable[[int, str], tuple[str, str]] = self._by_spy if way == "py-spy" else self._by_signal
            text, why = method(seen.pid, letter)
            if text:
                return replace(about, by=way, text=text)
            reasons.append(why)
        return replace(about, why="; ".join(filter(None, reasons)))

    # ---- py-spy

    def _by_spy(self, pid: int, letter: str) -> tuple[str, str]:
        if self._spy is None:
            return "", "py-spy is not installed"
        if letter in "DT":
            return "", "py-spy cannot stop a process that hangs in the kernel" if letter == "D" else "it is stopped"
        seconds = min(_SPY, max(1.0, self._deadline - time.monotonic()))
        command = [self._spy, "dump", "--full-filenames", "--pid", str(pid)]
        try:
            done = subprocess.run(
                command, capture_output=True, timeout=seconds, check=False, encoding="utf-8", errors="replace"
            )
        except subprocess.TimeoutExpired:
            return "", f"py-spy had no answer in {seconds:.0f} s"
        except OSError as error:
            return "", f"py-spy: {error.strerror or error}"
        if done.returncode == 0 and "Thread" in done.stdout:
            return done.stdout, ""
        return "", f"py-spy: {_first_reason(done.stderr)}"

    # ---- signals

    def _by_signal(self, pid: int, letter: str) -> tuple[str, str]:
        found = _answer_file(pid)
        signals = processes.signals(pid, pid)
        if found is None or signals is None or not signals.caught(reserved_signals.ASK, reserved_signals.DUMP):
            return "", _NOT_ASKED.format(signal=int(reserved_signals.DUMP))
        if letter in "DTt":
            return "", _CANNOT_ANSWER
        try:
            with open(found[0], "r+b", buffering=0) as file, _alone(file, self._deadline):  # noqa: PTH123 - as in /proc
                return _ask(pid, file)
        except OSError as error:
            return "", f"its answer cannot be read ({error.strerror or error})"


def _first_reason(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    reasons = [line.removeprefix("Reason:").strip() for line in lines if line.startswith("Reason:")]
    return (reasons or [line.removeprefix("Error:").strip() for line in lines] or ["it says nothing"])[0]


@contextlib.contextmanager
def _alone(file: IO[bytes], deadline: float) -> Iterator[None]:
    """Ask alone: another one who asks the same process waits, on whichever terminal."""
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise TimeoutError(0, "somebody else is asking it") from None
            time.sleep(_LOOK)
    try:
        yield
    finally:
        fcntl.flock(file, fcntl.LOCK_UN)


def _ask(pid: int, file: IO[bytes]) -> tuple[str, str]:
    """Ask the process; where it does not answer, its threads."""
    file.truncate(0)
    if not _wait(lambda: _send(pid, pid, reserved_signals.ASK), _HANGS):
        return "", _CANNOT_ANSWER
    if _wait(lambda: _answer(file) or not processes.alive(pid), _ANSWER) and (text := _answer(file)):
        return text, ""
    stacks = []
    for thread in _threads(pid):
        text = _dump(pid, thread, file)
        if late := _answer(file):
            return late, ""
        if text:
            name = " [MainThread]" if thread == pid else ""
            stacks.append(f"Thread {thread:#x}{name} (most recent call first):\n{text}")
    return "".join(stacks), "" if stacks else "it did not answer a signal"


def _dump(pid: int, thread: int, file: IO[bytes]) -> str:
    """Have a thread dump itself; empty if it is none of Python's, or did not."""
    before = os.fstat(file.fileno()).st_size
    if not _wait(lambda: _send(pid, thread, reserved_signals.DUMP), _BEGIN if thread == pid else 0.0):
        return ""
    begin, quiet = time.monotonic(), 0
    while quiet < _LOOKS and (signals := processes.signals(pid, thread)) is not None:
        dumping = signals.blocked(reserved_signals.DUMP)
        quiet = 0 if dumping or signals.pending(reserved_signals.DUMP) else quiet + 1
        if time.monotonic() - begin > (_DUMP if dumping else _BEGIN):
            break
        time.sleep(_LOOK)
    text = os.pread(file.fileno(), 1 << 20, before).decode("ascii", errors="replace")
    head, _, frames = text.partition("(most recent call first):\n")
    return frames if head.startswith("Stack") else ""


def _answer(file: IO[bytes]) -> str:
    """A whole answer to ASK; empty as long as there is none."""
    text = os.pread(file.fileno(), 1 << 20, 0).decode("ascii", errors="replace")
    begin, end = text.find("Thread 0x"), text.find(reserved_signals.END)
    return text[begin:end] if 0 <= begin < end else ""


def _threads(pid: int) -> Iterator[int]:
    """The threads to ask: the main thread, and those that wait and have no name of their own, as Python's threads.

    Libraries name theirs, or most of them; a signal would interrupt them for nothing. One that runs might run Python.
    """
    name = processes.name(pid)
    yield pid
    count = 0
    for thread in processes.threads(pid):
        if thread != pid and processes.name(pid, thread) == name and processes.state(pid, thread)[0] == "S":
            yield thread
            count += 1
            if count == _MOST_THREADS:
                return


def _send(pid: int, thread: int, signum: int) -> bool:
    """Signal one thread if it has a handler for that at this moment; returns whether it was.

    One that waits for signals (sigwait(3)) is not to meet this one: it may wait for all that there are. While it does,
    the kernel shows them as not blocked.
    """
    signals = processes.signals(pid, thread)
    if signals is None or not signals.caught(signum) or signals.blocked(signum):
        return False
    if "sigtimedwait" in processes.state(pid, thread)[1]:
        return False
    processes.send_to_thread(pid, thread, signum)
    return True


def _wait(done: Callable[[], object], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not done():
        if time.monotonic() > deadline:
            return False
        time.sleep(_LOOK)
    return True
