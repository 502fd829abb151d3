"""Restarts work every time, and a final failure ends everything at once, on two nodes of two ranks."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.cluster import Cluster
from tests.slurm.steps_support import DEADLINE, PREAMBLE, Ended, step, tree
from tests.support import LEAVE, wait_for

# How often each story is told; all but the first are the soak.
REPETITIONS = [pytest.param(number, marks=[pytest.mark.soak] if number else []) for number in range(20)]

# The failures that one run has one after another, each by itself and at other moments: the soak.
ALONE = [pytest.param(number, marks=pytest.mark.soak) for number in range(20)]

# Ranks that fail as they are told, each attempt in its own way. Whoever does not fail cannot pass the all-reduce in
# which another is missing; a rank that fails leaves after a number of them that differs from run to run.
WORKER = (
    PREAMBLE
    + """
import ctypes

failures = json.loads(sys.argv[1])
failure = failures[attempt] if attempt < len(failures) else None
fails = failure is not None and rank in failure["ranks"]
endings = {
    "raise": lambda: 1 / 0,
    "exit 3": lambda: os._exit(3),
    "exit 42": lambda: sys.exit(42),
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "segfault": lambda: ctypes.string_at(0),
}
if failure is not None:
    fail = endings[failure["how"]]
    chance = random.Random(f"{failure['seed']} {attempt}")
    steps, pause = chance.randrange(20), chance.uniform(0, 0.02)
if fails and failure["early"]:
    time.sleep(pause)
    fail()

import torch
import torch.distributed as dist

dist.init_process_group("gloo")
for number in range(20):
    if failure is not None and number == steps:
        if failure["asleep"] and not fails:
            time.sleep(600)
        if failure["together"]:
            dist.barrier()
        if fails:
            time.sleep(0 if failure["together"] else pause)
            fail()
    total = torch.ones(1000) * (rank + 1)
    dist.all_reduce(total)
say(total=total.sum().item())
dist.destroy_process_group()
"""
    + LEAVE
)


def failing(seed: int, how: str, ranks: Sequence[int], **more: bool) -> dict[str, Any]:
    """Describe how one attempt fails.

    Args:
        seed: Decides the moment.
        how: How ranks end.
        ranks: Which.
        more: `early`, before the process group is made; `together`, right after a barrier; `asleep`, while the others
            sleep instead of waiting in an all-reduce.
    """
    facts: dict[str, Any] = {"seed": seed, "how": how, "ranks": ranks}
    return facts | {"early": False, "together": False, "asleep": False} | more


def check_recovery(cluster: Cluster, folder: Path, *failures: dict[str, Any]) -> None:
    """Run two nodes of two ranks, one attempt for each failure and a good one, with as many restarts as that takes.

    See that all ranks were there in the last attempt, knew its number, and stood where they had always stood.
    """
    restarts = len(failures)
    script = folder / "worker.py"
    script.write_text(WORKER)
    options = ["--nproc-per-node=2", f"--max-restarts={restarts}"]
    ended = step(cluster, ["hpc-launch", *options, script.name, json.dumps(failures)], cwd=folder)
    assert ended.status == 0, ended.describe()
    assert ended.attempts() == list(range(restarts + 1)), ended.describe()
    last = ended.said(restarts)
    assert sorted(last) == [0, 1, 2, 3], ended.describe()
    assert {facts["attempt"] for facts in last.values()} == {restarts}, ended.describe()
    assert {facts["total"] for facts in last.values()} == {10_000.0}, ended.describe()
    assert len({(facts["MASTER_ADDR"], facts["MASTER_PORT"]) for facts in last.values()}) == 1, ended.describe()
    for attempt in range(restarts + 1):
        places = [path.relative_to(path.parents[1]) for path in ended.logs.glob(f"*.*/attempt_{attempt}/*/*.out")]
        expected = [f"gpu001/rank_{rank}.out" for rank in (0, 1)] + [f"gpu002/rank_{rank}.out" for rank in (2, 3)]
        assert sorted(map(str, places)) == expected, ended.describe()


def test_every_kind_of_failure_costs_one_restart(cluster: Cluster, tmp_path: Path) -> None:
    """Eight failures in a row, no two alike: however many ranks fail, wherever and however, it is one restart each."""
    check_recovery(
        cluster,
        tmp_path,
        failing(0, "raise", [2]),
        failing(1, "raise", [0]),
        failing(2, "raise", [0, 3], together=True),
        failing(3, "kill", [1]),
        failing(4, "segfault", [3]),
        failing(5, "exit 3", [0]),
        failing(6, "raise", [2], early=True),
        failing(7, "kill", [0], asleep=True),
    )


@pytest.mark.parametrize("repetition", ALONE)
def test_a_rank_that_raises_once_is_restarted(cluster: Cluster, tmp_path: Path, repetition: int) -> None:
    """A rank of the second node raises: all ranks start again as attempt 1, and the job ends well."""
    check_recovery(cluster, tmp_path, failing(repetition, "raise", [2 + repetition % 2]))


@pytest.mark.parametrize("repetition", ALONE)
def test_a_rank_of_the_first_node_that_raises_is_restarted(cluster: Cluster, tmp_path: Path, repetition: int) -> None:
    """The node that hosts the store is no exception."""
    check_recovery(cluster, tmp_path, failing(repetition, "raise", [repetition % 2]))


@pytest.mark.parametrize("repetition", ALONE)
def test_ranks_that_fail_at_the_same_instant_cost_one_restart(
    cluster: Cluster, tmp_path: Path, repetition: int
) -> None:
    """Ranks on both nodes fail right after a barrier: that is one failure of the job, not two."""
    ranks = [repetition % 2, 3 - repetition // 2 % 2]
    check_recovery(cluster, tmp_path, failing(repetition, "raise", ranks, together=True))


@pytest.mark.parametrize("how", ["kill", "segfault", "exit 3"])
@pytest.mark.parametrize("repetition", ALONE)
def test_a_rank_that_dies_is_restarted(cluster: Cluster, tmp_path: Path, how: str, repetition: int) -> None:
    """However a rank ends, by SIGKILL, SIGSEGV or os._exit, it is a failure like another."""
    check_recovery(cluster, tmp_path, failing(repetition, how, [repetition % 4]))


@pytest.mark.parametrize("repetition", ALONE)
def test_a_rank_that_fails_before_the_process_group_is_restarted(
    cluster: Cluster, tmp_path: Path, repetition: int
) -> None:
    """The others wait for it in init_process_group; that is no obstacle."""
    check_recovery(cluster, tmp_path, failing(repetition, "raise", [repetition % 4], early=True))


@pytest.mark.parametrize("repetition", ALONE)
def test_three_failures_in_a_row_are_three_restarts(cluster: Cluster, tmp_path: Path, repetition: int) -> None:
    """With a budget of three, the fourth attempt can be the good one."""
    ranks = [random.Random(repetition).randrange(4)]
    check_recovery(cluster, tmp_path, *[failing(repetition, "raise", ranks)] * 3)


def check_over(cluster: Cluster, logs: Path) -> None:
    """See that no agent and no worker is left."""

    def left() -> dict[str, list[int]]:
        return {node: pids for node in cluster.nodes if (pids := cluster.processes(node))}

    wait_for(lambda: not left(), DEADLINE, lambda: f"{left()} are left\n{cluster.diagnose()}\n{tree(logs)}")


# The statuses 3 and 137 are in test_exit_status.py as well.
@pytest.mark.parametrize(
    "how",
    [pytest.param("exit 42", marks=pytest.mark.soak), pytest.param("kill", marks=pytest.mark.soak), "segfault"],
)
@pytest.mark.parametrize("repetition", REPETITIONS)
def test_one_failure_too_many_ends_the_job_with_its_status(
    cluster: Cluster, tmp_path: Path, how: str, repetition: int
) -> None:
    """The last failure ends every agent with the worker's status, the others being in a collective or in a sleep."""
    status = {"exit 42": 42, "kill": 137, "segfault": 139}[how]
    rank = repetition % 4
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    told = json.dumps([failing(repetition, how, [rank], asleep=repetition % 2 == 1)] * 2)
    batch = f"srun --ntasks-per-node=1 hpc-launch --nproc-per-node=2 --max-restarts=1 worker.py '{told}'"
    job = cluster.sbatch(batch, "--nodes=2", f"--output={tmp_path}/job.out", cwd=tmp_path)
    result = job.wait(DEADLINE)
    ended = Ended(result.exit_code, result.output, tmp_path / "logs")
    host = "gpu001" if rank < 2 else "gpu002"

    assert result.exit_code == status, ended.describe()
    assert (result.state, result.signal, result.derived) == ("FAILED", 0, status), ended.describe()
    assert ended.attempts() == [0, 1], ended.describe()
    assert f"attempt 1: rank {rank} on {host}" in result.output, ended.describe()
    assert ended.said(1) == {}, ended.describe()
    check_over(cluster, tmp_path / "logs")
