"""Where the ranks of a job are, asked from the head node; and the end of an attempt in which nobody does anything."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cluster import Cluster, Job
from tests.cluster.jobs import FINAL
from tests.slurm.jobs_support import DEADLINE, submit
from tests.support import wait_for

# All ranks train, until there is a file "enough". In the first attempt rank 3 then goes elsewhere, and the others wait
# for it. Rank 0 has a thread that marks progress as long as there is no file "quiet": until then the job does not hang.
TRAINING = """
import os, pathlib, sys, threading, time
import torch
import torch.distributed as dist
from torch.utils.data import DataLoader
from hpc_launch import runtime

def go_on():
    step = 0
    while not pathlib.Path("quiet").exists():
        sum(number * number for number in range(10000))
        runtime.mark_progress(step)
        step += 1
        time.sleep(0.001)

def load():
    pathlib.Path("asleep").touch()
    time.sleep(3600)

def train():
    done, enough = 0, torch.zeros(1)
    while not enough:
        for batch in DataLoader(torch.arange(32.0), batch_size=4, num_workers=2):
            dist.all_reduce(batch)
            done += 1
        pathlib.Path(f"begun-{dist.get_rank()}").touch()
        enough.fill_(pathlib.Path("enough").exists())
        dist.broadcast(enough, 0)
    return done

def main():
    dist.init_process_group("gloo")
    if dist.get_rank() == 0:
        threading.Thread(target=go_on, daemon=True, name="marks").start()
    done = train()
    if dist.get_rank() == 3 and runtime.attempt() == 0 and "hang" in sys.argv:
        load()
    dist.barrier()
    print("steps", done, flush=True)
    dist.destroy_process_group()

main()
"""


@pytest.fixture(params=["cluster", pytest.param("modern_cluster", marks=pytest.mark.soak)])
def either_cluster(request: pytest.FixtureRequest) -> Cluster:
    """Return a cluster, and in the soak one of the newest release too: srun has changed what steps share."""
    cluster: Cluster = request.getfixturevalue(request.param)
    return cluster


def stacks(cluster: Cluster, python: str, folder: Path, job: Job, *options: str) -> Any:
    """Ask for the stacks of a job, on the head node; returns the status and the answer."""
    command = [python, "-m", "hpc_launch", "stacks", job.id, "--json", *options]
    done = cluster.run(command, cwd=folder, check=False, timeout=DEADLINE)
    assert done.returncode in (0, 1), f"{done.stdout}{done.stderr}\n{job.describe()}"
    return done.returncode, json.loads(done.stdout)


def begun(job: Job, folder: Path, pattern: str, count: int) -> None:
    """Wait until so many files of this kind are there."""

    def there() -> bool:
        assert job.state() not in FINAL, job.describe()
        return len([*folder.glob(pattern)]) >= count

    wait_for(there, DEADLINE, job.describe, pause=0.3)


def steps(output: str) -> list[int]:
    """How many steps each rank says that it has done."""
    return [int(line.split()[-1]) for line in output.splitlines() if "] steps " in line]


def test_a_rank_that_is_elsewhere(either_cluster: Cluster, python: str, tmp_path: Path) -> None:
    """A training goes on however often it is looked at; the head node sees who hangs where, and so does the watcher.

    When nobody goes on the attempt ends with the stacks, and the next one succeeds.
    """
    (tmp_path / "train.py").write_text(TRAINING)
    words = "srun hpc-launch --start warm --nproc-per-node 2 --max-restarts 1 --hang-timeout 5 train.py hang"
    # The run has all GPUs of the job, which were asked for by task: a step that shares its nodes must not ask for any.
    job = submit(either_cluster, tmp_path, words, "--nodes=2", "--ntasks-per-node=1", "--gpus-per-task=2")
    begun(job, tmp_path, "begun-*", 4)
    for _ in range(2):
        status, seen = stacks(either_cluster, python, tmp_path, job, "--by", "signal")
        assert (status, seen["unseen"]) == (0, []), seen["unseen"]
    (tmp_path / "enough").touch()
    begun(job, tmp_path, "asleep", 1)
    for by in ("py-spy", "signal"):
        status, seen = stacks(either_cluster, python, tmp_path, job, "--by", by)
        ranks = {tuple(group["ranks"]): group for group in seen["groups"]}

        assert (status, set(ranks), seen["unseen"]) == (0, {(3,), (0, 1, 2)}, []), seen["summary"]
        assert [frame["function"] for frame in ranks[3,]["frames"]] == ["load", "main", "<module>"]
        assert seen["groups"][0]["ranks"] == [3]
        assert (len(ranks[3,]["hosts"]), len(ranks[0, 1, 2]["hosts"])) == (1, 2)
        assert {one["by"] for one in seen["processes"]} == {by}
        assert len([*Path(seen["path"]).glob("*/rank_*.txt")]) == 4
    (tmp_path / "quiet").touch()
    result = job.wait(2 * DEADLINE)
    told = [line for line in result.output.splitlines() if "hpc-launch: attempt 0: hang: " in line]

    assert (result.state, len(steps(result.output))) == ("COMPLETED", 4), job.describe()
    assert len(told) == 1, result.output
    assert "rank 3: load (train.py:" in told[0]
    assert "ranks 0-2: main (train.py:" in told[0]
    assert len([*Path(told[0].rpartition("stacks in ")[2]).glob("*/rank_*.txt")]) == 4


@pytest.mark.soak
@pytest.mark.parametrize("by", ["signal", "auto"])
def test_a_job_that_is_looked_at_often_goes_on(cluster: Cluster, python: str, tmp_path: Path, by: str) -> None:
    """However often the stacks of a training are taken, all of its ranks do all of their steps."""
    (tmp_path / "train.py").write_text(TRAINING)
    words = "srun hpc-launch --start warm --nproc-per-node 2 train.py"
    job = submit(cluster, tmp_path, words, "--nodes=2", "--ntasks-per-node=1")
    begun(job, tmp_path, "begun-*", 4)
    for _ in range(20):
        status, seen = stacks(cluster, python, tmp_path, job, "--by", by)
        assert (status, seen["unseen"]) == (0, []), seen["unseen"]
    (tmp_path / "enough").touch()
    result = job.wait(DEADLINE)

    assert (result.state, len(steps(result.output))) == ("COMPLETED", 4), job.describe()
    assert len(set(steps(result.output))) == 1, result.output
