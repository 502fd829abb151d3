"""Whole jobs on a real cluster: they train, and end as they should."""

import re
from pathlib import Path

import pytest

from tests.cluster import Cluster
from tests.slurm.jobs_support import DEADLINE, Ended, run_job, submit, write_probe
from tests.support import mentions, wait_for

CHECKOUT = Path(__file__).parents[2]

# Each agent leaves its exit status.
WITNESSED = """'hpc-launch "$@"; status=$?; echo $status >agent.$SLURM_PROCID; exit $status' --"""

# What every worker has, and two jobs have differently. (The threads go by the CPUs that each was given.)
OF_THE_JOB = {
    "MASTER_PORT",
    "HPC_LAUNCH_JOB_DIRECTORY",
    "TORCHELASTIC_ERROR_FILE",
    "TORCHELASTIC_RUN_ID",
    "OMP_NUM_THREADS",
}


def agents(folder: Path) -> dict[int, int]:
    """Return the exit statuses that the agents left, by task."""
    return {int(path.suffix[1:]): int(path.read_text()) for path in folder.glob("agent.*")}


@pytest.fixture(scope="module")
def plain(newest_cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Ended:
    """The job that this is all about: one line, one agent on each of three nodes."""
    folder = tmp_path_factory.mktemp("plain")
    script = "srun hpc-launch probe.py --reduce --lr 1e-3 'two words'"
    return run_job(newest_cluster, folder, script, "--nodes=3", "--gpus-per-node=2")


def test_a_job_of_one_line_completes(plain: Ended) -> None:
    """`srun hpc-launch train.py` on three nodes ends well."""
    assert (plain.state, plain.status) == ("COMPLETED", 0), plain.job.describe()


def test_every_gpu_has_a_rank_and_every_rank_its_place(plain: Ended, newest_cluster: Cluster) -> None:
    """Three nodes of two GPUs have six ranks, numbered node by node from the first host on."""
    sizes = ("WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE", "ROLE_WORLD_SIZE")
    names = ("RANK", "LOCAL_RANK", "GROUP_RANK", "ROLE_RANK", *sizes)
    places = {rank: (report.host, *report.numbers(*names)) for rank, report in plain.reports().items()}
    assert places == {
        rank: (newest_cluster.nodes[rank // 2], rank, rank % 2, rank // 2, rank, 6, 2, 3, 6) for rank in range(6)
    }


def test_all_ranks_reduce_to_the_right_sum(plain: Ended) -> None:
    """torch.distributed works across the nodes, with nothing but the environment."""
    assert [report.total for report in plain.reports().values()] == [21] * 6


def test_all_ranks_know_the_first_node_as_master(plain: Ended) -> None:
    """MASTER_ADDR and MASTER_PORT are the same on all ranks, and are the first node's."""
    masters = {(report.env["MASTER_ADDR"], report.env["MASTER_PORT"]) for report in plain.reports().values()}
    assert [address for address, _ in masters] == ["10.77.0.11"]


def test_the_script_gets_its_arguments(plain: Ended) -> None:
    """What follows the script is the script's own, on every rank and word for word."""
    assert {tuple(report.argv) for report in plain.reports().values()} == {("--reduce", "--lr", "1e-3", "two words")}


def test_workers_keep_the_devices_that_slurm_gave(plain: Ended) -> None:
    """All workers of a node see its devices as Slurm numbered them, LOCAL_RANK choosing one."""
    assert {report.env["CUDA_VISIBLE_DEVICES"] for report in plain.reports().values()} == {"0,1"}


def test_there_is_a_log_pair_for_each_rank(plain: Ended, newest_cluster: Cluster) -> None:
    """By default logs/JOB.STEP/attempt_0/HOST has stdout and stderr of each rank."""
    assert plain.tree.path.name == f"{plain.job.id}.0"
    expected = [
        f"attempt_0/{newest_cluster.nodes[rank // 2]}/rank_{rank}.{stream}"
        for rank in range(6)
        for stream in ("out", "err")
    ]
    assert plain.tree.files("rank_*") == sorted(expected)


@pytest.fixture(scope="module")
def tasks(newest_cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Ended:
    """The same on one task per GPU; the script is told what Slurm said to the task."""
    folder = tmp_path_factory.mktemp("tasks")
    script = "srun sh -c 'exec hpc-launch probe.py $SLURM_PROCID $SLURM_LOCALID $SLURM_NODEID'"
    return run_job(newest_cluster, folder, script, "--nodes=3", "--gpus-per-node=2", "--ntasks-per-node=2")


def test_with_a_task_per_gpu_each_task_is_the_rank_that_slurm_says(tasks: Ended) -> None:
    """RANK is SLURM_PROCID, LOCAL_RANK is SLURM_LOCALID, and GROUP_RANK the node's number."""
    assert tasks.state == "COMPLETED", tasks.job.describe()
    reports = tasks.reports()
    assert list(reports) == list(range(6))
    for report in reports.values():
        assert tuple(map(int, report.argv)) == report.numbers("RANK", "LOCAL_RANK", "GROUP_RANK")


def test_both_ways_give_the_script_the_same_variables(plain: Ended, tasks: Ended) -> None:
    """A script cannot tell one agent per node from one task per rank."""
    # What Slurm sets for the one job only, or otherwise; what the shell and the tests do.
    others = re.compile(r"SLURM_(?!(PROCID|LOCALID|NODEID|NTASKS|STEP_NUM_TASKS|GTIDS)$).*|_|PWD|OLDPWD|PYTEST_.*")

    def variables(report: dict[str, str]) -> dict[str, str]:
        return {name: value for name, value in report.items() if name not in OF_THE_JOB and not others.fullmatch(name)}

    reports = plain.reports(), tasks.reports()
    for rank in range(6):
        one, other = (dict(found[rank].env) for found in reports)
        assert one.keys() & other.keys() >= OF_THE_JOB
        assert variables(one) == variables(other)


@pytest.mark.parametrize(
    ("nodes", "ending", "said"),
    [
        (3, "5 42", (42, "rank 5 on gpu003 (local rank 1) failed with exit status 42")),
        (2, "2 -9", (137, "rank 2 on gpu002 (local rank 0) failed with SIGKILL")),
    ],
)
def test_the_job_ends_with_the_status_of_the_worker_that_failed(
    some_cluster: Cluster, tmp_path: Path, nodes: int, ending: str, said: tuple[int, str]
) -> None:
    """One worker fails while the others would go on for long: every agent ends with its status, and so the job."""
    status, words = said
    rank = ending.split(maxsplit=1)[0]
    command = f"srun sh -c {WITNESSED} --nproc-per-node 2 probe.py --exit {ending} --sleep {rank}"
    job = run_job(some_cluster, tmp_path, command, f"--nodes={nodes}")
    assert (job.state, job.job.record()["ExitCode"]) == ("FAILED", f"{status}:0"), job.job.describe()
    assert agents(tmp_path) == dict.fromkeys(range(nodes), status), job.output
    assert len([line for line in job.ours if words in line]) == 1, job.output


# As in a container that has no srun.
REFUSED = """
bin=$(dirname "$(command -v hpc-launch)")
PATH=$bin:/nowhere hpc-launch --nproc-per-node 2 --log-dir typed probe.py 'two words' >refused 2>&1
echo $? >status
sed -n "s/.* with '\\(srun .*[^,]\\)'\\(, or .*\\)\\?$/\\1/p" refused >line
sh ./line
"""


def refusal(folder: Path) -> str:
    """Return the one line with which hpc-launch refused to run, after seeing that it did, and where to."""
    assert (folder / "status").read_text() == "78\n"
    text = (folder / "refused").read_text()
    assert re.fullmatch(r"hpc-launch: .*\n", text), text
    return text


def assert_typed_line_worked(folder: Path, nodes: tuple[str, ...]) -> None:
    """See that the line which was printed starts what had been asked for: two workers on each node."""
    line = (folder / "line").read_text()
    (tree,) = [path for path in (folder / "typed").iterdir() if not path.is_symlink()]
    found = sorted(str(path.relative_to(tree)) for path in tree.rglob("rank_*.out"))
    assert found == sorted(f"attempt_0/{nodes[rank // 2]}/rank_{rank}.out" for rank in range(2 * len(nodes))), line
    assert '"argv": ["two words"]' in (tree / found[0]).read_text()


@pytest.mark.parametrize("options", ["--nodes=3 --cpus-per-task=2", "--nodes=2 --ntasks-per-node=4"])
def test_without_srun_on_several_nodes_the_line_to_type_is_said(
    some_cluster: Cluster, tmp_path: Path, options: str
) -> None:
    """In the batch script of a job of several nodes nothing runs where srun is not; the line that is said works."""
    job = run_job(some_cluster, tmp_path, REFUSED, *options.split())
    assert "batch script" in refusal(tmp_path)
    assert job.state == "COMPLETED", job.job.describe()
    assert_typed_line_worked(tmp_path, some_cluster.nodes[: int(job.job.record()["NumNodes"])])


def test_nothing_trains_on_the_login_node(some_cluster: Cluster, tmp_path: Path) -> None:
    """In salloc's shell on a login node nothing runs where srun is not; the line that is printed instead works."""
    write_probe(tmp_path)
    done = some_cluster.run(["salloc", "--nodes=2", "bash", "-c", REFUSED], cwd=tmp_path, check=False, timeout=DEADLINE)
    assert mentions(refusal(tmp_path), "head")
    assert done.returncode == 0, done.stdout + done.stderr
    assert_typed_line_worked(tmp_path, some_cluster.nodes[:2])


def test_a_job_of_one_node_needs_no_srun(some_cluster: Cluster, tmp_path: Path) -> None:
    """In the batch script of a job of one node `hpc-launch train.py` just runs, in a step of its own."""
    job = run_job(some_cluster, tmp_path, "hpc-launch probe.py", "--nodes=1", "--gpus-per-node=2")
    assert job.state == "COMPLETED", job.job.describe()
    assert job.tree.path.name == f"{job.job.id}.0"
    places = [report.numbers("RANK", "LOCAL_RANK", "WORLD_SIZE", "GROUP_RANK") for report in job.reports().values()]
    assert places == [(0, 0, 2, 0), (1, 1, 2, 0)]


STUBBORN = """
import os, pathlib, signal, time

signal.signal(signal.SIGTERM, signal.SIG_IGN)
if os.fork() == 0:
    os.setsid()
pathlib.Path(f"ready.{os.getpid()}").touch()
time.sleep(1000)
"""


def test_a_cancelled_job_leaves_nothing_behind(some_cluster: Cluster, tmp_path: Path) -> None:
    """After scancel no process of the job is left, even of workers that ignore SIGTERM, and the nodes stay good."""
    (tmp_path / "stubborn.py").write_text(STUBBORN)
    job = submit(some_cluster, tmp_path, "srun hpc-launch --nproc-per-node 2 --grace 2 stubborn.py", "--nodes=2")
    wait_for(lambda: len(list(tmp_path.glob("ready.*"))) == 8, DEADLINE, job.describe)
    job.cancel()
    assert job.wait(DEADLINE).state == "CANCELLED", job.describe()
    some_cluster.wait_idle(DEADLINE)
    assert [some_cluster.processes(node) for node in some_cluster.nodes] == [[]] * 4
    assert some_cluster.run(["sinfo", "--noheader", "--list-reasons"]).stdout == ""


def test_the_example_learns_digits(cluster: Cluster, tmp_path: Path) -> None:
    """The README's job: DDP on two nodes of two ranks reads over 95 % of the digits rightly."""
    example = CHECKOUT / "examples/digits/train.py"
    command = f"srun --cpus-per-task=2 hpc-launch --nproc-per-node 2 {example}"
    job = run_job(cluster, tmp_path, command, "--nodes=2", "--cpus-per-task=2")
    assert job.state == "COMPLETED", job.job.describe()
    score = re.search(r"\[gpu001:0\] digits: accuracy (\S+) after \d+ epochs on 4 ranks", job.output)
    assert score, job.output
    assert float(score[1]) > 0.95
    assert (tmp_path / "checkpoints/digits.pt").exists()
