"""Nodes are killed and cut off while a job trains: it goes on with the others."""

from __future__ import annotations

import contextlib
import os
import random
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from hpc_launch.records import history
from tests.cluster import Cluster
from tests.slurm.steps_support import DEADLINE, PREAMBLE, Ended
from tests.support import wait_for

# Sums up over all ranks again and again, until a file says that it is enough. Deaf to SIGTERM, as in a collective.
TRAINS = (
    PREAMBLE
    + """
import torch
import torch.distributed as dist

signal.signal(signal.SIGTERM, lambda *_: None)
dist.init_process_group("gloo")
told = False
while True:
    enough = torch.tensor([float(rank == 0 and pathlib.Path("enough").exists()), 1.0])
    dist.all_reduce(enough)
    if not told:
        say(total=enough[1].item(), size=os.environ["GROUP_WORLD_SIZE"])
        told = True
    if enough[0]:
        break
    time.sleep(0.05)
dist.destroy_process_group()
"""
)


@dataclass
class Run:
    """A step that runs.

    Attributes:
        cluster: Where.
        folder: Where it was started.
        process: srun, which runs on none of its nodes.
    """

    cluster: Cluster
    folder: Path
    process: subprocess.Popen[str]

    @property
    def so_far(self) -> Ended:
        """What can be seen of it."""
        return Ended(0, (self.folder / "console").read_text(), self.folder / "logs")

    def describe(self) -> str:
        """Tell everything, for the message of a failure."""
        return f"{self.so_far.describe()}\n{self.cluster.diagnose()}"

    def trains_on(self, attempt: int, *nodes: str) -> dict[int, dict[str, Any]]:
        """Wait until an attempt has the ranks of these nodes, in this order, and all have heard of each other."""

        def told() -> dict[int, dict[str, Any]] | None:
            with contextlib.suppress(ValueError):
                said = self.so_far.said(attempt)
                return said if len(said) == len(nodes) else None
            return None

        said = wait_for(told, DEADLINE, self.describe)
        assert said is not None
        assert [said[rank]["host"] for rank in sorted(said)] == [*nodes], self.describe()
        size = len(nodes)
        for facts in said.values():
            assert (facts["total"], facts["WORLD_SIZE"], facts["size"]) == (size, str(size), str(size)), self.describe()
        return said

    def stops(self, *nodes: str, status: str = "69") -> None:
        """Wait until the launchers of nodes have stopped: with the status of those that cannot go on, for the most."""
        wait_for(lambda: all((self.folder / f"status-{node}").exists() for node in nodes), DEADLINE, self.describe)
        assert {(self.folder / f"status-{node}").read_text().strip() for node in nodes} == {status}, self.describe()

    def ends(self) -> int:
        """Let it end; returns srun's status."""
        (self.folder / "enough").touch()
        try:
            return self.process.wait(DEADLINE)
        except subprocess.TimeoutExpired:
            raise AssertionError(self.describe()) from None


@contextlib.contextmanager
def run(
    cluster: Cluster, folder: Path, *options: str, nodes: int = 4, script: Sequence[str] = (), worker: str = TRAINS
) -> Iterator[Run]:
    """Start a job that may lose nodes."""
    (folder / "worker.py").write_text(worker)
    script = script or ("worker.py",)
    srun = ["srun", "--no-kill", f"--nodes={nodes}", "--ntasks-per-node=1", "--mem=500"]
    launch = shlex.join(["hpc-launch", "--nproc-per-node=1", *options, *script])
    # A launcher's own status, also of one that srun cannot hear of.
    shell = f"trap : TERM; {launch}; status=$?; echo $status >status-$SLURMD_NODENAME; exit $status"
    command = [*srun, "sh", "-c", shell]
    with (
        (folder / "console").open("w") as stream,
        cluster.popen(command, cwd=folder, stdout=stream, stderr=stream) as process,
    ):
        try:
            yield Run(cluster, folder, process)
        finally:
            process.kill()


def test_nodes_are_lost_one_after_another(cluster: Cluster, tmp_path: Path) -> None:
    """The first node is killed, which leads; the next leader is cut off, and stops itself. The others train."""
    with run(cluster, tmp_path, "--nnodes=1:4") as job:
        job.trains_on(0, *cluster.nodes)
        cluster.kill("gpu001")
        job.trains_on(1, "gpu002", "gpu003", "gpu004")
        cluster.cut("gpu002")
        job.trains_on(2, "gpu003", "gpu004")
        job.stops("gpu002")
        status = job.ends()

    assert status == 0, job.describe()
    assert "gpu002 takes over from gpu001" in job.so_far.console, job.describe()
    assert "gpu003 takes over from gpu002" in job.so_far.console, job.describe()


def test_a_spare_takes_the_place_of_a_lost_node(cluster: Cluster, tmp_path: Path) -> None:
    """The world keeps its size; then two nodes are lost at once, and it shrinks."""
    with run(cluster, tmp_path, "--nnodes=2:4", "--spares=1") as job:
        job.trains_on(0, "gpu001", "gpu002", "gpu003")
        cluster.kill("gpu002")
        job.trains_on(1, "gpu001", "gpu003", "gpu004")
        cluster.cut("gpu004")
        cluster.kill("gpu004")
        job.trains_on(2, "gpu001", "gpu003")
        status = job.ends()

    assert status == 0, job.describe()


# The same, with a device on gpu002 that breaks when it is told to, and ranks that write down that they were told.
BREAKS = TRAINS.replace(
    "told = False\n",
    """told = False
signal.signal(signal.SIGUSR1, lambda *_: say_so("told"))
def say_so(word):
    with open(f"{word}-{attempt}-{rank}", "a") as stream:
        stream.write("x")
say_so("here")
""",
).replace(
    "    time.sleep(0.05)\n",
    """    if os.environ["SLURMD_NODENAME"] == "gpu002" and attempt == 0 and pathlib.Path("break").exists():
        raise RuntimeError("CUDA error: uncorrectable ECC error encountered")
    time.sleep(0.05)
""",
)


def test_a_spare_that_is_not_needed_ends_well(some_cluster: Cluster, tmp_path: Path) -> None:
    """So does the job, and nothing is said of it but that it is a spare."""
    with run(some_cluster, tmp_path, "--nnodes=1:2", "--spares=1", nodes=2) as job:
        job.trains_on(0, "gpu001")
        status = job.ends()

    ours = [line for line in job.so_far.console.splitlines() if "gpu002" in line or "rror" in line]
    assert (status, ours) == (0, ["hpc-launch: gpu002 is a spare"]), job.describe()


def test_a_broken_node_and_one_that_slurm_knows_to_be_bad(cluster: Cluster, tmp_path: Path) -> None:
    """A notice that only the spare gets is everybody's; it takes the place of a broken node; Slurm is asked."""

    def told(attempt: int) -> list[str]:
        return [path.read_text() for path in sorted(tmp_path.glob(f"told-{attempt}-*"))]

    options = ("--nnodes=2:4", "--spares=1", "--max-restarts=1")
    with run(cluster, tmp_path, *options, worker=BREAKS) as job:
        job.trains_on(0, "gpu001", "gpu002", "gpu003")
        wait_for(lambda: len(list(tmp_path.glob("here-0-*"))) == 3, DEADLINE, job.describe)
        (path,) = (tmp_path / "logs").glob("*.*")
        (spare,) = [pid for host, pid in history.read(path).runs[0].agents if host == "gpu004"]
        os.kill(spare, signal.SIGUSR1)
        wait_for(lambda: told(0) == ["x"] * 3, DEADLINE, job.describe)
        (tmp_path / "break").touch()
        job.trains_on(1, "gpu001", "gpu003", "gpu004")
        wait_for(lambda: told(1) == ["x"] * 3, DEADLINE, job.describe)
        cluster.run(["scontrol", "update", "nodename=gpu003", "state=drain", "reason=it smokes"])
        cluster.kill("gpu003")
        job.trains_on(2, "gpu001", "gpu002", "gpu004")
        wait_for(lambda: history.read(path).node_states, DEADLINE, job.describe)
        now = cluster.run(["hpc-launch", "status", str(path)], cwd=tmp_path).stdout
        status = job.ends()
    report = cluster.run(["hpc-launch", "report", "--markdown", str(path)], cwd=tmp_path).stdout

    assert status == 0, job.describe()
    assert (told(0), told(1)) == (["x"] * 3, ["x"] * 3), job.describe()
    drained = "gpu002 is broken (uncorrectable ECC error encountered)"
    assert f"hpc-launch: {drained}: it goes behind the spares" in job.so_far.console, job.describe()
    assert re.search(r"hpc-launch: gpu003: Slurm says MIXED\+DRAIN since .*: it smokes", job.so_far.console), (
        job.describe()
    )
    assert "nodes     3: gpu[001-002,004]\n" in now, now
    assert re.search("^lost +gpu003, .*: Slurm says MIXED.*: it smokes$", now, re.MULTILINE), now
    assert f"drained   {drained}\n" in now, now
    assert "--exclude=gpu[002-003]" in report, report
    assert "All 3 ranks ended well in attempt 2; 1 node lost on the way." in report, report


@pytest.mark.parametrize(
    ("apart", "others"),
    [
        pytest.param(("gpu003", "gpu004"), ("gpu001", "gpu002"), id="2 and 2"),
        pytest.param(("gpu001",), ("gpu002", "gpu003", "gpu004"), id="1 and 3", marks=pytest.mark.soak),
        pytest.param(("gpu002", "gpu003", "gpu004"), ("gpu001",), id="3 and 1", marks=pytest.mark.soak),
    ],
)
def test_of_a_parted_network_one_side_trains(
    cluster: Cluster, tmp_path: Path, apart: Sequence[str], others: Sequence[str]
) -> None:
    """A majority, or the half with the first node, goes on; the others stop, and what comes back disturbs nobody."""
    trains, stops = (apart, others) if len(apart) > len(others) else (others, apart)
    with run(cluster, tmp_path, "--nnodes=1:4") as job:
        job.trains_on(0, *cluster.nodes)
        cluster.part(*apart)
        try:
            job.trains_on(1, *trains)
            job.stops(*stops)
        finally:
            cluster.unite()
        job.ends()

    if trains == others:  # otherwise srun was on the side that stopped
        job.stops(*trains, status="0")
    assert job.so_far.attempts() == [0, 1], job.describe()


@pytest.mark.soak
@pytest.mark.parametrize("repetition", range(3))
def test_a_short_silence_is_no_loss(cluster: Cluster, tmp_path: Path, repetition: int) -> None:
    """A node that is cut off for five seconds goes on, or all start again once."""
    with run(cluster, tmp_path, "--nnodes=1:4") as job:
        job.trains_on(0, *cluster.nodes)
        node = cluster.nodes[repetition]
        cluster.cut(node)
        time.sleep(5)  # that is the story
        cluster.heal(node)
        job.ends()

    assert job.so_far.attempts() in ([0], [0, 1]), job.describe()


@pytest.mark.soak
@pytest.mark.parametrize("repetition", range(5))
@pytest.mark.parametrize("position", range(4))
def test_training_goes_on_soon(cluster: Cluster, tmp_path: Path, position: int, repetition: int) -> None:
    """Whichever node is killed at whatever moment, the others train again; says after how many seconds."""
    node, chance = cluster.nodes[position], random.Random(position * 100 + repetition)
    with run(cluster, tmp_path, "--nnodes=2:4") as job:
        job.trains_on(0, *cluster.nodes)
        time.sleep(chance.random())  # at any moment
        begin = time.monotonic()
        cluster.kill(node)
        job.trains_on(1, *(one for one in cluster.nodes if one != node))
        sys.stdout.write(f"lost {node}: {time.monotonic() - begin:.1f} s\n")


EXAMPLE = Path(__file__).parents[2] / "examples/digits/train.py"


@pytest.mark.soak
@pytest.mark.parametrize("position", range(4))
def test_nothing_is_lost_of_what_is_learnt(cluster: Cluster, tmp_path: Path, position: int) -> None:
    """The digits are learnt as well as without the loss of any node; the world shrinks, and all steps are done."""
    node, chance = cluster.nodes[position], random.Random(position)
    with run(cluster, tmp_path, "--nnodes=2:4", script=[str(EXAMPLE), "--step-seconds=0.03"]) as job:
        wait_for(lambda: "epoch 5 " in job.so_far.console, DEADLINE, job.describe)
        time.sleep(chance.random() * 2)  # at any moment
        cluster.kill(node)
        status = job.process.wait(DEADLINE)

    found = re.search(r"digits: accuracy (\S+) after 20 epochs on 3 ranks", job.so_far.console)
    assert status == 0, job.describe()
    assert found is not None, job.describe()
    assert float(found[1]) > 0.96, job.describe()
