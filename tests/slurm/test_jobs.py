"""Functions and scripts as jobs of a real Slurm, submitted from Python."""

from __future__ import annotations

import json
import os
import shlex
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from hpc_launch.records import history
from tests.cluster import Cluster, Job
from tests.slurm.jobs_support import DEADLINE, clean_environment
from tests.slurm.python_support import run, told, write_program
from tests.slurm.submit_support import poison
from tests.support import wait_for

# Three jobs of two nodes with four ranks each, in one array: one is well, in one a rank raises, in one a rank crashes.
THREE = """
class Wrong(Exception):
    def __init__(self, rank, more):
        super().__init__(f"rank {rank} is wrong")
        self.rank, self.more = rank, more
    def __reduce__(self):
        return Wrong, (self.rank, self.more)

def fine(*, factor):
    return [*place(), factor * int(os.environ["RANK"])]

def raises():
    print("here is", place())
    if place()[0] == 5:
        raise Wrong(5, {"x": 1})
    time.sleep(600)

def crashes():
    if place()[0] == 3:
        os.kill(os.getpid(), signal.SIGSEGV)
    time.sleep(600)

executor = hpc_launch.Executor("logs", nodes=2, ranks_per_node=4, time=10, mem="400M")
with executor.batch():
    jobs = [executor.submit(fine, factor=10), executor.submit(raises), executor.submit(crashes)]
tell(ids=[job.job_id for job in jobs])
tell(results=jobs[0].results(timeout=400), first=jobs[0].result(), state=jobs[0].state)
try:
    jobs[1].results(timeout=400)
except Wrong as error:
    cause = error.__cause__
    tell(rank=error.rank, more=error.more, text=str(error), trace=str(cause), where=[cause.rank, cause.host, cause.log])
error = jobs[2].exception(timeout=400)
facts = dict(rank=error.rank, host=error.host, signal=error.signal, status=error.status, log=error.log)
tell(kind=type(error).__name__, **facts)
tell(heads=sorted(name for name in sys.modules if name in ("torch", "submitit", "numpy")))
"""

# The same jobs from another Python, which has none of their classes: the exception is told in words.
LATER = """
first, second, third = (hpc_launch.Job.load(name) for name in sys.argv[1:])
tell(results=first.results(timeout=60), directory=str(first.directory))
error = second.exception(timeout=60)
tell(kind=type(error).__name__, text=str(error), trace=str(error.__cause__), log=second.logs(5))
third = hpc_launch.Job.load(str(third.directory))
tell(kind=type(third.exception(timeout=60)).__name__, states=[job.state for job in (first, second, third)])
"""


@pytest.fixture(scope="module")
def three(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """Run the three jobs, once for all tests."""
    folder = tmp_path_factory.mktemp("three") / "it's $HOME & more"
    return folder, run(cluster, folder, THREE)


def test_results_are_in_the_order_of_the_ranks(cluster: Cluster, three: tuple[Path, list[dict[str, Any]]]) -> None:
    """Two nodes of four ranks give eight results; the caller has imported nothing heavy for that."""
    results = three[1][1]["results"]

    assert [(rank, value) for rank, _, value in results] == [(rank, 10 * rank) for rank in range(8)]
    hosts = [host for _, host, _ in results]
    assert hosts == sorted(hosts)
    assert len(set(hosts)) == 2
    assert set(hosts) <= set(cluster.nodes)
    assert (three[1][1]["first"], three[1][1]["state"]) == (results[0], "COMPLETED")
    assert three[1][-1]["heads"] == []


def test_an_exception_is_raised_as_what_it_was(three: tuple[Path, list[dict[str, Any]]]) -> None:
    """Rank 5 raises, and so does the caller: the same class, its attributes, the traceback of the node, and whose."""
    folder, words = three
    raised = words[2]

    assert (raised["rank"], raised["more"], raised["text"]) == (5, {"x": 1}, "rank 5 is wrong")
    assert "raise Wrong(5" in raised["trace"]
    assert f'File "{folder}/program.py", line' in raised["trace"]
    rank, host, log = raised["where"]
    assert rank == 5
    assert log == str(folder / f"logs/{words[0]['ids'][1]}.0/attempt_0/{host}/rank_5.err")


def test_a_crash_names_rank_host_and_signal(cluster: Cluster, three: tuple[Path, list[dict[str, Any]]]) -> None:
    """A SIGSEGV leaves no exception: what is raised says where it was."""
    crash = three[1][3]

    assert (crash["kind"], crash["rank"], crash["signal"], crash["status"]) == ("WorkerFailed", 3, "SIGSEGV", 139)
    assert crash["host"] in cluster.nodes
    assert crash["log"].endswith(f"{crash['host']}/rank_3.err")


def test_a_job_survives_the_python_that_has_submitted_it(
    cluster: Cluster, three: tuple[Path, list[dict[str, Any]]]
) -> None:
    """Another one loads the jobs by their ids, or by the path of the job directory."""
    folder, words = three
    write_program(folder, LATER, "later.py")
    done = cluster.run([sys.executable, "later.py", *words[0]["ids"]], cwd=folder, timeout=DEADLINE)
    first, second, third = told(done.stdout)

    assert first == {"results": words[1]["results"], "directory": str(folder / f"logs/{words[0]['ids'][0]}.0")}
    assert second["kind"] in ("Wrong", "WorkerFailed")
    assert "rank 5 is wrong" in second["text"]
    assert "raise Wrong(5" in second["trace"]
    assert "here is [5, " in second["log"]
    assert third == {"kind": "WorkerFailed", "states": ["COMPLETED", "FAILED", "FAILED"]}


# ---- what arrives

INNER = """
def look():
    return dict(os.environ), len(os.sched_getaffinity(0)), os.getcwd()

executor = hpc_launch.Executor("logs", ranks_per_node=2, cpus_per_task=2, time=10, mem="300M")
job = executor.submit(look)
tell(id=job.job_id, looks=job.results(timeout=400))
"""


def test_a_job_from_inside_a_poisoned_step_is_clean(modern_accounting_cluster: Cluster, tmp_path: Path) -> None:
    """As from a notebook in a job with one CPU: nothing of that job, or of what is set there, reaches the ranks."""
    cluster = modern_accounting_cluster
    line = write_program(tmp_path, INNER)
    poisons = {**poison(), "MASTER_ADDR": "10.1.1.1"}
    words = " ".join(f"{name}={shlex.quote(value)}" for name, value in poisons.items())
    script = f"srun --ntasks=1 --cpus-per-task=1 env {words} {shlex.join(line)} >said 2>errors"
    with clean_environment():
        outer = cluster.sbatch(script, "--nodes=1", "--cpus-per-task=1", "--mem=200M", cwd=tmp_path)
    outer.wait(2 * DEADLINE)
    errors = (tmp_path / "errors").read_text()
    [inner] = told((tmp_path / "said").read_text()) or [{}]
    assert inner, errors + outer.describe()
    wrong = {
        (name, environ[name])
        for environ, _, _ in inner["looks"]
        for name, bad in poisons.items()
        if environ.get(name) == bad
    }
    environs = [environ for environ, _, _ in inner["looks"]]

    assert wrong == set()
    assert inner["id"] != outer.id
    assert [environ["RANK"] for environ in environs] == ["0", "1"]
    assert {environ["SLURM_JOB_ID"] for environ in environs} == {inner["id"]}
    assert {environ["SLURM_CPUS_PER_TASK"] for environ in environs} == {"2"}
    assert {directory for _, _, directory in inner["looks"]} == {str(tmp_path)}
    record = Job(cluster, inner["id"]).record()
    assert (record["NumCPUs"], record["NumNodes"], record["JobName"]) == ("2", "1", "look"), record


ALLOCATION = """
executor = hpc_launch.Executor("logs", nodes=2, ranks_per_node=1)
job = executor.submit(place)
tell(id=job.job_id, job=os.environ["SLURM_JOB_ID"], results=job.results(timeout=400), state=job.state)
executor.update_parameters(launch={"nnodes": "1:2"})
tell(results=executor.submit(place).results(timeout=400))
def jobs():
    return os.popen("squeue --noheader --states=all --format=%i").read().split()
tell(jobs=jobs())
"""


def test_inside_an_allocation_nothing_is_queued(modern_accounting_cluster: Cluster, tmp_path: Path) -> None:
    """In the shell of salloc a step on its nodes runs the function at once; a range of nodes is one there, too."""
    cluster = modern_accounting_cluster
    before = cluster.run(["squeue", "--noheader", "--states=all", "--format=%i"]).stdout.split()
    first, ranged, second = run(cluster, tmp_path, ALLOCATION, before=["salloc", "--nodes=2", "--ntasks=2", "--quiet"])

    assert first["id"].startswith(first["job"] + "-")
    assert [rank for rank, _ in first["results"]] == [0, 1]
    assert len({host for _, host in first["results"]}) == 2
    assert first["state"] == "COMPLETED"
    assert ranged["results"] == first["results"]
    assert set(second["jobs"]) - set(before) == {first["job"]}


VANILLA = """
import submitit
from hpc_launch.submitit import ElasticTask

Path("train.py").write_text("import os, sys; print('train', *sys.argv[1:], os.environ['RANK'], flush=True)")
executor = submitit.AutoExecutor("logs", cluster="slurm")
executor.update_parameters(nodes=2, tasks_per_node=1, timeout_min=10, cpus_per_task=2, slurm_mem="300M")
script = executor.submit(ElasticTask("train.py", "--lr", "1e-3", ranks_per_node=2))
executor.update_parameters(nodes=1)
function = executor.submit(ElasticTask(lambda x: [x, *place()], "x", ranks_per_node=2))
def paths(job):
    first, *others = job.results()
    return first["job_directory"], others
directory, others = paths(script)
lines = sorted(path.read_text().strip() for path in Path(directory).glob("attempt_0/*/rank_*.out"))
tell(lines=lines, others=others, none=hpc_launch.Job.load(directory).results())
tell(results=hpc_launch.Job.load(paths(function)[0]).results())
"""


def test_ones_own_submitit_executor(cluster: Cluster, tmp_path: Path) -> None:
    """An ElasticTask brings a script, or a function, to all ranks of what somebody's own AutoExecutor submits."""
    script, function = run(cluster, tmp_path, VANILLA)

    assert script == {"lines": [f"train --lr 1e-3 {rank}" for rank in range(4)], "others": [None], "none": [None] * 4}
    assert [(word, rank) for word, rank, _ in function["results"]] == [("x", 0), ("x", 1)]


# ---- many

ARRAY = """
from hpc_launch.api.slurm_poller import everybody

count = int(sys.argv[1])
executor = hpc_launch.Executor("logs", time=20, mem="200M", cpus_per_task=1)
begin = time.monotonic()
jobs = executor.map_array(lambda x: x * x, range(count))
results = [job.result(timeout=1800) for job in jobs]
tell(results=results, ids=[job.job_id for job in jobs], questions=everybody.questions, seconds=time.monotonic() - begin)
"""


@pytest.mark.parametrize("count", [pytest.param(3), pytest.param(50, marks=pytest.mark.soak)])
def test_an_array_of_small_jobs(cluster: Cluster, tmp_path: Path, count: int) -> None:
    """All results are right, and the controller is not asked more often for many jobs than for one."""
    write_program(tmp_path, ARRAY)
    with clean_environment():
        done = cluster.run([sys.executable, "program.py", str(count)], cwd=tmp_path, check=False, timeout=2000)
    assert done.returncode == 0, done.stdout + done.stderr
    [said] = told(done.stdout)
    [array] = {job.partition("_")[0] for job in said["ids"]}

    assert said["results"] == [number * number for number in range(count)]
    assert said["ids"] == [f"{array}_{number}" for number in range(count)]
    # A question and its pause of at least a second, whatever the number of jobs.
    assert said["questions"] <= 2 + 2 * said["seconds"]
    assert "questions" in said


# ---- again

TURNS = """
from submitit.helpers import DelayedSubmission

class Count:
    def __init__(self):
        self.seen = []

    def __call__(self, steps):
        attempt = int(os.environ["HPC_LAUNCH_ATTEMPT"])
        begin = len(self.seen)
        while len(self.seen) < steps:
            self.seen.append(attempt)
            Path(f"up.{attempt}.{os.environ['RANK']}").touch()
            while len(self.seen) % 10 == 0 and not Path(f"go.{attempt}").exists():
                time.sleep(0.05)
        return begin, self.seen

    def checkpoint(self, steps):
        return DelayedSubmission(self, steps)

job = hpc_launch.submit(Count(), 30, nodes=2, ranks_per_node=2, time=30, mem="300M")
Path("job.new").write_text(job.job_id)
Path("job.new").rename("job")
tell(results=job.results(timeout=900), state=job.state)
"""


def test_a_callable_with_a_checkpoint_goes_on(cluster: Cluster, tmp_path: Path) -> None:
    """Preempted once, and told of its time limit once, it goes on where rank 0 was, and all ranks have the result."""
    line = write_program(tmp_path, TURNS)
    with clean_environment(), (tmp_path / "said").open("w") as said:
        program = cluster.popen(line, cwd=tmp_path, stdout=said, stderr=said)

    def describe() -> str:
        logs = [*tmp_path.glob("logs/submitted/*_log.*"), tmp_path / "said"]
        return "\n".join(f"== {path}\n{path.read_text(errors='replace')}" for path in logs)

    def await_up(attempt: int) -> None:
        names = [f"up.{attempt}.{rank}" for rank in range(4)]
        wait_for(lambda: all((tmp_path / name).exists() for name in names), DEADLINE, describe)

    with program:
        wait_for((tmp_path / "job").exists, DEADLINE, describe)
        job = Job(cluster, (tmp_path / "job").read_text())
        ledger = tmp_path / f"logs/{job.id}.0/requeues.jsonl"
        await_up(0)
        nodes = job.record()["NodeList"]
        cluster.sbatch("exit 0", "--partition=urgent", f"--nodelist={nodes}", "--exclusive").wait(DEADLINE)
        await_up(1)
        cluster.run(["scontrol", "update", f"jobid={job.id}", "timelimit=1"])
        wait_for(lambda: ledger.exists() and ledger.read_text().count("\n") == 2, DEADLINE, describe)
        cluster.run(["scontrol", "update", f"jobid={job.id}", "timelimit=30"])
        (tmp_path / "go.2").touch()
        assert program.wait(DEADLINE) == 0, describe()
    [end] = told((tmp_path / "said").read_text())
    entries = [json.loads(text) for text in ledger.read_text().splitlines()]

    assert [(entry["reason"], entry["counted"]) for entry in entries] == [("preempt", False), ("notice", True)], (
        describe()
    )
    assert end["state"] == "COMPLETED"
    [(begin, seen), *others] = end["results"]
    assert all(result == [begin, seen] for result in others), "all ranks went on from what rank 0 has saved"
    assert len(seen) == 30
    assert (sorted(set(seen)), seen) == ([0, 1, 2], sorted(seen))
    assert begin == seen.index(2)


# ---- ends that are nobody's exception

ENDS = """
waiting = hpc_launch.submit(time.sleep, 600, nodes=2, time=10, mem="200M")
while waiting.state != "RUNNING":
    time.sleep(0.1)
tell(early=waiting.wait(0.2), done=waiting.done())
waiting.cancel()
error = waiting.exception(timeout=300)
tell(kind=type(error).__name__, state=error.state, again=waiting.state)
held = hpc_launch.submit(time.sleep, 600, time=10, slurm={"hold": True})
record = held.record
while record is None:
    time.sleep(0.1)
    record = held.record
tell(state=held.state, reason=record.reason)
held.cancel()
error = held.exception(timeout=300)
tell(kind=type(error).__name__, state=error.state)
try:
    hpc_launch.submit(time.sleep, 1, nodes=99, time=10, partition="main")
except Exception as refused:
    tell(kind=type(refused).__name__, text=str(refused))
"""


def test_a_job_that_slurm_ends(modern_accounting_cluster: Cluster, tmp_path: Path) -> None:
    """Cancelled while it runs, and while it waits; and one that Slurm does not take."""
    timeout, running, held, waiting, refused = run(modern_accounting_cluster, tmp_path, ENDS)

    assert timeout == {"early": False, "done": False}
    assert running == {"kind": "JobFailed", "state": "CANCELLED", "again": "CANCELLED"}
    assert held == {"state": "PENDING", "reason": "JobHeldUser"}
    assert waiting == {"kind": "JobFailed", "state": "CANCELLED"}
    assert refused["kind"] == "SlurmError"
    assert refused["text"].startswith("Slurm ")


# Sums up over all ranks again and again, until a file says that it is enough.
LOSES = """
def train():
    import torch
    import torch.distributed as dist

    dist.init_process_group("gloo")
    rank, attempt = dist.get_rank(), os.environ["HPC_LAUNCH_ATTEMPT"]
    Path(f"here-{attempt}-{rank}").write_text(place()[1])
    enough = torch.zeros(1)
    while not enough[0]:
        enough[0] = float(rank == 0 and Path("enough").exists())
        dist.all_reduce(enough)
        time.sleep(0.05)
    return [*place(), dist.get_world_size()]

job = hpc_launch.submit(train, nodes="2:3", spares=1, mem="400M", time=10)
tell(directory=str(job.directory))
tell(results=job.results(timeout=400), state=job.state, text=str(job), load=hpc_launch.Job.load(job.job_id).result())
"""


def test_results_of_a_job_that_loses_nodes(some_cluster: Cluster, tmp_path: Path) -> None:
    """A node is killed bit by bit, then the agent on the first one: results are those of the last attempt's ranks."""

    def describe() -> str:
        logs = "".join(f"\n== {path}\n{path.read_text()}" for path in tmp_path.glob("logs/submitted/*_log.*"))
        return f"{(tmp_path / 'said').read_text()}{logs}\n{some_cluster.diagnose()}"

    def trains_on(attempt: int, *nodes: str) -> None:
        def here() -> list[str]:
            return [path.read_text() for path in sorted(tmp_path.glob(f"here-{attempt}-*"))]

        wait_for(lambda: here() == [*nodes], DEADLINE, describe)

    with clean_environment(), (tmp_path / "said").open("w") as stream:
        process = some_cluster.popen(write_program(tmp_path, LOSES), cwd=tmp_path, stdout=stream, stderr=stream)
    try:
        trains_on(0, "gpu001", "gpu002", "gpu003")
        directory = Path(told((tmp_path / "said").read_text())[0]["directory"])
        agents = dict(history.read_history(directory).runs[0].agents)
        # submitit's process, which the agent is tied to, and soon everything else there.
        os.kill(int(Path(f"/proc/{agents['gpu003']}/stat").read_text().rpartition(")")[2].split()[1]), signal.SIGKILL)
        trains_on(1, "gpu001", "gpu002", "gpu004")
        some_cluster.kill("gpu003")
        os.kill(agents["gpu001"], signal.SIGKILL)
        trains_on(2, "gpu002", "gpu004")
        (tmp_path / "enough").touch()
        status = process.wait(DEADLINE)
    finally:
        process.kill()

    assert status == 0, describe()
    end = told((tmp_path / "said").read_text())[1]
    assert end["results"] == [[0, "gpu002", 2], [1, "gpu004", 2]], describe()
    assert (end["load"], end["state"]) == ([0, "gpu002", 2], "COMPLETED"), describe()
    assert "without gpu[001,003], lost" in end["text"], describe()
