"""Jobs end by signal more often than by success: what workers get of it, and that nothing is left."""

from __future__ import annotations

import os
import re
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.cluster import Cluster, ClusterConfig, Job
from tests.cluster.releases import NEWEST, Release
from tests.slurm.jobs_support import DEADLINE
from tests.slurm.signals_support import Running, await_up, submit
from tests.slurm.steps_support import TIME_IS_UP
from tests.support import mentions, wait_for

# How often each story is told; all but the first are the soak.
REPETITIONS = [pytest.param(number, marks=[pytest.mark.soak] if number else []) for number in range(20)]


# Where Slurm signals all processes of a step, and not only the first one of each task.
ALL_PROCESSES = (
    ClusterConfig(nodes=2, proctrack="linuxproc"),
    ClusterConfig(nodes=2, release=NEWEST, signal_children=True),
)


def check_told_once(running: Running) -> None:
    """See that each rank got one SIGUSR1, and one SIGUSR2 that comes to the second node only, on all nodes."""
    running.await_signal("SIGUSR1")
    running.agent(2).send_signal(signal.SIGUSR2)
    running.await_signal("SIGUSR2")
    running.release()
    result = running.job.wait(DEADLINE)
    assert (result.state, result.exit_code) == ("COMPLETED", 0), running.describe()
    assert running.got() == {rank: Counter(SIGUSR1=1, SIGUSR2=1) for rank in range(4)}, running.describe()
    nodes = ("gpu001", "gpu002")
    assert running.notices() == {node: Counter(SIGUSR1=1, SIGUSR2=1) for node in nodes}, running.describe()
    [line] = [line for line in running.ours if "SIGUSR1" in line]
    assert re.search(r"SIGUSR1.* \d+ (s|min|h)\b", line), line


@pytest.mark.parametrize("repetition", REPETITIONS)
def test_a_notice_reaches_every_rank_once(any_cluster: Cluster, tmp_path: Path, repetition: int) -> None:
    """`scancel -s USR1` signals the agents only, all of them; a signal to a single one is passed on to all nodes."""
    running = submit(any_cluster, tmp_path, "--until go", "--time=10")
    await_up(running)
    if repetition % 2:
        running.agent(2 * (repetition // 2 % 2)).send_signal(signal.SIGUSR1)
    else:
        running.job.signal("USR1")
    check_told_once(running)


def test_slurm_s_notice_before_the_end(some_cluster: Cluster, tmp_path: Path) -> None:
    """With `--signal=USR1@N` ranks save and leave, and the job ends well; those that stay are ended at the limit."""

    def limit(running: Running, change: str) -> None:
        some_cluster.run(["scontrol", "update", f"jobid={running.job.id}", change])

    # Limits are near only when all ranks are up. Slurm looks at them every half a minute.
    options = ("--time=10", "--signal=USR1@90")
    leaving = submit(some_cluster, tmp_path / "leaving", "--on SIGUSR1 1", *options, nodes=1)
    stubborn = submit(some_cluster, tmp_path / "stubborn", "--stubborn --family", launcher="--grace=3", nodes=1)
    staying = submit(some_cluster, tmp_path / "staying", "--on SIGTERM 8", *options)
    await_up(leaving, staying, stubborn)
    limit(stubborn, TIME_IS_UP)
    for running in (leaving, staying):
        limit(running, "timelimit=2")
    result = leaving.job.wait(DEADLINE)
    assert (result.state, result.exit_code) == ("COMPLETED", 0), leaving.describe()
    assert leaving.got() == {rank: Counter(SIGUSR1=1) for rank in range(2)}, leaving.describe()
    assert leaving.saved() == dict.fromkeys(range(2), "whole")

    staying.await_signal("SIGUSR1")
    limit(staying, TIME_IS_UP)
    assert staying.job.wait(DEADLINE).state == "TIMEOUT", staying.describe()
    # Slurm sends SIGTERM twice at a time limit; the workers get it once.
    assert staying.got() == {rank: Counter(SIGUSR1=1, SIGTERM=1) for rank in range(4)}, staying.describe()
    assert staying.saved() == dict.fromkeys(range(4), "whole"), staying.describe()
    assert stubborn.job.wait(DEADLINE).state == "TIMEOUT", stubborn.describe()
    staying.check_nothing_is_left()


def stop(running: Running, *, by_slurm: bool) -> None:
    """Have Slurm end the job, or send SIGTERM to the agent of one node."""
    if by_slurm:
        running.job.cancel()
    else:
        running.agent(2).send_signal(signal.SIGTERM)


def check_they_have_their_time(running: Running, *, by_slurm: bool) -> None:
    """See that workers which need 8 seconds have them, whether Slurm ends the job or a single agent is stopped."""
    window = running.cluster.config.kill_wait - 1
    await_up(running)
    stop(running, by_slurm=by_slurm)
    result = running.job.wait(DEADLINE)
    assert (result.state, result.exit_code) == ("CANCELLED" if by_slurm else "FAILED", 143), running.describe()
    assert running.got() == {rank: Counter(SIGTERM=1) for rank in range(4)}, running.describe()
    wait_for(lambda: running.saved() == dict.fromkeys(range(4), "whole"), DEADLINE, running.describe)
    running.check_nothing_is_left()
    [line] = [line for line in running.ours if "SIGTERM" in line]
    assert mentions(line, window, "after scancel" if by_slurm else "stopped by SIGTERM"), running.describe()


def test_workers_have_the_time_that_slurm_gives(any_cluster: Cluster, tmp_path: Path) -> None:
    """What they do with it is whole, and nothing is left; the log says how much it is."""
    by_slurm = any_cluster.config.release != NEWEST
    check_they_have_their_time(submit(any_cluster, tmp_path, "--on SIGTERM 8"), by_slurm=by_slurm)


@pytest.mark.soak
@pytest.mark.parametrize("repetition", range(20))
@pytest.mark.usefixtures("slurm_host")
def test_a_window_that_is_just_long_enough(tmp_path: Path, repetition: int) -> None:
    """8 seconds after SIGTERM are within a KillWait of 10, also where a single agent gets the signal.

    What takes 8 seconds is whole. The ninth is all that a busy machine has for the ends of four interpreters with
    torch, so it can be that these are cut off.
    """
    with Cluster(ClusterConfig(nodes=2, kill_wait=10)) as cluster:
        running = submit(cluster, tmp_path, "--on SIGTERM 8")
        await_up(running)
        stop(running, by_slurm=repetition % 2 == 0)
        running.job.wait(DEADLINE)
        wait_for(lambda: running.saved() == dict.fromkeys(range(4), "whole"), DEADLINE, running.describe)
        running.check_nothing_is_left()


def test_the_window_is_the_same_when_workers_restart(cluster: Cluster, tmp_path: Path) -> None:
    """The ranks that did not fail have their time too; a SIGTERM that comes meanwhile ends the run after it."""
    running = submit(cluster, tmp_path, "--on SIGTERM 6 --fail 3", launcher="--max-restarts=3")
    await_up(running)
    running.release("fail")
    wait_for(lambda: len(running.saved()) == 3, DEADLINE, running.describe)
    running.job.signal("TERM")
    result = running.job.wait(DEADLINE)
    assert (result.state, result.exit_code) == ("FAILED", 143), running.describe()
    assert running.saved() == dict.fromkeys(range(3), "whole"), running.describe()
    assert running.got() == {rank: Counter(SIGTERM=rank != 3) for rank in range(4)} | {3: Counter()}, running.describe()
    assert not list(tmp_path.glob("logs/*.*/attempt_1/*/*")), running.describe()
    running.check_nothing_is_left()


def preempt(running: Running) -> None:
    """Have another job take the nodes."""
    cluster = running.cluster
    options = ("--partition=urgent", f"--nodes={cluster.config.nodes}", "--exclusive")
    urgent = cluster.sbatch("exit 0", *options, cwd=running.folder)
    running.job.wait(DEADLINE)
    Job(cluster, urgent.id).wait(DEADLINE)


def requeue(running: Running) -> None:
    """Have Slurm run the job again, and do away with it when it waits for that."""
    running.cluster.run(["scontrol", "requeue", running.job.id])
    running.job.wait_for_state("PENDING", timeout=DEADLINE)
    running.job.cancel()


def kill_srun(running: Running) -> None:
    """Kill the srun of the batch script, and whatever it is that srun has forked."""
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if words and os.path.basename(words[0]) == "srun" and str(running.folder) == _directory(process):  # noqa: PTH119
            process.kill()


def _directory(process: psutil.Process) -> str:
    try:
        return process.cwd()
    except psutil.Error:
        return ""


WAYS: dict[str, Callable[[Running], object]] = {
    "scancel": lambda running: running.job.cancel(),
    "scancel -s KILL": lambda running: running.job.signal("KILL"),
    "kill -9 of an agent": lambda running: running.agent(2).kill(),
    "kill -9 of the first agent": lambda running: running.agent(0).kill(),
    "kill -9 of srun": kill_srun,
    "preemption": preempt,
    "scontrol requeue": requeue,
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("repetition", REPETITIONS)
def test_nothing_is_left(cluster: Cluster, tmp_path: Path, way: str, repetition: int) -> None:
    """However the job ends, no process of it is left, and no node is drained."""
    options = "--no-requeue" if way == "preemption" else "--requeue"
    nodes = 2 if repetition or "agent" in way else 1
    running = submit(cluster, tmp_path, "--stubborn --family", options, launcher="--grace=2", nodes=nodes)
    await_up(running)
    time.sleep(0.05 * repetition)  # another moment in each repetition
    WAYS[way](running)
    running.job.wait(DEADLINE)
    running.check_nothing_is_left()


@pytest.mark.usefixtures("slurm_host")
def test_a_worker_stops_its_parent(some_cluster: Cluster, tmp_path: Path) -> None:
    """SIGTERM of one worker to its parent ends the run on all nodes, as with torchrun; workers hear of it once."""
    running = submit(some_cluster, tmp_path, "--on SIGTERM 1")
    await_up(running)
    factory = running.worker(2).parent()
    assert factory is not None
    factory.terminate()
    result = running.job.wait(DEADLINE)
    assert (result.state, result.exit_code) == ("FAILED", 143), running.describe()
    assert running.got() == {rank: Counter(SIGTERM=1) for rank in range(4)}, running.describe()
    assert running.saved() == dict.fromkeys(range(4), "whole"), running.describe()
    running.check_nothing_is_left()


@pytest.mark.parametrize("config", ALL_PROCESSES, ids=["linuxproc", "SignalChildrenProcesses"])
def test_where_slurm_signals_all_processes(config: ClusterConfig, tmp_path: Path) -> None:
    """Where Slurm signals the workers as well, they get each signal once all the same."""
    with Cluster(config) as cluster:
        running = submit(cluster, tmp_path / "notice", "--until go --family", "--time=10")
        await_up(running)
        running.job.signal("USR1")
        children = [running.folder / f"child.{rank}" for rank in range(4)]
        wait_for(lambda: all(child.read_text() for child in children), DEADLINE, running.describe)
        check_told_once(running)

        running = submit(cluster, tmp_path / "stop", "--on SIGTERM 2 --family", nodes=1)
        await_up(running)
        running.job.signal("TERM")
        running.job.wait(DEADLINE)
        assert running.got() == {rank: Counter(SIGTERM=1) for rank in range(2)}, running.describe()
        assert running.saved() == dict.fromkeys(range(2), "whole"), running.describe()
        running.check_nothing_is_left()

        running = submit(cluster, tmp_path / "killed", "--stubborn --family", launcher="--grace=2")
        await_up(running)
        running.agent(2).kill()
        running.job.wait(DEADLINE)
        running.check_nothing_is_left()


@pytest.mark.usefixtures("slurm_host")
def test_a_window_that_is_too_short(tmp_path: Path) -> None:
    """With a KillWait of 5 seconds, workers that need 8 are killed, and the log says why and what helps."""
    with Cluster(ClusterConfig(nodes=2, kill_wait=5)) as cluster:
        running = submit(cluster, tmp_path, "--on SIGTERM 8", nodes=1)
        await_up(running)
        running.job.cancel()
        running.job.wait(DEADLINE)
        running.check_nothing_is_left()
        assert running.saved() == dict.fromkeys(range(2), "begun"), running.describe()
        late = [line for line in running.ours if mentions(line, "KillWait 5 --signal=USR1@SECONDS")]
        assert late, running.describe()


def test_the_grace_time_of_a_preemption_is_the_workers(any_release: Release, tmp_path: Path) -> None:
    """A preemption with a GraceTime, and KillWait after it, leaves more than KillWait alone."""
    graced = "PartitionName=graced Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=60"
    with Cluster(ClusterConfig(nodes=2, kill_wait=5, release=any_release, extra=(graced,))) as cluster:
        running = submit(cluster, tmp_path, "--on SIGTERM 8", "--partition=graced", "--no-requeue", nodes=1)
        await_up(running)
        cluster.sbatch("exit 0", "--partition=urgent", "--nodes=2", "--exclusive").wait(DEADLINE)
        # Up to Slurm 23.11 a job that ends within its GraceTime has failed; from 24.05 on it is preempted.
        state = "FAILED" if any_release == "22.05" else "PREEMPTED"
        assert running.job.wait(DEADLINE).state == state, running.describe()
        assert running.got() == {rank: Counter(SIGTERM=1) for rank in range(2)}, running.describe()
        assert running.saved() == dict.fromkeys(range(2), "whole"), running.describe()
        [line] = [line for line in running.ours if "SIGTERM" in line]
        assert mentions(line, "preempted"), line
        left = re.search(r"\b(?:(\d) min ?)?(?:(\d+) s)? to\b", line)
        assert left, line
        assert 8 < 60 * int(left[1] or 0) + int(left[2] or 0) <= 120, line
        running.check_nothing_is_left()
