"""Several runs in one step, shell or job: each has its own directory, attempts, world and nodes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.cluster import Cluster
from tests.slurm.jobs_support import DEADLINE, clean_environment
from tests.slurm.steps_support import tree
from tests.support import LEAVE, lines_mention, mentions, wait_for

SCRIPT = "who.py"

# A training that says what it was given. Its arguments: a name, and then
#   --meet N    wait until so many ranks of runs in this folder are there: they run at the same time
#   --exit N    end with status N
#   --sum       sum up the name, a number, over all ranks with torch, three times
#   --requeue   have the job requeued in its first incarnation, and wait for the end
WHO = (
    """
import json, os, pathlib, subprocess, sys, time

name, words = sys.argv[1], sys.argv[2:]
names = ("RANK", "WORLD_SIZE", "HPC_LAUNCH_ATTEMPT", "TORCHELASTIC_RUN_ID", "HPC_LAUNCH_HOST", "MASTER_PORT")
facts = {"name": name, **{each: os.environ[each] for each in names}}
facts["directory"] = pathlib.Path(os.environ["HPC_LAUNCH_JOB_DIRECTORY"]).name
restarts = os.environ.get("SLURM_RESTART_COUNT", "0")

def value(word):
    return words[words.index(word) + 1] if word in words else None

if "--sum" in words:
    import torch
    import torch.distributed as dist

    dist.init_process_group("gloo")
    total = torch.tensor([float(name)])
    for _ in range(3):
        dist.all_reduce(total)
    facts["sum"] = total.item()
    dist.destroy_process_group()
print(json.dumps(facts), flush=True)
if count := value("--meet"):
    folder = pathlib.Path(f"met.{restarts}")
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.{facts['RANK']}.{facts['HPC_LAUNCH_HOST']}").touch()
    deadline = time.monotonic() + 120
    while len(list(folder.iterdir())) < int(count):
        if time.monotonic() > deadline:
            sys.exit("the others did not come")
        time.sleep(0.05)
if "--requeue" in words and restarts == "0":
    time.sleep(3600)
if status := int(value("--exit") or 0):
    sys.exit(status)
"""
    + LEAVE
)

ONE_NODE = ("--nodes=1", "--ntasks=1", "--cpus-per-task=4", "--gpus-per-node=4")


@dataclass(frozen=True)
class Said:
    """What one rank said of itself, and where.

    Attributes:
        directory: the name of the job directory that its output is in.
        attempt: the attempt there.
        facts: its own words.
    """

    directory: str
    attempt: int
    facts: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The name that its run was given."""
        return str(self.facts["name"])


def said(logs: Path) -> list[Said]:
    """List what all ranks said, by the place of their output."""
    paths = sorted(logs.glob("*/attempt_*/*/rank_*.out"))
    own = [path for path in paths if not any(parent.is_symlink() for parent in path.parents)]
    return [
        Said(path.parts[-4], int(path.parts[-3].removeprefix("attempt_")), json.loads(line))
        for path in own
        for line in path.read_text().splitlines()
    ]


def runs(logs: Path) -> dict[str, list[tuple[str, int]]]:
    """Return where each run wrote, and in which attempt, by its name; after seeing that it knows that itself."""
    found: dict[str, list[tuple[str, int]]] = {}
    for one in said(logs):
        own = (one.facts["directory"], int(one.facts["HPC_LAUNCH_ATTEMPT"]))
        assert own == (one.directory, one.attempt), tree(logs)
        found.setdefault(one.name, []).append(own)
    return {name: sorted(set(places)) for name, places in found.items()}


def run(cluster: Cluster, folder: Path, script: str, *options: str) -> str:
    """Run a batch script to its end; returns what it wrote, after seeing that the job ended well."""
    (folder / SCRIPT).write_text(WHO)
    with clean_environment():
        job = cluster.sbatch(script, *options, cwd=folder)
    result = job.wait(DEADLINE)
    assert result.state == "COMPLETED", f"{job.describe()}\n{tree(folder / 'logs')}"
    return result.output


def run_ids(logs: Path) -> set[str]:
    """Return the ids that workers read."""
    return {one.facts["TORCHELASTIC_RUN_ID"] for one in said(logs)}


def ways(names: Iterable[str], long: str) -> list[Any]:
    """Give the names of ways in which something is started; one of them, which another one covers, is the soak."""
    return [pytest.param(name, marks=[pytest.mark.soak] if name == long else []) for name in names]


# As in a container: Slurm's programs are not there.
NO_SRUN = "export PATH=$(dirname $(command -v hpc-launch)):/nowhere"

# Ways to start two runs in one place of one node, each waiting for the other.
BESIDE = {
    "masks": "for i in 0 1; do CUDA_VISIBLE_DEVICES=$i hpc-launch who.py $i --meet 2 & done; wait",
    "no srun": f"{NO_SRUN}; for i in 0 1; do hpc-launch --nproc-per-node 1 who.py $i --meet 2 & done; wait",
    "one task": "srun bash -c 'for i in 0 1; do hpc-launch --nproc-per-node 1 who.py $i --meet 2 & done; wait'",
}


@pytest.mark.parametrize("way", BESIDE)
def test_runs_beside_each_other_share_nothing(some_cluster: Cluster, tmp_path: Path, way: str) -> None:
    """Runs that share a node at the same time each have a directory, attempt 0 and an id of their own."""
    run(some_cluster, tmp_path, BESIDE[way], *ONE_NODE)
    places = runs(tmp_path / "logs")
    attempts = [attempt for where in places.values() for _, attempt in where]
    directories = {where[0][0] for where in places.values()}
    assert (attempts, len(directories), len(run_ids(tmp_path / "logs"))) == ([0, 0], 2, 2), tree(tmp_path / "logs")


def test_equal_runs_beside_each_other_share_nothing(some_cluster: Cluster, tmp_path: Path) -> None:
    """Four runs of one command line at the same time have four directories, and one is the usual one."""
    script = "for i in 0 1 2 3; do CUDA_VISIBLE_DEVICES=$i hpc-launch who.py same & done; wait"
    run(some_cluster, tmp_path, script, *ONE_NODE)
    (places,) = runs(tmp_path / "logs").values()
    job = places[0][0]
    assert places == [(name, 0) for name in (job, f"{job}-2", f"{job}-3", f"{job}-4")]


# Ways to start runs after one another in one place: two, and three in one of them.
AFTER = {
    "masks": "for i in 1 2 3; do CUDA_VISIBLE_DEVICES=0 hpc-launch who.py $i; done",
    "no srun": f"{NO_SRUN}; for i in 1 2; do hpc-launch --nproc-per-node 1 who.py $i; done",
    "one task": "srun bash -c 'for i in 1 2; do hpc-launch --nproc-per-node 1 who.py $i; done'",
    "name": "srun bash -c 'for i in 1 2; do hpc-launch --nproc-per-node 1 --log-name sweep who.py $i; done'",
}


@pytest.mark.parametrize("way", AFTER)
def test_runs_after_each_other_start_afresh(some_cluster: Cluster, tmp_path: Path, way: str) -> None:
    """Runs one after another in a shell or step are runs of their own: none resumes what another has left.

    A run whose directory is not the usual one says so in a line; the first run says nothing.
    """
    output = run(some_cluster, tmp_path, AFTER[way], *ONE_NODE)
    logs = tmp_path / "logs"
    places = runs(logs)
    base = places["1"][0][0]
    others = range(2, 4 if way == "masks" else 3)
    assert places == {"1": [(base, 0)], **{str(number): [(f"{base}-{number}", 0)] for number in others}}
    lines = [line for line in output.splitlines() if mentions(line, f"hpc-launch {logs / base}")]
    assert lines_mention(lines, *(f"hpc-launch {logs / base} {logs / base}-{number}" for number in others)), output


def test_steps_after_each_other_keep_their_names(some_cluster: Cluster, tmp_path: Path) -> None:
    """A sweep whose runs are steps of their own has the directory names that it always had."""
    run(some_cluster, tmp_path, "for i in 0 1; do hpc-launch --nproc-per-node 1 who.py $i; done", *ONE_NODE)
    places = runs(tmp_path / "logs")
    job = places["0"][0][0].partition(".")[0]
    assert places == {str(step): [(f"{job}.{step}", 0)] for step in range(2)}


def test_status_shows_the_run_that_failed(some_cluster: Cluster, tmp_path: Path) -> None:
    """Of three runs in a shell each has its own status; the last one is shown for the job, with a line for each run."""
    output = run(
        some_cluster,
        tmp_path,
        "for i in '0' '1 --exit 3' '2'; do CUDA_VISIBLE_DEVICES=0 hpc-launch who.py $i; done >/dev/null 2>&1\n"
        "job=$SLURM_JOB_ID\n"
        'for name in $job-1 $job-2 $job; do echo "= $name"; hpc-launch status $name; done; true',
        *ONE_NODE,
    )
    first, second, third = output.split("= ")[1:]
    last, runs_of_job = third.split("\nrun ")
    assert ["failed" in shown for shown in (first, second, last)] == [False, True, False], output
    job = third.split("\n")[0]
    rows = runs_of_job.strip().splitlines()[1:]
    assert lines_mention(rows, f"{job} 0 done", f"{job}-2 1 --exit 3 failed 3", f"{job}-3 2 done"), output


def requeue_once(cluster: Cluster, folder: Path, script: str) -> None:
    """Run a batch script whose runs wait to be requeued, to its second end."""
    (folder / SCRIPT).write_text(WHO)
    with clean_environment():
        job = cluster.sbatch(script, *ONE_NODE, "--requeue", cwd=folder)
    wait_for(lambda: len(list(folder.glob("met.0/*"))) == 2, DEADLINE, job.describe)
    cluster.run(["scontrol", "requeue", job.id])
    result = job.wait(DEADLINE)
    assert result.state == "COMPLETED", f"{job.describe()}\n{tree(folder / 'logs')}"


# Two runs, a and b; `order` has them start the other way round in the second incarnation.
REQUEUED = {
    "beside": "for i in a b; do CUDA_VISIBLE_DEVICES=0 hpc-launch who.py $i --meet 2 --requeue & done; wait",
    "other order": "order='a b'; [ ${SLURM_RESTART_COUNT:-0} = 0 ] || order='b a'\n"
    "for i in $order; do CUDA_VISIBLE_DEVICES=0 hpc-launch who.py $i --meet 2 --requeue & sleep 0.5; done; wait",
    "one task": "srun bash -c 'for i in a b; do hpc-launch --nproc-per-node 1 who.py $i --meet 2 --requeue & done; "
    "wait'",
}


@pytest.mark.parametrize("way", ways(REQUEUED, "beside"))
def test_each_run_goes_on_after_a_requeue(some_cluster: Cluster, tmp_path: Path, way: str) -> None:
    """After a requeue each run of a place goes on in its own directory, with the next attempt."""
    requeue_once(some_cluster, tmp_path, REQUEUED[way])
    places = runs(tmp_path / "logs")
    assert {name: [attempt for _, attempt in where] for name, where in places.items()} == {"a": [0, 1], "b": [0, 1]}
    assert [len({directory for directory, _ in where}) for where in places.values()] == [1, 1]


def test_arguments_that_change_are_no_matter(some_cluster: Cluster, tmp_path: Path) -> None:
    """A run whose arguments are others after a requeue, such as a date, goes on all the same."""
    script = (
        "CUDA_VISIBLE_DEVICES=0 hpc-launch who.py run --meet ${SLURM_RESTART_COUNT:-2} --requeue --date $(date +%N)"
    )
    (tmp_path / "met.0").mkdir()
    (tmp_path / "met.0" / "nobody").touch()
    requeue_once(some_cluster, tmp_path, script)
    ((_, attempts),) = runs(tmp_path / "logs").items()
    assert [attempt for _, attempt in attempts] == [0, 1]


# ---- nodes of a job that are shared out

SHARED_OUT = {
    "two": "for i in 0 1; do hpc-launch --nodes 1 --nproc-per-node 1 who.py $i --meet 2 & done; wait",
    "torchrun's": "for i in 0 1; do hpc-launch --nnodes 1 --nproc-per-node 1 who.py $i --meet 2 & done; wait",
    "after a step": "srun --nodes=2 --ntasks=2 true; "
    "for i in 0 1; do hpc-launch --nodes 1 --nproc-per-node 1 who.py $i --meet 2 & done; wait",
}


@pytest.mark.parametrize("way", ways(SHARED_OUT, "two"))
def test_runs_share_out_the_nodes(some_cluster: Cluster, tmp_path: Path, way: str) -> None:
    """Runs that start together, each on one node of a job, take different nodes."""
    run(some_cluster, tmp_path, SHARED_OUT[way], "--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=2")
    hosts = {one.name: one.facts["HPC_LAUNCH_HOST"] for one in said(tmp_path / "logs")}
    assert len(set(hosts.values())) == 2, tree(tmp_path / "logs")


def test_a_sweep_of_several_at_once(some_cluster: Cluster, tmp_path: Path) -> None:
    """Three runs on three nodes, two turns of them, never collide."""
    script = (
        "for t in 0 1; do for i in 0 1 2; do hpc-launch --nodes 1 --nproc-per-node 1 who.py $t$i & done; wait; done"
    )
    run(some_cluster, tmp_path, script, "--nodes=3", "--ntasks-per-node=1")
    hosts = {
        turn: {one.facts["HPC_LAUNCH_HOST"] for one in said(tmp_path / "logs") if one.name[0] == turn} for turn in "01"
    }
    assert [len(found) for found in hosts.values()] == [3, 3], tree(tmp_path / "logs")


def test_no_node_is_free(some_cluster: Cluster, tmp_path: Path) -> None:
    """One run more than there are nodes ends with one line that names the steps that have them."""
    script = (
        "for i in 0 1; do hpc-launch --nodes 1 --nproc-per-node 1 who.py $i --meet 3 & done\n"
        "until [ $(ls met.0 2>/dev/null | wc -l) = 2 ]; do sleep 0.1; done\n"
        "hpc-launch --nodes 1 --nproc-per-node 1 who.py 2; echo status $?; touch met.0/over; wait"
    )
    output = run(some_cluster, tmp_path, script, "--nodes=2", "--ntasks-per-node=1")
    refused = [line for line in output.splitlines() if mentions(line, "hpc-launch step --overlap")]
    assert ("status 75" in output, len(refused)) == (True, 1), output


# ---- an environment that was dropped

# As at most sites, Slurm's programs find their configuration without a variable.
CLEAN = "env -i PATH=$PATH HOME=$HOME SLURM_CONF=$SLURM_CONF"


@pytest.mark.parametrize("tasks", ["--nodes=2 --ntasks=2 --ntasks-per-node=1", "--nodes=1 --ntasks=2"])
def test_no_world_of_one(some_cluster: Cluster, tmp_path: Path, tasks: str) -> None:
    """Tasks of a step that have lost their environment end with one line each, and train nothing."""
    script = f'srun {tasks} bash -c "exec {CLEAN} hpc-launch who.py x"; echo status $?'
    output = run(some_cluster, tmp_path, script, "--nodes=2", "--ntasks-per-node=2")
    lines = [line for line in output.splitlines() if mentions(line, "hpc-launch 2 SLURM_*")]
    assert ("status 78" in output, len(lines), said(tmp_path / "logs")) == (True, 2, []), output


def test_no_world_of_one_in_a_container_without_slurm(some_cluster: Cluster, tmp_path: Path) -> None:
    """So do they where Slurm's programs are not there to be asked."""
    script = (
        "bin=$(dirname $(command -v hpc-launch))\n"
        'srun --ntasks=2 bash -c "exec env -i PATH=/nowhere HOME=$HOME $bin/hpc-launch who.py x"; echo status $?'
    )
    output = run(some_cluster, tmp_path, script, "--nodes=2", "--ntasks-per-node=1")
    assert ("status 78" in output, said(tmp_path / "logs")) == (True, []), output


@pytest.mark.parametrize(
    "command",
    [
        'srun --nodes=1 --ntasks=1 bash -c "exec {} hpc-launch who.py x"',
        'srun --nodes=1 --ntasks=2 bash -c "exec {} hpc-launch --standalone who.py x"',
        "{} hpc-launch who.py x",
    ],
    ids=["single task", "standalone", "batch script"],
)
def test_single_runs_may_lose_their_environment(some_cluster: Cluster, tmp_path: Path, command: str) -> None:
    """A single task, the script of a one-node job, and who says --standalone train as before."""
    output = run(some_cluster, tmp_path, command.format(CLEAN), "--nodes=1", "--ntasks=2")
    assert ({one.name for one in said(tmp_path / "logs")}, "are gone" in output) == ({"x"}, False), output


# ---- runs of several nodes in one step


def in_a_step(cluster: Cluster, folder: Path, script: str) -> str:
    """Run a script in both tasks of a step on two nodes."""
    (folder / "both.sh").write_text(script)
    return run(cluster, folder, "srun bash both.sh", "--nodes=2", "--ntasks-per-node=1")


def worlds(logs: Path) -> dict[str, list[tuple[str, str]]]:
    """Return rank and size of the world of every rank, by the name of its run."""
    found: dict[str, list[tuple[str, str]]] = {}
    for one in said(logs):
        found.setdefault(one.name, []).append((one.facts["RANK"], one.facts["WORLD_SIZE"]))
    return {name: sorted(ranks) for name, ranks in found.items()}


PAIR = [("0", "2"), ("1", "2")]

LAUNCH = "hpc-launch --nproc-per-node 1 --join-timeout 60"

# Two programs, 1 and 100, that both nodes start.
TOGETHER = {
    "opposite order": "a() { L who.py 1 --sum & }; b() { L who.py 100 --sum & }\n"
    "if [ $SLURM_NODEID = 0 ]; then a; b; else b; a; fi; wait",
    "apart": "a() { L who.py 1 --sum & }; b() { L who.py 100 --sum & }\n"
    "if [ $SLURM_NODEID = 0 ]; then a; sleep 1; b; else b; sleep 1; a; fi; wait",
    "ids": "L --rdzv-id a who.py 1 --sum & [ $SLURM_NODEID = 0 ] && sleep 0.7\nL --rdzv-id b who.py 100 --sum & wait",
    "directories": "mkdir -p d; for i in . d; do (cd $i; [ $i = . ] && n=1 || n=100; "
    "L --log-dir $ROOT/logs $ROOT/who.py $n --sum) & done; wait",
}


@pytest.mark.parametrize("way", ways(TOGETHER, "apart"))
def test_two_trainings_in_one_step(some_cluster: Cluster, tmp_path: Path, way: str) -> None:
    """Two programs that share a step do not train each other's model, in whatever order their agents start.

    They have a directory, attempt 0 and an id each.
    """
    logs = tmp_path / "logs"
    in_a_step(some_cluster, tmp_path, f'ROOT=$PWD; L() {{ {LAUNCH} "$@"; }}\n{TOGETHER[way]}')
    sums = {one.name: one.facts["sum"] for one in said(logs)}
    assert (sums, worlds(logs)) == ({"1": 8.0, "100": 800.0}, {"1": PAIR, "100": PAIR})
    [(one, first), (other, second)] = [place for places in runs(logs).values() for place in places]
    assert (one != other, first, second, len(run_ids(logs))) == (True, 0, 0, 2)


# Two runs of both nodes, one after another; one node comes late to the second.
SEQUENCES = {
    "late": f"{LAUNCH} who.py prepare; [ $SLURM_NODEID = 1 ] && sleep 3; {LAUNCH} who.py train",
    "early": f"{LAUNCH} who.py prepare; [ $SLURM_NODEID = 0 ] && sleep 3; {LAUNCH} who.py train",
    "elastic": f"{LAUNCH} --nnodes 1:2 who.py prepare; {LAUNCH} --nnodes 1:2 who.py train",
}


@pytest.mark.parametrize("way", SEQUENCES)
def test_a_sequence_in_one_step(some_cluster: Cluster, tmp_path: Path, way: str) -> None:
    """Runs of several nodes after one another in a step are runs of their own, each with both nodes."""
    in_a_step(some_cluster, tmp_path, SEQUENCES[way])
    places = runs(tmp_path / "logs")
    base = places["prepare"][0][0]
    assert places == {"prepare": [(base, 0)], "train": [(f"{base}-2", 0)]}
    assert worlds(tmp_path / "logs") == {"prepare": PAIR, "train": PAIR}


def test_one_id_joins_different_programs(some_cluster: Cluster, tmp_path: Path) -> None:
    """`--rdzv-id` lets nodes that start different scripts be one world."""
    in_a_step(
        some_cluster,
        tmp_path,
        "[ $SLURM_NODEID = 0 ] || cp who.py other.py; [ $SLURM_NODEID = 0 ] && s=who.py || s=other.py\n"
        f"{LAUNCH} --rdzv-id mixed $s $SLURM_NODEID",
    )
    assert worlds(tmp_path / "logs") == {"0": [("0", "2")], "1": [("1", "2")]}
