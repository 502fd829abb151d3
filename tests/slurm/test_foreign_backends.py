"""A line that was written for torchrun runs in a Slurm step: with torch's own rendezvous, if that is asked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cluster import Cluster
from tests.slurm.steps_support import PREAMBLE, Ended, step
from tests.support import mentions

# A rank of the second node fails in the first attempt, in the middle of a sum over all.
WORKER = (
    PREAMBLE
    + """
import torch
import torch.distributed as dist

dist.init_process_group("gloo")
total = torch.ones(1)
dist.all_reduce(total)
print(f"attempt {os.environ['HPC_LAUNCH_ATTEMPT']} begins", flush=True)
if rank == 2 and os.environ["HPC_LAUNCH_ATTEMPT"] == "0":
    sys.exit(3)
dist.all_reduce(total)
say(total=total.item())
dist.destroy_process_group()
"""
)


def pasted(cluster: Cluster, folder: Path, *options: str) -> Ended:
    """Run what batch scripts for torchrun have, on two nodes with two ranks each."""
    (folder / "worker.py").write_text(WORKER)
    rendezvous = ["--nnodes=2", "--rdzv-backend=c10d", "--rdzv-endpoint=gpu001:29400", "--rdzv-id=7"]
    line = ["hpc-launch", *rendezvous, "--nproc-per-node=2", *options, "worker.py"]
    return step(cluster, line, "--nodelist=gpu[001-002]", cwd=folder)


def lines(ended: Ended, words: str) -> list[str]:
    """Those of the console that have these words."""
    return [line for line in ended.console.splitlines() if mentions(line, words)]


@pytest.mark.parametrize("_number", [pytest.param(0), *[pytest.param(n, marks=pytest.mark.soak) for n in range(1, 8)]])
def test_a_pasted_line_restarts(cluster: Cluster, tmp_path: Path, _number: int) -> None:
    """All nodes begin again together, once; their files lie together, and one line says what would do better.

    --node-rank is 0 on both nodes, as $SLURM_NODEID in a batch script is.
    """
    ended = pasted(cluster, tmp_path, "--max-restarts=1", "--node-rank=0")

    assert ended.status == 0, ended.describe()
    assert ended.attempts() == [0, 1], ended.describe()
    assert {rank: (one["host"], one["total"]) for rank, one in ended.said(1).items()} == {
        0: ("gpu001", 16.0),
        1: ("gpu001", 16.0),
        2: ("gpu002", 16.0),
        3: ("gpu002", 16.0),
    }, ended.describe()
    begun = [
        (path.parent.parent.name, path.read_text().splitlines()[0]) for path in ended.logs.glob("*.*/attempt_*/*/*.out")
    ]
    assert sorted(begun) == [(f"attempt_{n}", f"attempt {n} begins") for n in (0, 1) for _ in range(4)]
    assert len(lines(ended, "note --rdzv-backend c10d")) == 1, ended.describe()
    assert len(lines(ended, "note --node-rank 0 gpu002 1")) == 1, ended.describe()


def test_a_pasted_line_fails(cluster: Cluster, tmp_path: Path) -> None:
    """No node hangs, and the failure is named; but each node judges by itself (docs/exit-status.md)."""
    ended = pasted(cluster, tmp_path)

    assert ended.status in (3, 69), ended.describe()
    assert ended.attempts() == [0], ended.describe()
    assert len(lines(ended, "attempt 0 2 gpu002 3")) == 1
