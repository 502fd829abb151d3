"""Processes of this node: who is below whom, what a signal would do to them, and when they began."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from hpc_launch.node import processes
from tests.support import DAEMON, wait_for

Starts = Callable[[Sequence[str]], "subprocess.Popen[str]"]


@pytest.fixture
def started() -> Iterator[Starts]:
    """Return what starts a program whose stdout can be read; it ends with the test, and what is below it."""
    made: list[subprocess.Popen[str]] = []

    def start(command: Sequence[str]) -> subprocess.Popen[str]:
        made.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        return made[-1]

    yield start
    for process in made:
        for pid in [*processes.descendants(process.pid), process.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        with process:
            process.wait()


# A child, its child, one that was forked twice and has a session of its own, and one that has ended and is not
# waited for.
FAMILY = (
    """
import json, os, time
from hpc_launch.node.processes import become_subreaper

become_subreaper()
read, write = os.pipe()

def tell():
    os.write(write, b"%d\\n" % os.getpid())

def forever():
    tell()
    time.sleep(3600)

if os.fork() == 0:
    if os.fork() == 0:
        forever()
    forever()
"""
    + DAEMON
    + """
zombie = os.fork()
if zombie == 0:
    os._exit(0)
os.waitid(os.P_PID, zombie, os.WEXITED | os.WNOWAIT)
lines = os.fdopen(read)
print(json.dumps([sorted(int(lines.readline()) for _ in range(3)), zombie]), flush=True)
time.sleep(3600)
"""
)


def test_descendants(started: Starts, python: str) -> None:
    """Children, theirs, and what was left to a subreaper are found; what has ended is not, nor is the ancestor."""
    process = started([python, "-c", FAMILY])
    assert process.stdout is not None
    alive, zombie = json.loads(process.stdout.readline())

    assert sorted(processes.descendants(process.pid)) == alive
    assert zombie not in processes.descendants(os.getpid())
    assert {process.pid, *alive} <= set(processes.descendants(os.getpid()))
    os.kill(alive[0], signal.SIGKILL)
    wait_for(lambda: alive[0] not in processes.descendants(process.pid), 60, "it does not end")


def test_who_has_no_descendants(started: Starts) -> None:
    """A process without children has none, and so has one that does not exist."""
    process = started(["sleep", "3600"])

    assert processes.descendants(process.pid) == []
    process.kill()
    process.wait()
    assert processes.descendants(process.pid) == []


def test_a_name_that_looks_like_more(started: Starts, tmp_path: Path) -> None:
    """A program may be called as it likes: what follows its name in /proc is found nevertheless."""
    sleep = shutil.which("sleep")
    assert sleep is not None
    name = tmp_path / "a) Z 1 (b c"
    name.symlink_to(sleep)
    process = started([str(name), "3600"])
    usual = started([sleep, "3600"])
    wait_for(lambda: "(a) Z 1 (b c)" in Path(f"/proc/{process.pid}/stat").read_text(), 60, "it has another name")

    assert process.pid in processes.descendants(os.getpid())
    assert 0 <= int(processes.start_time(usual.pid)) - int(processes.start_time(process.pid)) < 6000


MANNERS = """
import signal, sys, time
{manner}
print("ready", flush=True)
time.sleep(3600)
"""


@pytest.mark.parametrize(
    ("manner", "dies"),
    [
        ("", True),
        ("signal.signal(signal.SIGUSR2, lambda *_: None)", True),
        ("signal.signal(signal.SIGUSR1, lambda *_: None)", False),
        ("signal.signal(signal.SIGUSR1, signal.SIG_IGN)", False),
        ("signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])", False),
        ("signal.signal(signal.SIGUSR1, lambda *_: None); signal.signal(signal.SIGUSR1, signal.SIG_DFL)", True),
    ],
)
def test_who_would_die(started: Starts, python: str, manner: str, dies: bool) -> None:
    """A signal ends who has no handler for it, and neither ignores nor blocks it; and the prediction comes true."""
    process = started([python, "-c", MANNERS.format(manner=manner)])
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"

    assert processes.would_die_of(process.pid, signal.SIGUSR1) is dies
    processes.send(process.pid, signal.SIGUSR1)
    if not dies:
        processes.send(process.pid, signal.SIGTERM)
    assert process.wait(60) == -(signal.SIGUSR1 if dies else signal.SIGTERM)


def test_all_signals_are_blocked_while_a_thread_is_made(started: Starts, python: str) -> None:
    """The C library blocks all, its own as well, and lets them in again: a signal of that moment would be the end."""
    number = {"x86_64": 14, "aarch64": 135}[platform.machine()]  # rt_sigprocmask(2), as the library calls it
    call = f"ctypes.CDLL(None).syscall({number}, 0, ctypes.byref(ctypes.c_uint64(2**64 - 1)), None, 8)"
    process = started([python, "-c", MANNERS.format(manner=f"import ctypes; {call}")])
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"

    assert processes.would_die_of(process.pid, signal.SIGUSR1)


def test_the_first_and_the_last_signal(started: Starts, python: str) -> None:
    """The masks are read from the right end."""
    ignored = "for s in (1, 64): signal.signal(s, signal.SIG_IGN)"
    process = started([python, "-c", MANNERS.format(manner=ignored)])
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"

    assert [processes.would_die_of(process.pid, number) for number in (1, 10, 34, 63, 64)] == [
        False,
        True,
        True,
        True,
        False,
    ]


def test_who_is_gone(started: Starts) -> None:
    """A process that is gone dies of nothing, has no beginning, and to signal it is no error."""
    process = started(["true"])
    process.wait()

    assert not processes.would_die_of(process.pid, signal.SIGUSR1)
    assert processes.start_time(process.pid) == ""
    processes.send(process.pid, signal.SIGKILL)
    processes.send(process.pid, signal.SIGKILL, group=True)


def test_start_time(started: Starts) -> None:
    """It stays what it is, and is not earlier than that of who was there before."""
    first = started(["sleep", "3600"])
    begin = processes.start_time(first.pid)
    later = started(["sleep", "3600"])

    assert int(processes.start_time(os.getpid())) <= int(begin) <= int(processes.start_time(later.pid))
    assert processes.start_time(first.pid) == begin


# A parent waits in the kernel until the child that shares its memory has become a program (vfork(2)); this child waits
# for somebody who writes to a pipe.
HANGS = """
import os, sys, time
print("ready", flush=True)
os.posix_spawn("/bin/true", ["true"], {}, file_actions=[(os.POSIX_SPAWN_OPEN, 3, sys.argv[1], os.O_RDONLY, 0)])
time.sleep(3600)
"""


def test_who_hangs_in_the_kernel(started: Starts, python: str, tmp_path: Path) -> None:
    """Where a process waits that cannot be interrupted is named; others, and one that is gone, hang nowhere."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    process = started([python, "-c", HANGS, str(pipe)])
    wait_for(lambda: processes.state(process.pid)[0] == "D", 60, "it does not hang")

    assert processes.hung_in(process.pid)
    assert processes.state(process.pid)[1].startswith("hanging in the kernel")
    os.close(os.open(pipe, os.O_WRONLY))
    wait_for(lambda: not processes.hung_in(process.pid), 60, "it hangs for ever")
    assert (processes.hung_in(os.getpid()), processes.hung_in(1 << 22)) == ("", "")


def test_who_is_the_same(started: Starts) -> None:
    """A process is known by its number and its beginning, as long as it runs; one to be waited for does not."""
    process = started(["sleep", "3600"])
    began = processes.start_time(process.pid)

    assert processes.is_same(process.pid, began)
    assert not processes.is_same(process.pid, str(int(began) + 1))
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert processes.start_time(process.pid) == began
    assert not processes.is_same(process.pid, began)
    assert not processes.alive(process.pid)
    process.wait()
    assert not processes.is_same(process.pid, "")


def test_own_descriptors_and_threads(tmp_path: Path) -> None:
    """Without a number it is this process: what it has open, and its threads."""
    with (tmp_path / "file").open("w") as file:
        assert file.fileno() in processes.descriptors()
        assert Path(processes.file_of(os.getpid(), file.fileno())).readlink() == tmp_path / "file"
    assert file.closed
    assert processes.threads() == processes.threads(os.getpid())
    assert (processes.threads(1 << 22), processes.descriptors(1 << 22)) == ([], [])


LEADS = """
import os, subprocess, sys
os.setsid()
child = subprocess.Popen(["sleep", "3600"])
print(child.pid, flush=True)
child.wait()
sys.stdin.read()
"""


@pytest.mark.parametrize("group", [True, False])
def test_send(started: Starts, python: str, group: bool) -> None:
    """The signal goes to one process, or to all of the group that it leads."""
    process = started([python, "-c", LEADS])
    assert process.stdout is not None
    child = int(process.stdout.readline())
    begin = processes.start_time(child)
    processes.send(process.pid, signal.SIGTERM, group=group)

    assert process.wait(60) == -signal.SIGTERM
    if group:
        wait_for(lambda: gone(child, begin), 60, "the child was not signalled")
    else:
        assert not gone(child, begin)
        os.kill(child, signal.SIGKILL)


def gone(pid: int, begin: str) -> bool:
    """Say whether a process that began then has ended, waited for or not."""
    if processes.start_time(pid) != begin:
        return True
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    return True
