"""Nodes are killed and cut off while a job trains: it goes on with the others."""

from __future__ import annotations

import itertools
import os
import random
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from hpc_launch.records import events, history
from tests.cluster import Cluster
from tests.slurm.losses_support import TRAINS, Run, run
from tests.slurm.steps_support import DEADLINE
from tests.support import mentions, wait_for


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


def test_a_broken_node_and_one_that_slurm_knows_to_be_bad(some_cluster: Cluster, tmp_path: Path) -> None:
    """A notice that only the spare gets is everybody's; it takes the place of a broken node; Slurm is asked."""

    def told(attempt: int) -> list[str]:
        return [path.read_text() for path in sorted(tmp_path.glob(f"told-{attempt}-*"))]

    options = ("--nnodes=2:4", "--spares=1", "--max-restarts=1")
    with run(some_cluster, tmp_path, *options, worker=BREAKS) as job:
        job.trains_on(0, "gpu001", "gpu002", "gpu003")
        wait_for(lambda: len(list(tmp_path.glob("here-0-*"))) == 3, DEADLINE, job.describe)
        (path,) = (tmp_path / "logs").glob("*.*")
        (spare,) = [pid for host, pid in history.read_history(path).runs[0].agents if host == "gpu004"]
        os.kill(spare, signal.SIGUSR1)
        wait_for(lambda: told(0) == ["x"] * 3, DEADLINE, job.describe)
        (tmp_path / "break").touch()
        job.trains_on(1, "gpu001", "gpu003", "gpu004")
        wait_for(lambda: told(1) == ["x"] * 3, DEADLINE, job.describe)
        some_cluster.run(["scontrol", "update", "nodename=gpu003", "state=drain", "reason=it smokes"])
        some_cluster.kill("gpu003")
        job.trains_on(2, "gpu001", "gpu002", "gpu004")
        wait_for(lambda: history.read_history(path).node_states, DEADLINE, job.describe)
        now = some_cluster.run(["hpc-launch", "status", str(path)], cwd=tmp_path).stdout
        job.ends()
        job.stops("gpu001", "gpu002", "gpu004", status="0")
    report = some_cluster.run(["hpc-launch", "report", "--markdown", str(path)], cwd=tmp_path).stdout

    assert (told(0), told(1)) == (["x"] * 3, ["x"] * 3), job.describe()
    drained = "gpu002 is broken (uncorrectable ECC error encountered)"
    console = job.so_far.console.splitlines()
    assert [line for line in console if mentions(line, f"hpc-launch {drained} spares")], job.describe()
    assert [line for line in console if mentions(line, "hpc-launch gpu003 MIXED+DRAIN it smokes")], job.describe()
    assert "nodes     3: gpu[001-002,004]\n" in now, now
    assert re.search("^lost +gpu003, .*: Slurm says MIXED.*: it smokes$", now, re.MULTILINE), now
    assert f"drained   {drained}\n" in now, now
    assert "--exclude=gpu[002-003]" in report, report
    assert [line for line in report.splitlines() if mentions(line, "3 2 1 lost")], report


def others(cluster: Cluster, *lost: str) -> list[str]:
    """Return the nodes that are left."""
    return [node for node in cluster.nodes if node not in lost]


PAIRS = [
    pytest.param(pair, marks=[] if pair == (0, 2) else pytest.mark.soak) for pair in itertools.combinations(range(4), 2)
]


@pytest.mark.parametrize("how", [Cluster.kill, pytest.param(Cluster.cut, marks=pytest.mark.soak)])
@pytest.mark.parametrize("pair", PAIRS)
def test_two_nodes_are_lost_at_once(
    cluster: Cluster, tmp_path: Path, pair: tuple[int, int], how: Callable[[Cluster, str], None]
) -> None:
    """Whichever they are: the other two train, and those that are cut off stop themselves."""
    lost = [cluster.nodes[position] for position in pair]
    left = others(cluster, *lost)
    with run(cluster, tmp_path, "--nnodes=1:4") as job:
        job.trains_on(0, *cluster.nodes)
        for node in lost:
            how(cluster, node)
        job.goes_on(*left)
        if how is Cluster.cut:
            job.stops(*lost)
        job.ends_well(*left)


# When a second node is lost: it has written down that something happened, or the console says so.
MOMENTS: dict[str, Callable[[Run, str], None]] = {
    "when it has heard of the end": lambda job, node: job.notes(node, events.ROUND_ENDED, 0),
    "when its workers are dead": lambda job, node: job.notes(node, events.WORKER_ENDED, 0),
    "when somebody has taken over": lambda job, _: job.sees("takes over"),
    "when the next attempt is agreed": lambda job, node: job.notes(node, events.ATTEMPT, 1),
    "when its workers have started": lambda job, node: job.notes(node, events.WORKER_STARTED, 1),
}


def losses() -> Iterator[Any]:
    """Give the positions of two nodes and the moment at which the second is lost."""
    essential = [(3, 1, "when its workers are dead"), (0, 1, "when somebody has taken over")]
    essential += [(0, 1, "when its workers have started")]
    for first, second in itertools.permutations(range(4), 2):
        for moment in MOMENTS:
            if first == 0 or "taken over" not in moment:
                marks = [] if (first, second, moment) in essential else [pytest.mark.soak]
                yield pytest.param(first, second, moment, marks=marks)


@pytest.mark.parametrize(("first", "second", "moment"), [*losses()])
def test_a_node_is_lost_while_all_start_again(
    cluster: Cluster, tmp_path: Path, first: int, second: int, moment: str
) -> None:
    """Before the next attempt is agreed or its ranks have met, the new leader or another: the other two train."""
    lost = cluster.nodes[first], cluster.nodes[second]
    left = others(cluster, *lost)
    with run(cluster, tmp_path, "--nnodes=1:4") as job:
        job.trains_on(0, *cluster.nodes)
        cluster.kill(lost[0])
        MOMENTS[moment](job, lost[1])
        cluster.kill(lost[1])
        job.goes_on(*left)
        job.ends_well(*left)


LATE = "gpu004"
BEGIN_SOON = ("--nnodes=2:4", "--join-timeout=5", "--max-restarts=1")


def test_a_node_comes_when_the_first_leader_is_lost(cluster: Cluster, tmp_path: Path) -> None:
    """The run begins without it after --join-timeout. It finds whoever leads, and takes part when one more is lost."""
    with run(cluster, tmp_path, *BEGIN_SOON, late=LATE) as job:
        job.trains_on(0, "gpu001", "gpu002", "gpu003")
        cluster.kill("gpu001")
        job.trains_on(1, "gpu002", "gpu003")
        job.comes(LATE)
        job.hears_again(LATE)
        cluster.kill("gpu003")
        job.trains_on(2, "gpu002", LATE)
        job.ends_well("gpu002", LATE)


@pytest.mark.soak
@pytest.mark.parametrize("repetition", range(5))
@pytest.mark.parametrize("lost", ["gpu001", "gpu002"])
def test_a_node_comes_while_another_is_lost(cluster: Cluster, tmp_path: Path, lost: str, repetition: int) -> None:
    """At about the same time, the leader or not: it is there in the next attempt, or, if that has begun, after it."""
    chance, left = random.Random(repetition), others(cluster, lost)
    with run(cluster, tmp_path, *BEGIN_SOON, late=LATE) as job:
        job.trains_on(0, "gpu001", "gpu002", "gpu003")
        job.comes(LATE)
        time.sleep(chance.random() * 3)  # at any moment: it imports torch for about as long
        cluster.kill(lost)
        if len(job.trains(1)) < len(left):
            job.sees(f"{LATE} there", after="takes over" if lost == "gpu001" else "starting again")
            job.fails(1, 0)
        job.goes_on(*left)
        job.ends_well(*left)


@pytest.mark.soak
@pytest.mark.parametrize("lost", ["gpu002", "gpu003"])
def test_a_node_is_lost_while_all_wait_for_one_that_is_late(cluster: Cluster, tmp_path: Path, lost: str) -> None:
    """The run begins without both; the late one is there in the next attempt."""
    begin, left = others(cluster, lost, LATE), others(cluster, lost)
    with run(cluster, tmp_path, "--nnodes=2:4", "--join-timeout=20", "--max-restarts=1", late=LATE) as job:
        job.sees(f"waiting for {LATE} (3/4 joined")
        cluster.kill(lost)
        job.trains_on(0, *begin)
        job.comes(LATE)
        job.hears_again(LATE)
        job.fails(0, 1)
        job.trains_on(1, *left)
        job.ends_well(*left)


@pytest.mark.soak
def test_all_begin_as_soon_as_the_late_one_is_there(cluster: Cluster, tmp_path: Path) -> None:
    """They have waited for it, and said so."""
    with run(cluster, tmp_path, "--nnodes=2:4", late=LATE) as job:
        job.sees(f"waiting for {LATE} (3/4 joined")
        job.comes(LATE)
        job.trains_on(0, *cluster.nodes)
        assert job.ends() == 0, job.describe()


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


WORK, SPARE = ("gpu001", "gpu002"), ("gpu003", "gpu004")


def test_spares_that_are_cut_off_stop(cluster: Cluster, tmp_path: Path) -> None:
    """They are half of the nodes, and could take a token; those that have workers train on all the time."""
    with run(cluster, tmp_path, "--nnodes=1:4", "--spares=2") as job:
        job.trains_on(0, *WORK)
        cluster.part(*SPARE)
        try:
            job.stops(*SPARE)
        finally:
            cluster.unite()
        job.ends_well(*WORK)

    assert job.so_far.attempts() == [0], job.describe()


@pytest.mark.soak
def test_spares_do_not_go_on_alone(cluster: Cluster, tmp_path: Path) -> None:
    """All nodes with workers are lost: the spares cannot know that these do not train, and end."""
    with run(cluster, tmp_path, "--nnodes=1:4", "--spares=2") as job:
        job.trains_on(0, *WORK)
        # Otherwise a spare could have the place of the first one before the second is killed.
        cluster.part(*SPARE)
        try:
            for node in WORK:
                cluster.kill(node)
        finally:
            cluster.unite()
        job.stops(*SPARE)
        job.sees("gpu[003-004] gpu[001-002] workers")

    assert job.so_far.attempts() == [0], job.describe()


@pytest.mark.parametrize(
    ("node", "also"),
    [
        pytest.param(node, also, marks=[] if (node, also) == ("gpu001", "") else pytest.mark.soak)
        for node in ("gpu001", "gpu002", "gpu003", "gpu004")
        for also in ("", "gpu002", "gpu004")
        if node != also
    ],
)
def test_the_world_grows_again(cluster: Cluster, tmp_path: Path, node: str, also: str) -> None:
    """A node that was cut off, the leader or another, is there again in the next attempt: a failure's, or a loss's."""
    with run(cluster, tmp_path, "--nnodes=1:4", "--max-restarts=1") as job:
        job.trains_on(0, *cluster.nodes)
        cluster.cut(node)
        job.notes(others(cluster, node)[0], events.ATTEMPT, 1)  # it looks for the others not much longer
        cluster.heal(node)
        job.trains_on(1, *others(cluster, node))
        job.hears_again(node)
        if also:
            cluster.kill(also)
        else:
            job.fails(1, 0)
        job.trains_on(2, *others(cluster, also))
        job.ends_well(*others(cluster, also))


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


@pytest.mark.soak
@pytest.mark.parametrize("position", range(4))
def test_nothing_is_lost_when_the_world_grows_again(cluster: Cluster, tmp_path: Path, position: int) -> None:
    """Four ranks, three, and four again, from the last checkpoint: as many steps as ever, and as good a network."""
    node = cluster.nodes[position]
    options = ("--nnodes=2:4", "--max-restarts=1")
    with run(cluster, tmp_path, *options, script=[str(EXAMPLE), "--step-seconds=0.05"]) as job:
        job.sees("epoch 5 ")
        cluster.cut(node)
        job.notes(others(cluster, node)[0], events.ATTEMPT, 1)
        cluster.heal(node)
        job.hears_again(node)
        job.sees("epoch 10 ")
        [rank] = [one for one in job.events(others(cluster, node)[1]) if one["event"] == events.WORKER_STARTED][1:]
        os.kill(rank["pid"], signal.SIGKILL)
        status = job.ended()
    console = job.so_far.console
    begun = [
        (int(step), int(epoch)) for step, epoch in re.findall(r"going on after step (\d+) \(epoch (\d+)\)", console)
    ]
    found = re.search(r"digits: accuracy (\S+) after 20 epochs on 4 ranks", console)

    assert status == 0, job.describe()
    assert [step for step, _ in begun] == [22 * epoch for _, epoch in begun], job.describe()
    assert "epoch 20 step 440 " in console, job.describe()
    assert found is not None, job.describe()
    assert float(found[1]) > 0.96, job.describe()
