"""Where the workers of this machine are; and none is harmed by being asked, whatever it has done to itself."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.local.launching import HPC_LAUNCH, TIMEOUT, Running, alive, launch, probe, running
from tests.support import mentions, wait_for

# Whether py-spy may look at processes here: root may, and others where the kernel lets them trace their own.
_SCOPE = Path("/proc/sys/kernel/yama/ptrace_scope")
MAY_TRACE = os.geteuid() == 0 or not _SCOPE.exists() or _SCOPE.read_text().strip() == "0"
traces = pytest.mark.skipif(not MAY_TRACE, reason="the kernel lets nobody but root trace processes (Yama)")

# Each rank does something else, having said that it does. The names of the functions are what is asked for.
BODY = """
import multiprocessing, signal, sys, threading, time

def ready():
    Path(f"ready-{os.environ['RANK']}").touch()

def in_python():
    threading.Thread(target=helping, daemon=True, name="helper").start()
    ready()
    while True:
        sum(range(100))

def helping():
    time.sleep(3600)

def in_c():
    threading.Thread(target=helping, daemon=True).start()
    lock = threading.Lock()
    lock.acquire()
    ready()
    lock.acquire()

def closed():
    os.closerange(3, 4096)
    ready()
    time.sleep(3600)

def own_handler():
    signal.signal(signal.SIGRTMIN + 11, signal.SIG_DFL)
    ready()
    time.sleep(3600)

def waits_for_all_signals():
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    ready()
    while signal.sigwait(signal.valid_signals()) == signal.SIGTERM:
        pass

def parent():
    children = [multiprocessing.get_context("fork").Process(target=child) for _ in range(2)]
    for one in children:
        one.start()
    time.sleep(3600)

def child():
    time.sleep(0.1)
    ready()
    time.sleep(3600)

(in_python, in_c, closed, own_handler, parent, waits_for_all_signals)[int(os.environ["RANK"])]()
"""


def stacks(folder: Path, *options: str) -> tuple[int, Any]:
    """Ask where the ranks of the latest job in a folder are; returns the status and the answer."""
    command = [*HPC_LAUNCH, "stacks", "--json", *options]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=TIMEOUT, check=False)
    assert done.returncode in (0, 1), done.stderr
    return done.returncode, json.loads(done.stdout)


def ready(launcher: Running, folder: Path, count: int) -> None:
    """Wait until so many ranks are where they are to be."""
    wait_for(lambda: len([*folder.glob("ready-*")]) == count, TIMEOUT, launcher.said)


def test_workers_that_answer_and_such_that_do_not(tmp_path: Path) -> None:
    """A worker answers in Python or in C, with its threads and children; one that cannot is left alone."""
    with running(tmp_path, "--nproc-per-node=6", "--start=warm", probe(tmp_path, BODY)) as launcher:
        ready(launcher, tmp_path, 6)
        for _ in range(2):
            status, seen = stacks(tmp_path, "--by=signal")
            places = {tuple(group["ranks"]): group["frames"][0]["function"] for group in seen["groups"]}
            others = {group["what"]: (group["count"], group["ranks"]) for group in seen["others"]}
            unseen = {rank: those["why"] for those in seen["unseen"] for rank in those["ranks"]}

            assert (status, places) == (1, {(0,): "in_python", (1,): "in_c", (4,): "parent"})
            assert others["thread helper"] == (1, [0])
            assert others["thread"] == (1, [1])
            assert [value for name, value in others.items() if name.startswith("child")] == [(2, [4])]
            assert set(unseen) == {2, 3, 5}
            assert all("does not answer" in unseen[rank] for rank in (2, 3))
            assert mentions(unseen[5], "signal")
        assert all(alive(record.pid) for record in launcher.records())


@traces
def test_workers_that_were_started_by_exec(tmp_path: Path) -> None:
    """py-spy sees them, and without it the kernel's word is given; no signal is sent to them."""
    body = "Path(f\"ready-{os.environ['RANK']}\").touch()\nimport time\ntime.sleep(3600)"
    with running(tmp_path, "--nproc-per-node=2", "--start=exec", probe(tmp_path, body)) as launcher:
        ready(launcher, tmp_path, 2)
        status, seen = stacks(tmp_path, "--by=signal")
        [unseen] = seen["unseen"]
        assert (status, unseen["ranks"]) == (1, [0, 1])
        assert unseen["state"].startswith("waiting")
        assert "started by exec" in unseen["why"]

        status, seen = stacks(tmp_path)
        [group] = seen["groups"]
        assert (status, group["ranks"], {one["by"] for one in seen["processes"]}) == (0, [0, 1], {"py-spy"})
        assert group["frames"][-1]["file"] == str(tmp_path / "train.py")
        assert all(alive(record.pid) for record in launcher.records())


@traces
def test_an_attempt_in_which_nobody_does_anything(tmp_path: Path) -> None:
    """It ends with the status of timeout(1), the line that says where, and the stacks."""
    name = probe(tmp_path, "import time\ntime.sleep(3600)")
    done = launch(tmp_path, "--nproc-per-node=2", "--start=exec", "--hang-timeout=2", name)
    told = [line for line in done.err.splitlines() if "hang: " in line]

    # When it is seen, and as the root cause in the end.
    assert (done.status, len(told)) == (124, 2), done.err
    assert all("ranks 0-1: <module> (train.py:" in line for line in told)
    assert "2 ranks followed" in done.err
    assert len([*tmp_path.glob("logs/latest/stacks/*/*/rank_*.txt")]) == 2


@traces
def test_a_thread_that_goes_on_writing_is_no_progress(tmp_path: Path) -> None:
    """Ranks that mark progress hang when none does so any more, whatever a thread of one writes meanwhile."""
    body = """
        import threading, time
        from hpc_launch import runtime
        def chat():
            while True:
                time.sleep(0.2)
                print("GPU utilisation 0 %", flush=True)
        if os.environ["RANK"] == "0":
            threading.Thread(target=chat, daemon=True).start()
        runtime.mark_progress(3, 100)
        time.sleep(3600)
    """
    done = launch(tmp_path, "--nproc-per-node=2", "--start=exec", "--hang-timeout=2", probe(tmp_path, body))

    assert done.status == 124, done.err
    assert mentions(done.err, "runtime.mark_progress", "2", "--hang-timeout"), done.err


@pytest.mark.soak
def test_busy_threads_survive(tmp_path: Path) -> None:
    """Threads that do nothing but call, compile and recurse: they die where faulthandler dumps all of them at once."""
    body = """
import threading, time
def recurse(n):
    return recurse(n - 1) + 1 if n else 0
def deep():
    while True:
        recurse(300)
def churn():
    while True:
        space = {}
        text = "def g(a, b, c):\\n  x = [a] * 5\\n  return sum(x) + (g(a, b, c - 1) if c else 0)"
        exec(compile(text, "g", "exec"), space)
        space["g"](1, 2, 60)
for target in (deep, churn, deep, churn):
    threading.Thread(target=target, daemon=True).start()
Path(f"ready-{os.environ['RANK']}").touch()
while not Path("enough").exists():
    recurse(50)
"""
    with running(tmp_path, "--nproc-per-node=2", "--start=warm", probe(tmp_path, body)) as launcher:
        ready(launcher, tmp_path, 2)
        for _ in range(100):
            status, seen = stacks(tmp_path, "--by=signal")
            assert status == 0, seen["unseen"]
        (tmp_path / "enough").touch()
        done = launcher.finish()
    assert done.status == 0, done.err
