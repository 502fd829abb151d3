"""Training in containers: nothing is there but the variables, the log directory and the network.

No container runtime can run here; `container.py` has the kernel do what one does. What an image has to bring, and what
a site's runtime mounts, is not tested.
"""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.cluster import Cluster
from tests.slurm.jobs_support import DEADLINE, Ended, clean_environment, run_commands
from tests.slurm.signals_support import SCRIPT as STAYING, STAYER, Running
from tests.support import LEAVE, lines_mention, mentions, wait_for

CONTAINER = shlex.join([sys.executable, str(Path(__file__).with_name("container.py"))])

# Says what it finds there, besides doing what is done in training.
TRAIN = (
    """
import json, os, shutil, sys
from pathlib import Path
import torch
import torch.distributed as dist

dist.init_process_group("gloo")
total = torch.ones(1)
dist.all_reduce(total)
home = Path.home()
found = {
    "rank": dist.get_rank(),
    "total": total.item(),
    "first": Path("/proc/1/cmdline").read_bytes().decode().split(chr(0)),
    "cgroups": sorted({line.split(":", 2)[2] for line in Path("/proc/self/cgroup").read_text().splitlines()}),
    "home": [str(path) for path in home.iterdir()],
    "programs": [name for name in ("srun", "scontrol", "munge") if shutil.which(name)],
    "slurm": len([name for name in os.environ if name.startswith("SLURM")]),
}
print(json.dumps(found), flush=True)
if sys.argv[1:] == [os.environ["RANK"]]:
    raise SystemExit(7)
dist.barrier()
"""
    + LEAVE
)

LAUNCH = "hpc-launch --nproc-per-node 2 train.py"

# How the variables get into a container whose environment is cleaned (docs/containers.md).
PASS = 'for name in $(compgen -e SLURM) HPC_LAUNCH_LOG_DIR; do export "APPTAINERENV_$name=${!name}"; done'

COMMANDS = {
    "trains": f"srun {CONTAINER} {LAUNCH}",
    "fails": f"srun {CONTAINER} {LAUNCH} 3",
    "cleaned": f"srun {CONTAINER} --cleanenv {LAUNCH}",
    "outside": f"srun hpc-launch --nproc-per-node 2 --no-python {CONTAINER} {sys.executable} -u train.py",
    "passed": f"srun bash -c {shlex.quote(f'{PASS}; exec {CONTAINER} --cleanenv {LAUNCH}')}",
}


@pytest.fixture(scope="module")
def runs(any_cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Ended]:
    """Run all in one job of two nodes."""
    folder = tmp_path_factory.mktemp("containers")
    (folder / "train.py").write_text(TRAIN)
    home = folder / "home"
    (home / ".config").mkdir(parents=True)
    job = f"export HOME={home} HIDDEN_HOME={home}; unset XDG_CONFIG_HOME;"
    commands = {name: f"{job} {command}" for name, command in COMMANDS.items()}
    return run_commands(any_cluster, folder, commands, "--nodes=2", "--ntasks-per-node=1", "--cpus-per-task=2")


def said(ended: Ended) -> list[dict[str, Any]]:
    """Return what the ranks found, in their order."""
    lines = [line[line.index("{") :] for line in ended.output.splitlines() if '"rank"' in line]
    return sorted(map(json.loads, lines), key=lambda one: int(one["rank"]))


def test_the_container_is_one(runs: dict[str, Ended]) -> None:
    """The launcher is its first process; no cgroup, home, or program of Slurm's or munge's is to be seen."""
    for one in said(runs["trains"]):
        assert "hpc-launch" in " ".join(one["first"])
        assert (one["cgroups"], one["home"], one["programs"]) == (["/"], [], [])


def test_two_nodes_train(runs: dict[str, Ended]) -> None:
    """Both containers are one world, with a directory, and without a warning."""
    ended = runs["trains"]

    assert (ended.status, [(one["rank"], one["total"]) for one in said(ended)]) == (0, [(n, 4.0) for n in range(4)])
    assert lines_mention(ended.ours, "2 nodes 4 ranks"), ended.output
    assert sorted(path.name for path in (ended.tree.path / "nodes").iterdir()) == ["gpu001", "gpu002"]


def test_a_failing_rank_is_the_root_cause(runs: dict[str, Ended]) -> None:
    """Its node and status are in one line, and every node ends with the status."""
    ended = runs["fails"]
    [line] = [line for line in ended.ours if mentions(line, "attempt")]

    assert ended.status == 7, ended.output
    assert mentions(line, "0 rank 3 gpu002 status 7"), ended.output


def test_a_cleaned_environment_is_noticed(runs: dict[str, Ended]) -> None:
    """With the cgroup hidden as well, nothing says that there are other tasks: each trains alone, and says so."""
    ended = runs["cleaned"]

    assert [(one["total"], one["slurm"]) for one in said(ended)] == [(2.0, 0)] * 4
    assert len([line for line in ended.ours if mentions(line, "note SLURM_* --standalone")]) == 2, ended.output


def test_variables_that_are_passed_into_a_cleaned_environment(runs: dict[str, Ended]) -> None:
    """They are all that is needed."""
    ended = runs["passed"]

    assert (ended.status, [one["total"] for one in said(ended)]) == (0, [4.0] * 4), ended.output
    assert all(one["slurm"] for one in said(ended))


def test_a_container_for_each_worker(runs: dict[str, Ended]) -> None:
    """The launcher is outside: workers are the first processes of containers of their own, and one world."""
    ended = runs["outside"]

    assert (ended.status, [one["total"] for one in said(ended)]) == (0, [4.0] * 4), ended.output
    assert all("train.py" in one["first"] for one in said(ended))


def test_a_stop_leaves_nothing(any_cluster: Cluster, tmp_path: Path) -> None:
    """scancel reaches the workers through the container, and their families end with them."""
    (tmp_path / STAYING).write_text(STAYER)
    home = tmp_path / "home"
    home.mkdir()
    launch = f"{CONTAINER} hpc-launch --nproc-per-node=2 {STAYING} --family --on SIGTERM 0.1"
    script = f"trap : TERM\nexport HOME={home} HIDDEN_HOME={home}; unset XDG_CONFIG_HOME\nsrun {launch}"
    with clean_environment():
        job = any_cluster.sbatch(script, "--nodes=2", cwd=tmp_path)
    running = Running(any_cluster, job, tmp_path, 4)
    names = [f"up.{rank}" for rank in range(running.ranks)]
    wait_for(lambda: all((tmp_path / name).exists() for name in names), DEADLINE, running.describe)
    job.cancel()
    job.wait(DEADLINE)

    running.check_nothing_is_left()
    assert running.saved() == dict.fromkeys(range(4), "whole"), running.describe()
