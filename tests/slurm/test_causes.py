"""Whatever makes a job fail is found as the root cause, although all other ranks fail within the same second."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from hpc_launch.inspection import job_report
from hpc_launch.records import failure_messages, history, root_cause
from hpc_launch.records.history_model import Attempt
from hpc_launch.records.root_cause import RootCause
from tests.cluster import Cluster, ClusterConfig
from tests.cluster.releases import DEFAULT, Release
from tests.slurm.check_support import PRETEND
from tests.slurm.jobs_support import clean_environment, run_job
from tests.slurm.steps_support import DEADLINE, Ended, step, tree
from tests.support import wait_for

# How often each story is told; all but the first are the soak.
REPETITIONS = [pytest.param(number, marks=[pytest.mark.soak] if number else []) for number in range(10)]

# One story an attempt. Ranks that have no part in it sit in an all-reduce, and die of it when a rank is missing.
WORKER = """
import atexit, ctypes, datetime, json, os, pathlib, signal, subprocess, sys, time

rank, attempt = int(os.environ["RANK"]), int(os.environ["TORCHELASTIC_RESTART_COUNT"])
story = json.loads(sys.argv[1])[attempt]

if story == "import" and rank > 1:
    import no_such_module

import torch
import torch.distributed as dist
from torch.utils.data import DataLoader

dist.init_process_group("gloo")

class Broken(torch.utils.data.Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        raise OSError(f"sample {index} is corrupt")

def train():
    raise ValueError(f"loss is nan in step {rank}")

def eat():
    kept = []
    for _ in range(300):
        kept.append(bytearray(os.urandom(1 << 20) * 10))
    raise AssertionError("there is no memory limit")

def wait_for(name):
    deadline = time.monotonic() + 120
    while not pathlib.Path(name).exists() and time.monotonic() < deadline:
        time.sleep(0.01)

dist.barrier()
if story == "one" and rank == 2 or story == "all":
    train()
if story == "memory" and rank == 1:
    eat()
if story == "segfault" and rank == 3:
    ctypes.string_at(0)
if story == "killed" and rank == 0:
    subprocess.run(["kill", "-9", str(os.getpid())])
    time.sleep(600)
if story == "exit" and rank == 3:
    sys.exit(7)
if story == "loader" and rank == 1:
    next(iter(DataLoader(Broken(), num_workers=1)))
if story == "slow":  # two fail by themselves, and it takes them long to be gone
    if rank == 3:
        atexit.register(wait_for, "second")
        atexit.register(pathlib.Path("first").touch)
        train()
    if rank == 0:
        wait_for("first")
        atexit.register(time.sleep, 600)
        atexit.register(pathlib.Path("second").touch)
        raise KeyError("a later one")
if story == "wait":
    pathlib.Path(f"waits-{rank}").touch()
    if rank == 0:
        time.sleep(600)
dist.all_reduce(torch.ones(1))
sys.exit("nobody has failed")
"""

STORIES = ["one", "all", "memory", "segfault", "killed", "exit", "import", "loader"]

# What is to be found: the headline, where the exception was raised, and what else there is to say.
HEADLINES = {
    "one": r"rank 2 .*gpu002.*\b0\b.*\b1\b.*: ValueError: loss is nan in step 2",
    "all": r"ranks? [0-3,-]+ .*gpu.*: ValueError: loss is nan in step [0-3]",
    "memory": r"rank 1 .*gpu001.*\b1\b.*SIGKILL.*\(1\.\d GiB\).*--mem",
    "segfault": r"rank 3 .*gpu002.*\b1\b.*SIGSEGV.*memory.*",
    "killed": r"rank 0 .*gpu001.*\b0\b.*SIGKILL.*",
    "exit": r"rank 3 .*gpu002.*\b1\b.*\b7: sys\.exit\(7\)",
    "import": r"ranks? [23-]+ .*gpu002.*: ModuleNotFoundError: No module named 'no_such_module'",
    "loader": r"rank 1 .*gpu001.*\b1\b.*: OSError: sample 0 is corrupt \(.*DataLoader worker process 0\)",
    "slow": r"rank 3 .*gpu002.*\b1\b.*: ValueError: loss is nan in step 3",
}


@pytest.fixture(scope="module")
def limited() -> Iterator[Cluster]:
    """Return a cluster of two nodes that enforces memory limits."""
    with Cluster(ClusterConfig(nodes=2, memory_limits=True, release=DEFAULT)) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def any_limited(any_release: Release, request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """Return `limited`, and then a cluster like it of the newest release of Slurm that there is."""
    if any_release == DEFAULT:
        yield request.getfixturevalue("limited")
        return
    with Cluster(ClusterConfig(nodes=2, memory_limits=True, release=any_release)) as cluster:
        yield cluster


@dataclass(frozen=True)
class Told:
    """A step that has ended, with what its job directory says."""

    ended: Ended
    attempts: tuple[Attempt, ...]
    causes: tuple[RootCause | None, ...]

    def describe(self) -> str:
        """Tell everything, for the message of a failure."""
        blocks = ["\n    ".join(failure_messages.failure_block(cause)) for cause in self.causes if cause is not None]
        return "\n".join([*blocks, self.ended.describe()])


def launch(
    cluster: Cluster,
    folder: Path,
    stories: list[str],
    *options: str,
    start: str = "auto",
    env: dict[str, str] | None = None,
) -> Told:
    """Tell stories, one an attempt, on two nodes of two ranks."""
    (folder / "train.py").write_text(WORKER)
    command = ["hpc-launch", f"--start={start}", "--nproc-per-node=2", f"--max-restarts={len(stories) - 1}", "train.py"]
    ended = step(cluster, [*command, json.dumps(stories)], "--mem=1500", *options, cwd=folder, env=env)
    return read(ended)


def read(ended: Ended) -> Told:
    """Read the job directory of a step, the only one."""
    (folder,) = [path for path in ended.logs.iterdir() if not path.is_symlink()]
    told = history.read_history(folder)
    assert told.unreadable == (), ended.describe()
    return Told(ended, told.attempts, tuple(root_cause.root_cause_of(told, attempt) for attempt in told.attempts))


def check(told: Told, attempt: int, story: str) -> None:
    """See that the story is told as it was, and that all other ranks are accounted for."""
    cause = told.causes[attempt]
    assert cause is not None, told.describe()
    assert re.fullmatch(HEADLINES[story], failure_messages.failure_headline(cause)), f"{story}\n{told.describe()}"
    blamed = sum(len(group.workers) for group in cause.groups)
    assert (len(cause.groups), sum(cause.followers.values()) + blamed) == (1 + (story == "slow"), 4), told.describe()


@pytest.mark.parametrize("start", ["auto", pytest.param("exec", marks=pytest.mark.soak)])
@pytest.mark.parametrize("repetition", REPETITIONS)
def test_the_root_cause(limited: Cluster, tmp_path: Path, start: str, repetition: int) -> None:
    """Each kind of failure is found, in a job that starts again after each; the last is told at length, once."""
    stories = STORIES[repetition % 8 :] + STORIES[: repetition % 8]
    told = launch(limited, tmp_path, stories, start=start)
    assert len(told.attempts) == len(stories), told.describe()
    for attempt, story in enumerate(stories):
        check(told, attempt, story)
    blocks = re.findall(r"hpc-launch: attempt 7: .*", told.ended.console)

    assert len(blocks) == 1, told.describe()
    assert re.fullmatch(f"hpc-launch: attempt 7: {HEADLINES[stories[-1]]}", blocks[0]), told.describe()


@pytest.mark.parametrize("repetition", REPETITIONS)
def test_a_clock_that_is_off(limited: Cluster, tmp_path: Path, repetition: int) -> None:
    """On a node whose clock is 90 s ahead a rank fails first, on the other node a rank fails later."""
    fake = tmp_path / "fake"
    fake.mkdir()
    (fake / "sitecustomize.py").write_text(PRETEND)
    ahead = 90 if repetition % 2 == 0 else -90
    (fake / "pretended.json").write_text(json.dumps({"gpu002": {"clock": ahead}}))
    told = launch(limited, tmp_path, ["slow"], env={"PYTHONPATH": str(fake)})
    (attempt,) = told.attempts
    check(told, 0, "slow")
    cause = told.causes[0]
    assert cause is not None
    moments = [root_cause.failure_time(group.first) for group in cause.groups]
    started = [worker.started or 0.0 for worker in attempt.workers]

    assert [group.first.rank for group in cause.groups] == [3, 0], told.describe()
    assert moments == sorted(moments), told.describe()
    assert max(started) - min(started) < 60, told.describe()


@pytest.mark.parametrize("repetition", REPETITIONS)
def test_a_node_that_is_lost(limited: Cluster, tmp_path: Path, repetition: int) -> None:
    """All processes of a node die at once: the node is named, and no rank is blamed."""
    if repetition:
        limited.reset()  # brings the node back; nobody needs it after the last time
    script = "srun --ntasks-per-node=1 hpc-launch --nproc-per-node=2 --max-restarts=0 train.py '[\"wait\"]'"
    (tmp_path / "train.py").write_text(WORKER)
    job = limited.sbatch(script, "--nodes=2", f"--output={tmp_path}/job.out", cwd=tmp_path)
    wait_for(
        lambda: len(list(tmp_path.glob("waits-*"))) == 4,
        DEADLINE,
        lambda: f"not all ranks have begun\n{job.describe()}\n{tree(tmp_path / 'logs')}",
    )
    limited.kill("gpu002")
    block = wait_for(
        lambda: re.findall(r"hpc-launch: attempt 0: .*", (tmp_path / "job.out").read_text()),
        DEADLINE,
        lambda: f"no cause is told\n{job.describe()}\n{tree(tmp_path / 'logs')}",
    )
    told = read(Ended(1, (tmp_path / "job.out").read_text(), tmp_path / "logs"))
    cause = told.causes[0]

    assert len(block) == 1, told.describe()
    assert re.fullmatch(r"hpc-launch: attempt 0: lost gpu002: .*", block[0]), told.describe()
    assert cause is not None, repetition
    assert (cause.lost, cause.groups) == ("gpu002", ()), told.describe()


def test_slurm_ends_a_job_for_its_memory(any_limited: Cluster, tmp_path: Path) -> None:
    """The console has the rank that was killed, and Slurm's word for it is in status.

    Slurm says so of the job where the batch script's own processes had too little; of others it says so of their step.
    """
    (tmp_path / "train.py").write_text(WORKER)
    script = f"hpc-launch --standalone --nproc-per-node=2 train.py '{json.dumps(['memory'])}'"
    done = run_job(any_limited, tmp_path, script, "--nodelist=gpu001", "--mem=1500")
    (job,) = [path for path in (tmp_path / "logs").iterdir() if not path.is_symlink()]
    asked = ["hpc-launch", "status", "--log-dir", str(tmp_path / "logs"), done.job.id]
    with clean_environment():
        status = any_limited.run(asked, check=False).stdout
    report = job_report.report_on_job(job).report

    assert done.state == "OUT_OF_MEMORY", done.output
    assert re.search(HEADLINES["memory"], done.output), done.output
    assert "OUT_OF_MEMORY" in status
    assert re.search(HEADLINES["memory"], " ".join(one.text for one in report.story)), report.story
