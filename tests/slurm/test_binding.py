"""CPUs and devices on a real cluster: each rank has its own, in whatever way Slurm was asked for tasks."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.cluster import Cluster
from tests.slurm.jobs_support import Ended, run_commands
from tests.support import lines_mention

CPUS = sorted(os.sched_getaffinity(0))

pytestmark = pytest.mark.skipif(len(CPUS) < 2, reason="needs two CPUs")

# A rank says which CPUs it has.
LOOK = """
import json, os
print(json.dumps([os.environ["HPC_LAUNCH_HOST"], int(os.environ["LOCAL_RANK"]), sorted(os.sched_getaffinity(0))]))
"""

# A task says which device files it may open, without opening them, and what happens if it does.
OPEN = """
import json, os, sys

def opens(path):
    try:
        os.close(os.open(path, os.O_RDWR))
    except OSError as error:
        return error.errno not in (1, 13)  # no driver backs these devices, but that is another error
    return True

paths = sys.argv[1:]
print(json.dumps([[os.access(path, os.R_OK | os.W_OK) for path in paths], [opens(path) for path in paths]]))
"""

# One node tells it where nothing is said about several.
COMMANDS = {
    "agents": "srun hpc-launch --nproc-per-node 2 look.py",
    "exec": "srun -N1 -n1 hpc-launch --nproc-per-node 2 --start exec --cpu-bind auto look.py",
    "many": f"srun -N1 -n1 taskset -c {CPUS[0]},{CPUS[1]} hpc-launch look.py",
    "mapped": f"srun hpc-launch --nproc-per-node 2 --cpu-bind map:{CPUS[1]}/{CPUS[0]} look.py",
    "tasks": "srun -N1 -n2 hpc-launch look.py",
    "bound": f"srun -N1 -n2 sh -c 'exec taskset -c $((SLURM_LOCALID ? {CPUS[0]} : {CPUS[1]})) hpc-launch look.py'",
    "impossible": "srun hpc-launch --nproc-per-node 2 --cpu-bind map:0/4711 look.py",
}


@pytest.fixture(scope="module")
def runs(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Ended]:
    """All of them, one after another in one job of two nodes."""
    folder = tmp_path_factory.mktemp("binding")
    (folder / "look.py").write_text(LOOK)
    return run_commands(cluster, folder, COMMANDS, "--nodes=2", "--gpus-per-node=4", f"--cpus-per-task={len(CPUS)}")


def cpus(ended: Ended, cluster: Cluster) -> list[dict[int, list[int]]]:
    """Return the CPUs that ranks have, by local rank, for each node that has any."""
    assert ended.status == 0, ended.output
    found: dict[str, dict[int, list[int]]] = {name: {} for name in cluster.nodes[:2]}
    for path in (ended.tree.path / "attempt_0").glob("*/rank_*.out"):
        host, local_rank, own = json.loads(path.read_text())
        found[host][local_rank] = own
    return [ranks for ranks in found.values() if ranks]


@pytest.mark.parametrize("name", ["agents", "exec", "tasks"])
def test_ranks_of_a_node_divide_its_cpus(name: str, runs: dict[str, Ended], cluster: Cluster) -> None:
    """On each node every CPU is one rank's, with one task per node, and with several tasks that Slurm has not bound."""
    nodes = cpus(runs[name], cluster)

    for ranks in nodes:
        assert sorted(cpu for own in ranks.values() for cpu in own) == CPUS
        assert list(map(len, ranks.values())) == [len(CPUS) // 2] * 2
    assert nodes == [nodes[0]] * (2 if name == "agents" else 1)


def test_it_is_said_once_and_written_down_on_each_node(runs: dict[str, Ended], cluster: Cluster) -> None:
    """The first node says what its ranks got; each node's events have it."""
    ended = runs["agents"]

    lists = "/".join(str(cpu) for own in sorted(cpus(ended, cluster)[0].values()) for cpu in own)
    assert lines_mention([line for line in ended.ours if "--cpu-bind" in line], lists)
    for host in cluster.nodes[:2]:
        (event,) = [event for event in ended.tree.events(host) if event["event"] == "binding"]
        assert [share["device"] for share in event["shares"]] == ["0", "1"]
        assert [share["numa_node"] for share in event["shares"]] == [None, None]
    assert ended.tree.plan()["derived"]["cpu_bind"]["value"] == f"{len(CPUS) // 2} CPU each"


def test_more_ranks_than_cpus_are_left_alone(runs: dict[str, Ended], cluster: Cluster) -> None:
    """Four ranks, one per GPU, on fewer CPUs: all have all, and that is said."""
    assert cpus(runs["many"], cluster) == [dict.fromkeys(range(4), CPUS[:2])]
    assert any("4 local ranks share 2 CPUs" in line for line in runs["many"].ours)


def test_a_map_is_for_every_node(runs: dict[str, Ended], cluster: Cluster) -> None:
    """--cpu-bind map says the same to all nodes; what is impossible ends all with one line."""
    assert cpus(runs["mapped"], cluster) == [{0: [CPUS[1]], 1: [CPUS[0]]}] * 2
    assert runs["impossible"].status == 78
    (line,) = runs["impossible"].ours
    assert "CPU 4711 for local rank 1" in line


def test_tasks_that_are_bound_keep_their_cpus(runs: dict[str, Ended], cluster: Cluster) -> None:
    """Where each task has CPUs of its own its rank keeps them, whatever their order."""
    assert cpus(runs["bound"], cluster) == [{0: [CPUS[1]], 1: [CPUS[0]]}]


def test_access_tells_what_the_device_cgroup_allows(cluster: Cluster, tmp_path: Path) -> None:
    """Which devices may be opened is known without opening them: locations.py counts on it."""
    (tmp_path / "open.py").write_text(OPEN)
    paths = [f"{cluster.run_dir}/dev/gpu{number}" for number in range(4)]

    job = cluster.sbatch(f"srun python open.py {' '.join(paths)}", "--gpus-per-node=2", cwd=tmp_path)
    done = job.wait()

    assert done.state == "COMPLETED", job.describe()
    accessible, opened = json.loads(done.output)
    assert accessible == opened == [True, True, False, False]
