"""Runs that start together in a job choose its nodes one after another."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from hpc_launch.launch import srun_step
from hpc_launch.slurm.environment import Allocation, Place
from tests.support import wait_for


def job(number: int = 0) -> Allocation:
    """Return a job that no other test has."""
    return Allocation(f"{os.getpid()}{number}", "12", Place.BATCH, ("a", "b"), "a", "", 0)


def test_one_at_a_time() -> None:
    """A run waits until the one before it has chosen."""
    inside, most = 0, 0

    def choose(_: int) -> None:
        nonlocal inside, most
        with srun_step._turn(job()):
            inside += 1
            most = max(most, inside)
            threading.Event().wait(0.01)
            inside -= 1

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(choose, range(8)))
    assert (most, inside) == (1, 0)


def test_runs_in_other_jobs_do_not_wait() -> None:
    """Turns are taken in one job only."""
    with srun_step._turn(job(1)) as one, srun_step._turn(job(2)) as another:
        pass
    assert (one, another) == (True, True)


def test_a_run_that_was_killed_holds_up_no_other() -> None:
    """The turn of a process that was killed is over."""
    code = (
        "import socket, sys, time; s = socket.socket(socket.AF_UNIX); "
        f"s.bind('\\0hpc-launch/{os.geteuid()}/{job(3).job_id}'); print(flush=True); time.sleep(600)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    holder.stdout.readline()
    taken = threading.Event()

    def take() -> None:
        with srun_step._turn(job(3)):
            taken.set()

    waiting = threading.Thread(target=take)
    waiting.start()
    before = taken.is_set()
    holder.kill()
    holder.communicate()
    wait_for(taken.is_set, 60, "the turn is not over")
    waiting.join()
    assert not before


def test_a_turn_that_never_ends_is_done_without(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another user can hold the name: a run goes on without it after a while."""
    monkeypatch.setattr(srun_step, "_TURN_SECONDS", 0.05)
    with srun_step._turn(job(4)), srun_step._turn(job(4)) as second:
        pass
    assert second
