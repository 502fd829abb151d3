"""Who takes part in a step and as what, seen from the workers: what a real Slurm says in all its ways."""

import re
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.cluster import Cluster, Job
from tests.slurm.jobs_support import (
    Ended,
    JobTree,
    Report,
    ended,
    run_commands,
    run_job,
    submit,
    write_probe,
)
from tests.support import mentions

# Tells the script what Slurm had said to its task.
AS_TASK = "sh -c 'exec hpc-launch probe.py $SLURM_PROCID $SLURM_LOCALID \"$@\"' --"

# No directory with a Slurm command in it, and what the shell of a user may have set.
BARE = "env PATH=$PWD/bin RANK=7 WORLD_SIZE=99 LOCAL_RANK=3 MASTER_ADDR=nowhere MASTER_PORT=1 hpc-launch"

# A container, as far as hpc-launch can tell: another host name, no Slurm command, no configuration of Slurm.
CONTAINER = """
set -e
hostname box
for name in srun sbatch salloc scontrol squeue sinfo sacct scancel; do
    program=$(command -v $name) && mount --bind /dev/null "$(readlink -f "$program")"
done
unset SLURM_CONF
! command -v srun
exec hpc-launch "$@"
"""

STEPS = {
    "uneven": f"srun {AS_TASK}",
    "cyclic": f"srun -N2 -n4 -w gpu001,gpu002 -m cyclic {AS_TASK}",
    "repeated": f"SLURM_HOSTFILE=./repeated.hosts srun -n4 -m arbitrary {AS_TASK} --reduce",
    "half": "srun -N2 -n2 -w gpu001,gpu002 --gres=gpu:2 hpc-launch probe.py",
    "gpu_per_task": f"srun -N1 -n2 -w gpu001 --gpus-per-task=1 {AS_TASK}",
    "explained": "srun -N2 -n2 -w gpu001,gpu002 --gres=gpu:2 hpc-launch explain --nnodes 2 probe.py",
    "contradicted": "srun -N2 -n2 -w gpu001,gpu002 hpc-launch explain --nnodes 3 probe.py",
    "more_gpus": "srun -N1 -n3 -w gpu001 --overcommit --gres=gpu:2 hpc-launch probe.py",
}

# What Slurm says does not differ between its releases here.
LIKE_ANY_OTHER = {
    "subset": "srun -N2 -n2 -w gpu001,gpu003 hpc-launch --nproc-per-node 2 probe.py",
    "reordered": "SLURM_HOSTFILE=./reordered.hosts srun -n3 -m arbitrary hpc-launch --nproc-per-node 1 probe.py",
    "keep": "srun -N1 -n1 --gres=gpu:2 hpc-launch --slurm-env keep probe.py",
    "hide": "srun -N1 -n1 --gres=gpu:2 hpc-launch --slurm-env hide probe.py",
    "isolated": "srun -N1 -n1 env CUDA_VISIBLE_DEVICES=3,1 hpc-launch --virtual-local-rank probe.py",
    "bare": f"srun -N2 -n2 -w gpu001,gpu002 {BARE} --nproc-per-node 1 probe.py",
    "container": "srun -N2 -n2 -w gpu001,gpu002 unshare --mount --uts sh container.sh --nproc-per-node 1 probe.py",
}


@pytest.fixture(scope="module")
def steps(any_cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Ended]:
    return run_steps(any_cluster, tmp_path_factory.mktemp("steps"), STEPS)


@pytest.fixture(scope="module")
def some_steps(newest_cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Ended]:
    return run_steps(newest_cluster, tmp_path_factory.mktemp("some_steps"), LIKE_ANY_OTHER)


def run_steps(cluster: Cluster, folder: Path, commands: Mapping[str, str]) -> dict[str, Ended]:
    """Run steps of one job: three nodes of four GPUs and two tasks, but one on the last."""
    (folder / "reordered.hosts").write_text("gpu003\ngpu001\ngpu002\n")
    (folder / "repeated.hosts").write_text("gpu002\ngpu001\ngpu002\ngpu001\n")
    (folder / "container.sh").write_text(CONTAINER)
    (folder / "bin").mkdir()
    for name in ("hpc-launch", "python"):
        program = shutil.which(name, path=cluster.env["PATH"])
        assert program
        (folder / "bin" / name).symlink_to(program)
    options = ("--nodes=3", "--ntasks=5", "--ntasks-per-node=2", "--gpus-per-node=4")
    return run_commands(cluster, folder, commands, *options)


def places(reports: dict[int, Report]) -> list[tuple[str, int, int, int, int, int]]:
    """Return where each rank is: host, group rank, groups, local rank, local ranks, ranks."""
    names = ("GROUP_RANK", "GROUP_WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "WORLD_SIZE")
    return [(report.env["HPC_LAUNCH_HOST"], *report.numbers(*names)) for report in reports.values()]  # type: ignore[misc]


def as_tasks(reports: dict[int, Report]) -> list[tuple[int, int]]:
    """Return what Slurm had said to the task of each rank: its number, and that on its node."""
    return [(int(report.argv[0]), int(report.argv[1])) for report in reports.values()]


def test_uneven_tasks_are_one_rank_each(steps: dict[str, Ended]) -> None:
    """Of five tasks on three nodes, 2(x2),1, each is the rank that Slurm says, and knows how many share its node."""
    reports = steps["uneven"].reports()
    assert places(reports) == [
        ("gpu001", 0, 3, 0, 2, 5),
        ("gpu001", 0, 3, 1, 2, 5),
        ("gpu002", 1, 3, 0, 2, 5),
        ("gpu002", 1, 3, 1, 2, 5),
        ("gpu003", 2, 3, 0, 1, 5),
    ]
    assert as_tasks(reports) == list(enumerate((0, 1, 0, 1, 0)))


def test_cyclic_tasks_keep_the_numbers_that_slurm_gave(steps: dict[str, Ended]) -> None:
    """Tasks that are dealt out to the nodes in turn are ranks in the same order."""
    reports = steps["cyclic"].reports()
    assert places(reports) == [
        ("gpu001", 0, 2, 0, 2, 4),
        ("gpu002", 1, 2, 0, 2, 4),
        ("gpu001", 0, 2, 1, 2, 4),
        ("gpu002", 1, 2, 1, 2, 4),
    ]
    assert as_tasks(reports) == [(0, 0), (1, 0), (2, 1), (3, 1)]


def test_a_step_on_some_nodes_of_a_job_is_those_nodes(some_steps: dict[str, Ended]) -> None:
    """A step of two nodes in a job of three has two nodes, numbered from 0."""
    assert places(some_steps["subset"].reports()) == [
        ("gpu001", 0, 2, 0, 2, 4),
        ("gpu001", 0, 2, 1, 2, 4),
        ("gpu003", 1, 2, 0, 2, 4),
        ("gpu003", 1, 2, 1, 2, 4),
    ]


def test_agents_are_numbered_by_the_list_and_not_by_the_host_file(some_steps: dict[str, Ended]) -> None:
    """With one task per node in an order of the user's (SLURM_HOSTFILE), nodes have the order of the step's list."""
    assert places(some_steps["reordered"].reports()) == [
        ("gpu001", 0, 3, 0, 1, 3),
        ("gpu002", 1, 3, 0, 1, 3),
        ("gpu003", 2, 3, 0, 1, 3),
    ]


def test_a_host_file_may_put_rank_0_anywhere(steps: dict[str, Ended]) -> None:
    """With repeated names in SLURM_HOSTFILE ranks are where it says, and meet even if rank 0 is not on the first."""
    reports = steps["repeated"].reports()
    assert places(reports) == [
        ("gpu002", 1, 2, 0, 2, 4),
        ("gpu001", 0, 2, 0, 2, 4),
        ("gpu002", 1, 2, 1, 2, 4),
        ("gpu001", 0, 2, 1, 2, 4),
    ]
    assert as_tasks(reports) == [(0, 0), (1, 0), (2, 1), (3, 1)]
    assert [report.total for report in reports.values()] == [10] * 4


def test_tasks_with_a_gpu_each_keep_it_and_hear_of_the_cost(steps: dict[str, Ended]) -> None:
    """With --gpus-per-task=1 each rank has the device that Slurm gave its task, and a note says what that costs."""
    step = steps["gpu_per_task"]
    reports = step.reports()
    assert as_tasks(reports) == [(0, 0), (1, 1)]
    assert places(reports) == [("gpu001", 0, 1, 0, 2, 2), ("gpu001", 0, 1, 1, 2, 2)]
    assert [report.env["CUDA_VISIBLE_DEVICES"].count(",") for report in reports.values()] == [0, 0]
    assert any(mentions(line, "note 2 GPU --gpu-bind=none") for line in step.ours), step.output


def test_a_step_with_some_of_the_gpus_has_as_many_ranks(steps: dict[str, Ended]) -> None:
    """A step with --gres=gpu:2 in a job of four GPUs per node has two ranks per node."""
    reports = steps["half"].reports()
    assert places(reports) == [(f"gpu{1 + rank // 2:03d}", rank // 2, 2, rank % 2, 2, 4) for rank in range(4)]
    assert {report.env["CUDA_VISIBLE_DEVICES"] for report in reports.values()} == {"0,1"}


def test_slurm_speaks_of_ranks_by_default(steps: dict[str, Ended]) -> None:
    """SLURM_PROCID and its like, which are the agent's task, say the same of a worker as RANK and its like."""
    for rank, report in steps["half"].reports().items():
        assert report.numbers("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID", "SLURM_NTASKS") == (
            rank,
            rank % 2,
            rank // 2,
            4,
        )
        assert report.env["SLURM_STEP_TASKS_PER_NODE"] == "2(x2)"


def test_slurms_variables_can_be_kept(some_steps: dict[str, Ended]) -> None:
    """With --slurm-env keep the workers see what Slurm said to the one task of their node."""
    reports = some_steps["keep"].reports()
    names = ("RANK", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_NTASKS")
    assert [report.numbers(*names) for report in reports.values()] == [(0, 0, 0, 1), (1, 0, 0, 1)]


def test_slurms_variables_can_be_hidden(some_steps: dict[str, Ended]) -> None:
    """With --slurm-env hide nothing says that a worker is a task, and all that speaks of the job is left."""
    for report in some_steps["hide"].reports().values():
        of_tasks = re.compile(r"SLURM_(PROCID|LOCALID|NODEID|NTASKS|STEP_.*|GTIDS)|PMI.*")
        assert not [name for name in report.env if of_tasks.fullmatch(name)]
        assert report.env["SLURM_JOB_ID"] == some_steps["hide"].job.id


def test_isolated_workers_have_one_device_out_of_the_mask(some_steps: dict[str, Ended]) -> None:
    """With --virtual-local-rank each rank sees its own token of the mask that was there, as device 0."""
    reports = some_steps["isolated"].reports()
    assert [report.env["CUDA_VISIBLE_DEVICES"] for report in reports.values()] == ["3", "1"]
    assert [report.env["LOCAL_RANK"] for report in reports.values()] == ["0", "0"]


@pytest.mark.parametrize("name", ["bare", "container"])
def test_it_works_without_any_slurm_command(some_steps: dict[str, Ended], name: str) -> None:
    """Variables are enough: no srun or scontrol on PATH, no slurm.conf, and a host name that Slurm has never heard."""
    assert places(some_steps[name].reports()) == [("gpu001", 0, 2, 0, 1, 2), ("gpu002", 1, 2, 0, 1, 2)]


def test_the_container_was_one(some_steps: dict[str, Ended]) -> None:
    """There the nodes had another name indeed."""
    assert [report.host for report in some_steps["container"].reports().values()] == ["box", "box"]


def test_ranks_that_are_set_already_are_replaced_and_mentioned(some_steps: dict[str, Ended]) -> None:
    """RANK, WORLD_SIZE and their like of the user's shell do no harm, and a note says that they were there."""
    step = some_steps["bare"]
    said = "note: RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT are set already"
    assert len([line for line in step.ours if said in line]) == 1, step.output
    assert {report.env["MASTER_ADDR"] for report in step.reports().values()} == {"10.77.0.11"}


# A command, its status, and what is said. (It depends on the release whether srun has the job's CPUs per task.)
REFUSED = {
    "two_kinds": ("srun -N2 -n4 -c1 hpc-launch --nproc-per-node 4 probe.py", 78, "use srun --ntasks-per-node=1"),
    "two_kinds_on_one_node": (
        "srun -N1 -n2 -c1 hpc-launch --nproc-per-node 4 probe.py",
        78,
        "use srun --ntasks-per-node=1",
    ),
    "three_of_two": ("srun hpc-launch --nnodes 3 probe.py", 78, "--nnodes 3, but the step has 2"),
    "no_script": ("srun -N2 -n2 hpc-launch nowhere.py", 66, "no training script 'nowhere.py'"),
}


@pytest.fixture(scope="module")
def refused(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Ended]:
    """Steps that contradict themselves."""
    commands = {name: command for name, (command, *_) in REFUSED.items()}
    options = ("--nodes=2", "--ntasks=2", "--cpus-per-task=4")
    return run_commands(cluster, tmp_path_factory.mktemp("refused"), commands, *options)


@pytest.mark.parametrize("name", REFUSED)
def test_a_contradiction_ends_the_step_with_one_line(refused: dict[str, Ended], name: str) -> None:
    """What cannot be meant is said in one line for all tasks, and the step ends with the status for it."""
    _, status, words = REFUSED[name]
    step = refused[name]
    assert step.status == status, step.output
    assert len(step.ours) == 1, step.output
    assert words in step.ours[0]
    others = [line for line in step.output.splitlines() if line not in step.ours]
    assert all(line.startswith("srun: ") for line in others), step.output
    assert not step.logs.exists() or not list(step.logs.rglob("rank_*"))


# An agent that leaves its exit status; on the second node, or on that of $BAD, a command goes before it. Should it wait
# for the other, it is not to be for ten minutes.
AGENT = """
test $SLURM_NODEID != ${BAD:-1} || eval "$1"
shift
hpc-launch --join-timeout 90 "$@"
status=$?
echo $status >$NAME.agent.$SLURM_NODEID
exit $status
"""

# Two nodes of two GPUs, where something is wrong on one only: a command and its status.
ON_ONE_NODE = {
    "nnodes": ("srun sh on_second.sh 'export HPC_LAUNCH_NNODES=3' --nproc-per-node 1 probe.py", 78),
    "script": (
        "srun unshare --mount sh on_second.sh 'mount -t tmpfs none here' --nproc-per-node 1 here/script.py",
        66,
    ),
    "devices": (
        "srun sh on_second.sh 'export CUDA_VISIBLE_DEVICES=0' --nproc-per-node 2 probe.py",
        2,
    ),
    "leader": ("BAD=0 srun sh on_second.sh 'export HPC_LAUNCH_INTERFACE=ib0' --nproc-per-node 1 probe.py", 2),
}


@pytest.fixture(scope="module")
def on_one_node(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Ended]:
    """Steps of which only one node is wrong."""
    folder = tmp_path_factory.mktemp("on_one_node")
    (folder / "on_second.sh").write_text(AGENT)
    (folder / "here").mkdir()
    (folder / "here/script.py").touch()
    commands = {name: f"export NAME={name}; {command}" for name, (command, _) in ON_ONE_NODE.items()}
    return run_commands(cluster, folder, commands, "--nodes=2", "--gpus-per-node=2")


@pytest.mark.parametrize("name", ON_ONE_NODE)
def test_what_is_wrong_on_one_node_ends_all(on_one_node: dict[str, Ended], name: str) -> None:
    """Where only one node has a reason not to start, all end with its status instead of waiting, and it is named."""
    step, status = on_one_node[name], ON_ONE_NODE[name][1]
    agents = {path.name: int(path.read_text()) for path in step.logs.parent.glob(f"{name}.agent.*")}
    assert agents == {f"{name}.agent.0": status, f"{name}.agent.1": status}, step.output
    bad = "gpu001" if name == "leader" else "gpu002"
    assert len([line for line in step.ours if bad in line]) == 1, step.output


def test_the_tasks_of_an_array_do_not_meet(cluster: Cluster, tmp_path: Path) -> None:
    """Each task of an array is a run of its own, with a directory of its own, although all are on the same nodes."""
    # None goes on before all are there.
    script = "srun hpc-launch --nproc-per-node 1 probe.py --meet met met 6 $SLURM_ARRAY_TASK_ID"
    array = submit(cluster, tmp_path, script, "--array=0-2", "--nodelist=gpu[001-002]", "--ntasks=2")
    jobs = [ended(Job(cluster, f"{array.id}_{number}"), tmp_path) for number in range(3)]
    assert [job.state for job in jobs] == ["COMPLETED"] * 3, [job.output for job in jobs]
    for number in range(3):
        reports = JobTree(tmp_path / f"logs/{array.id}_{number}.0").reports()
        assert places(reports) == [("gpu001", 0, 2, 0, 1, 2), ("gpu002", 1, 2, 0, 1, 2)]
        assert {report.argv[-1] for report in reports.values()} == {str(number)}


def test_concurrent_steps_on_the_same_nodes_do_not_meet(some_cluster: Cluster, tmp_path: Path) -> None:
    """Two steps of one job at the same time on the same nodes are two runs."""
    # Neither goes on before the other is there.
    script = """
        srun --overlap hpc-launch --nproc-per-node 2 probe.py --meet one two 4 &
        srun --overlap hpc-launch --nproc-per-node 2 probe.py --meet two one 4 &
        wait %1 && wait %2
    """
    job = run_job(some_cluster, tmp_path, script, "--nodes=2")
    assert job.state == "COMPLETED", job.job.describe()
    trees = [JobTree(tmp_path / f"logs/{job.job.id}.{step}") for step in range(2)]
    meetings, masters = set(), set()
    for tree in trees:
        reports = tree.reports()
        assert places(reports) == [(f"gpu{1 + rank // 2:03d}", rank // 2, 2, rank % 2, 2, 4) for rank in range(4)]
        meetings |= {report.argv[1] for report in reports.values()}
        masters |= {report.env["MASTER_PORT"] for report in reports.values()}
    assert meetings == {"one", "two"}
    assert len(masters) == 2


HET_JOB = """#!/bin/bash
#SBATCH --nodes=1 --ntasks={0} --nodelist=gpu003
#SBATCH hetjob
#SBATCH --nodes=2 --ntasks={1} --nodelist=gpu001,gpu002
srun --het-group=0,1 {2}
"""


def test_a_heterogeneous_step_is_numbered_by_its_list(some_cluster: Cluster, tmp_path: Path) -> None:
    """Over two components, the second with the first hosts, nodes have the order of the list; a note says so."""
    job = run_job(some_cluster, tmp_path, HET_JOB.format(1, 2, "hpc-launch --nproc-per-node 1 probe.py"))
    assert job.state == "COMPLETED", job.job.describe()
    assert places(job.reports()) == [(f"gpu{1 + rank:03d}", rank, 3, 0, 1, 3) for rank in range(3)]
    assert any("SLURM_NODEID=1, but gpu001 is number 0" in line for line in job.ours), job.output


def test_tasks_of_a_heterogeneous_step_keep_their_numbers(cluster: Cluster, tmp_path: Path) -> None:
    """With several tasks per node each is the rank that Slurm says, of both components together."""
    job = run_job(cluster, tmp_path, HET_JOB.format(1, 3, AS_TASK))
    assert job.state == "COMPLETED", job.job.describe()
    reports = job.reports()
    hosts = [report.env["HPC_LAUNCH_HOST"] for report in reports.values()]
    assert hosts == ["gpu003", "gpu001", "gpu001", "gpu002"]
    assert as_tasks(reports) == list(enumerate((0, 0, 1, 0)))
    assert {report.env["WORLD_SIZE"] for report in reports.values()} == {"4"}


@pytest.mark.parametrize(
    ("options", "command", "hosts"),
    [
        ("--nodelist=gpu[003-004] --ntasks-per-node=1", "srun hpc-launch --nproc-per-node 1", ["gpu003", "gpu004"]),
        ("--nodelist=gpu003 --ntasks=1", "hpc-launch --nproc-per-node 2", ["gpu003", "gpu003"]),
        # Here the variables of the step that it was submitted from could be true.
        ("--nodelist=gpu002 --ntasks=1", "hpc-launch --nproc-per-node 2", ["gpu002", "gpu002"]),
    ],
    ids=["step", "batch", "same-node"],
)
def test_a_job_submitted_from_a_task_of_another_is_itself(
    cluster: Cluster, tmp_path: Path, options: str, command: str, hosts: list[str]
) -> None:
    """All variables of a task, inherited by a job that it submits, mislead neither that job's step nor its script."""
    project = tmp_path / "project"
    project.mkdir()
    write_probe(project)
    (project / "job.sh").write_text(f"#!/bin/bash\nexport POISON=$SLURM_STEP_NODELIST\n{command} probe.py\n")
    submission = f"cd project && sbatch --parsable {options} job.sh >id"
    script = f"export RANK=5 WORLD_SIZE=9\nsrun sh -c 'test $SLURM_PROCID = 0 || ({submission})'"
    outer = run_job(cluster, tmp_path, script, "--nodelist=gpu[001-002]", "--ntasks=2")
    assert outer.state == "COMPLETED", outer.job.describe()
    job = ended(Job(cluster, (project / "id").read_text().strip()), project)
    assert job.state == "COMPLETED", job.job.describe()
    reports = job.reports()
    assert [report.env["HPC_LAUNCH_HOST"] for report in reports.values()] == hosts
    assert {report.env["POISON"] for report in reports.values()} == {"gpu[001-002]"}
    nodes = list(dict.fromkeys(hosts))
    assert [report.numbers("RANK", "GROUP_RANK", "WORLD_SIZE") for report in reports.values()] == [
        (rank, nodes.index(host), 2) for rank, host in enumerate(hosts)
    ]


def told(ended: Ended) -> list[str]:
    """Return what the launcher itself has said."""
    return [line for line in ended.output.splitlines() if line.startswith("hpc-launch: ")]


def test_a_task_that_sees_its_own_gpu_only(steps: dict[str, Ended]) -> None:
    """That NCCL cannot use peer access is said once."""
    said = told(steps["gpu_per_task"])

    assert [mentions(line, "NCCL --gpu-bind=none") for line in said].count(True) == 1, said


def test_tasks_that_share_their_gpus(modern_cluster: Cluster, tmp_path: Path) -> None:
    """With --gres-flags=allow-task-sharing (Slurm 23.11) each task has a GPU of its own among those that all see."""
    flags = "--gpus-per-task=1 --gres-flags=allow-task-sharing"
    done = run_commands(modern_cluster, tmp_path, {"shared": f"srun -n2 {flags} {AS_TASK}"}, "--ntasks=2", "--gpus=2")

    assert [report.env["CUDA_VISIBLE_DEVICES"] for report in done["shared"].reports().values()] == ["0", "1"]
    assert not [line for line in told(done["shared"]) if "NCCL" in line]


def test_explain_speaks_once_for_all_tasks(steps: dict[str, Ended]) -> None:
    """One plan for the step, one reason where there is none, and what Slurm says anyway is named."""
    plan, refused = steps["explained"], steps["contradicted"]
    firsts = [line for line in plan.output.splitlines() if line.startswith("4 ranks")]

    assert (plan.status, refused.status) == (0, 78), refused.output
    assert len(firsts) == 1
    assert mentions(firsts[0], "2 gpu[001-002]")
    assert "--nnodes 2" in plan.output
    assert len(told(refused)) == 1


def test_gpus_that_nobody_asked_for(any_cluster: Cluster, tmp_path: Path) -> None:
    """The node has four, as Slurm knows, and this job none."""
    done = run_commands(any_cluster, tmp_path, {"none": "srun hpc-launch explain probe.py"}, "--nodelist=gpu001")
    notes = [line for line in done["none"].output.splitlines() if mentions(line, "note: gpu001 4 GPUs")]

    assert len(notes) == 1, done["none"].output
    assert "--gpus-per-node=4" in notes[0]


def test_more_tasks_than_gpus(steps: dict[str, Ended]) -> None:
    """Each node where that is so says it once, whatever started so many tasks."""
    assert [mentions(line, "3 2 GPUs --ntasks-per-node=2") for line in told(steps["more_gpus"])].count(True) == 1
