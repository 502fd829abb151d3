"""`HPC_LAUNCH_PLAIN=1`: workers start without anything of hpc-launch's own."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.cluster import Cluster
from tests.slurm.steps_support import PREAMBLE, step

# What a script finds, and a sum over all ranks; the last one may fail.
WORKER = (
    PREAMBLE
    + """
import torch
import torch.distributed as dist

dist.init_process_group("gloo")
total = torch.ones(1)
dist.all_reduce(total)
parent = pathlib.Path(f"/proc/{os.getppid()}/cmdline").read_bytes().split(b"\\0")
say(total=total.item(), torchrun=b"torch.distributed.run" in parent)
if "fail" in sys.argv and rank == 3:
    sys.exit(3)
dist.barrier()
dist.destroy_process_group()
"""
)


@pytest.mark.parametrize(
    ("tasks", "status"),
    [(1, 0), (2, 3), pytest.param(1, 1, marks=pytest.mark.soak), pytest.param(2, 0, marks=pytest.mark.soak)],
)
def test_workers_train_without_hpc_launch(any_cluster: Cluster, tmp_path: Path, tasks: int, status: int) -> None:
    """torchrun on each node, or the script in each task, has the step's numbers; one line says what is run.

    The status is that of torchrun, which is 1 for a worker that fails, or of the script.
    """
    (tmp_path / "worker.py").write_text(WORKER)
    options = ["--nproc-per-node=2"] if tasks == 1 else []
    line = ["hpc-launch", *options, "worker.py", *(["fail"] if status else [])]
    ended = step(any_cluster, line, f"--ntasks-per-node={tasks}", cwd=tmp_path, env={"HPC_LAUNCH_PLAIN": "1"})
    # Nothing of ours keeps the lines of two ranks apart here: an object may share its line with another.
    objects = re.findall(r'\{"rank": [^{}]*\}', ended.console)
    said = sorted((json.loads(text) for text in objects), key=lambda one: one["rank"])
    notes = [line for line in ended.console.splitlines() if line.startswith("hpc-launch: ")]

    assert status == ended.status, ended.describe()
    assert [(rank, rank // 2, rank % 2, 4.0, tasks == 1) for rank in range(4)] == [
        (one["rank"], int(one["GROUP_RANK"]), int(one["LOCAL_RANK"]), one["total"], one["torchrun"]) for one in said
    ], ended.describe()
    assert [line.startswith("hpc-launch: note: --plain: ") for line in notes] == [True], ended.describe()
    assert not (tmp_path / "logs").exists()
