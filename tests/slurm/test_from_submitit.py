"""What submitit's users bring, on a real Slurm: arrays, folders with ids, their own executor, and mistakes."""

from __future__ import annotations

import re
from pathlib import Path

from tests.cluster import Cluster
from tests.slurm.python_support import run
from tests.support import mentions

# An array of three jobs of two ranks, each in a folder of its own, loaded again in every way; and mistakes.
ARRAY = """
def word(x):
    import submitit

    here = submitit.JobEnvironment()
    names = ("job_id", "global_rank", "local_rank", "node", "num_tasks", "num_nodes")
    return [x, os.environ["SLURM_JOB_ID"], os.environ["SETUP"], *(getattr(here, name) for name in names)]

def train(data, learning_rate=0.1):
    return data

def queue():
    return sorted(os.popen("squeue --noheader --states=all --format=%i").read().split())

options = dict(ranks_per_node=2, slurm_time=10, timeout_min=20, mem_gb=0.25, slurm_comment="here")
executor = hpc_launch.Executor("logs/%A/%a", setup="export SETUP='a b'", **options)
jobs = executor.map_array(word, [10, 20, 30])
array = jobs[0].job_id.partition("_")[0]
results = [job.results(timeout=400) for job in jobs]
tell(ids=[job.job_id for job in jobs], results=results, directories=[str(job.directory) for job in jobs])
comment = os.popen(f"scontrol --oneliner show job {array}_0").read()
tell(comment=comment)
loaded = hpc_launch.Job.load(array)
tell(ids=[job.job_id for job in loaded], results=[job.results(timeout=60) for job in loaded])
numbers = [found[0][1] for found in results]
directory = jobs[1].directory
os.mkdir("elsewhere")
os.chdir("elsewhere")
ids = [hpc_launch.Job.load(number) for number in numbers]
tell(ids=[one if isinstance(one, str) else [job.job_id for job in one] if isinstance(one, list) else one.job_id
          for one in ids], numbers=numbers, one=hpc_launch.Job.load(f"{array}_1").results(timeout=60),
     place=hpc_launch.Job.load(directory).job_id)

before, said = queue(), []
def refuse(*args, **kwargs):
    try:
        hpc_launch.submit(*args, **kwargs)
    except hpc_launch.errors.HpcLaunchError as error:
        said.append([type(error).__name__, str(error)])
refuse(train, "x", lerning_rate=1)
refuse(train)
refuse("trian.py", nodes=2)
refuse(train, "x", slurm_srun_args=["--mpi=none"])
refuse(train, "x", folder="logs/%a")
refuse(train, "x", folder="logs/%u")
refuse(train, "x", slurm_partion="main")
refuse(train, "x", slurm={"excldue": "gpu001"})
tell(said=said, same=before == queue())
"""


def test_an_array_in_folders_of_its_own(any_cluster: Cluster, tmp_path: Path) -> None:
    """It is loaded again as a list, and each job by its id, by Slurm's own number, and by its directory."""
    made, shown, loaded, elsewhere, refused = run(any_cluster, tmp_path, ARRAY)
    [array] = {job.partition("_")[0] for job in made["ids"]}
    ids = [f"{array}_{number}" for number in range(3)]

    assert made["ids"] == loaded["ids"] == ids
    assert made["directories"] == [str(tmp_path / f"logs/{array}/{number}/{array}_{number}.0") for number in range(3)]
    assert [[[one[0], *one[2:]] for one in ranks] for ranks in made["results"]] == [
        [[10 * number + 10, "a b", ids[number], rank, rank, 0, 2, 1] for rank in range(2)] for number in range(3)
    ]
    assert re.search(r" TimeLimit=00:10:00 .* Comment=here ", shown["comment"])
    assert loaded["results"] == made["results"]
    # The last job of an array has the array's own number.
    assert elsewhere["ids"] == [
        ids if number == array else job for job, number in zip(ids, elsewhere["numbers"], strict=True)
    ]
    assert (elsewhere["one"], elsewhere["place"]) == (made["results"][1], ids[1])
    kinds, texts = zip(*refused["said"], strict=True)
    assert kinds == ("UsageError", "UsageError", "ScriptError", *["UsageError"] * 3, "SlurmError", "SlurmError")
    assert "'learning_rate'?" in texts[0]
    assert [mentions(text, option) for text, option in zip(texts[6:], ("--partition?", "--exclude?"), strict=True)] == [
        True,
        True,
    ], texts
    assert refused["same"]


# A result that cannot be read by the caller: its class has gone, its file is damaged.
UNREADABLE = """
Path("seldom.py").write_text("class Thing(int):\\n    pass\\n")
sys.path.insert(0, os.getcwd())

def make():
    import seldom

    return seldom.Thing(7) if os.environ["RANK"] == "2" else int(os.environ["RANK"])

job = hpc_launch.submit(make, nodes=2, ranks_per_node=2, time=10, mem="300M")
job.wait(timeout=400)
sys.modules["seldom"] = None
[damaged] = job.directory.glob("attempt_0/*/rank_1.result.pkl")
damaged.write_bytes(damaged.read_bytes()[:-3])
try:
    job.results()
except hpc_launch.errors.ResultError as error:
    tell(results=error.results, files={rank: str(path) for rank, path in error.files.items()}, text=str(error))
tell(first=job.result(), last=job.result(rank=3), state=job.state)
"""


def test_unreadable_results_hide_no_others(any_cluster: Cluster, tmp_path: Path) -> None:
    """Of four ranks on two nodes two can be read, and two are named with their files."""
    error, alone = run(any_cluster, tmp_path, UNREADABLE)

    assert error["results"] == {"0": 0, "3": 3}
    assert [Path(error["files"][rank]).name for rank in ("1", "2")] == ["rank_1.result.pkl", "rank_2.result.pkl"]
    assert error["files"]["1"] in error["text"]
    assert alone == {"first": 0, "last": 3, "state": "COMPLETED"}


OWN = """
import submitit
from hpc_launch.submitit import ElasticTask

executor = submitit.AutoExecutor(folder="logs/%j")
executor.update_parameters(nodes=2, tasks_per_node=1, timeout_min=10, slurm_mem="300M")
job = executor.submit(ElasticTask(place, ranks_per_node=1))
directory = job.results()[0]["job_directory"]
loaded = hpc_launch.Job.load(directory)
tell(directory=directory, id=[job.job_id, loaded.job_id], ranks=[rank for rank, _ in loaded.results(timeout=60)])
executor = submitit.AutoExecutor(folder="together")
executor.update_parameters(nodes=1, tasks_per_node=1, timeout_min=10, slurm_mem="300M")
jobs = executor.submit_array([ElasticTask(pow, 2, power, log_dir="runs/%A-%a") for power in (3, 4)])
directories = [job.result()["job_directory"] for job in jobs]
array = hpc_launch.Job.load(jobs[0].job_id.partition("_")[0], "together")
tell(ids=[[one.job_id for one in many] for many in (jobs, array)], directories=directories,
     results=[job.results(timeout=60) for job in array])
"""


def test_ones_own_executor_with_ids_in_folders(any_cluster: Cluster, tmp_path: Path) -> None:
    """Its jobs and arrays are loaded again too; a task's own folder has fields as well."""
    one, many = run(any_cluster, tmp_path, OWN)
    array = many["ids"][0][0].partition("_")[0]

    assert one["directory"] == str(tmp_path / f"logs/{one['id'][0]}/{one['id'][0]}.0")
    assert (one["id"][0], one["ranks"]) == (one["id"][1], [0, 1])
    assert many["ids"] == [[f"{array}_0", f"{array}_1"]] * 2
    assert many["directories"] == [str(tmp_path / f"runs/{array}-{number}/{array}_{number}.0") for number in range(2)]
    assert many["results"] == [[8], [16]]


CANCELLED = """
executor = hpc_launch.Executor("logs/%j", cluster="allocation", nodes=2, ranks_per_node=1, setup="export SETUP=there")

def wait_in_vain():
    import submitit

    Path(f"up.{submitit.JobEnvironment().global_rank}.{os.environ['SETUP']}").touch()
    time.sleep(600)

job = executor.submit(wait_in_vain)
while len(list(Path().glob("up.?.there"))) < 2 and not job.done():
    time.sleep(0.1)
running = job.state
job.cancel()
error = job.exception(timeout=300)
tell(running=running, state=job.state, error=[type(error).__name__, error.state, error.exit_status],
     loaded=hpc_launch.Job.load(job.job_id).state)
"""


def test_a_step_of_an_allocation_is_cancelled(any_cluster: Cluster, tmp_path: Path) -> None:
    """As a job of Slurm's is; what it had before its start, by setup=, reached all of its nodes."""
    [said] = run(any_cluster, tmp_path, CANCELLED, before=["salloc", "--nodes=2", "--ntasks=2", "--quiet"])

    assert said == {
        "running": "RUNNING",
        "state": "CANCELLED",
        "error": ["JobFailed", "CANCELLED", 143],
        "loaded": "CANCELLED",
    }
