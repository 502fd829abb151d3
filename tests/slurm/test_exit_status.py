"""Each way in which a job ends: what srun, `scontrol show job` and sacct say of it, here and in docs/exit-status.md."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest

from tests.cluster import Cluster
from tests.cluster.jobs import FINAL
from tests.slurm.jobs_support import DEADLINE, clean_environment
from tests.slurm.signals_support import STAYER, Running
from tests.slurm.steps_support import TIME_IS_UP
from tests.support import wait_for

PAGE = Path(__file__).parents[2] / "docs/exit-status.md"
SECTION = "What Slurm says afterwards"
HEADER = (
    "How the job ends",
    "srun",
    "`scontrol show job`: JobState, ExitCode, DerivedExitCode",
    "`sacct -X`: State, ExitCode",
    "`sacct -j JOB.0`: State, ExitCode",
)

SCRIPT = "stayer.py"

# As in the templates, but for the status that is written down on the way.
BATCH = """
trap : TERM
srun hpc-launch {launcher}
status=$?
echo $status >status
exit $status
"""

# Jobs of this partition are never preempted, so that the one which is does not take others along.
UNTOUCHED = "--partition=urgent"


class Said(NamedTuple):
    """What is said of a job that has ended, in the order of the columns.

    Attributes:
        srun: the exit status of srun.
        job: JobState, ExitCode and DerivedExitCode of `scontrol show job`.
        record: State and ExitCode of the job in the accounting database.
        step: those of its first step.
    """

    srun: str
    job: str
    record: str
    step: str


class Way(NamedTuple):
    """A way in which a job ends.

    Attributes:
        name: it, in the words of the page.
        said: what is said afterwards.
        cause: makes it end when its ranks are up; None if they never are.
        launcher: what hpc-launch is given.
        options: of sbatch.
        ranks: how many there are; one on each node, or two on the only one.
    """

    name: str
    said: Said
    cause: Callable[[Running], object] | None
    launcher: str = f"--nproc-per-node=1 {SCRIPT} --on SIGTERM 0"
    options: tuple[str, ...] = (UNTOUCHED,)
    ranks: int = 1


def factory(running: Running) -> psutil.Process:
    """Find what the first worker was forked from."""
    parent = running.worker(0).parent()
    assert parent is not None
    return parent


def preempt(running: Running) -> None:
    """Have a job that goes first take the GPUs of this one."""
    node = f"--nodelist={running.job.record()['NodeList']}"
    running.cluster.sbatch("exit 0", "--partition=urgent", "--gres=gpu:4", node, cwd=running.folder)


TIME_LIMIT = Way(
    "the time limit",
    Said("143", "TIMEOUT 143:0 143:0", "TIMEOUT 0:0", "FAILED 15:0"),
    lambda running: running.cluster.run(["scontrol", "update", f"jobid={running.job.id}", TIME_IS_UP]),
)

WAYS = (
    Way(
        "all ranks end with 0",
        Said("0", "COMPLETED 0:0 0:0", "COMPLETED 0:0", "COMPLETED 0:0"),
        Running.release,
        launcher=f"--nproc-per-node=2 {SCRIPT} --until go",
        ranks=2,
    ),
    Way(
        "a notice (`scancel -s USR1 JOB`), after which all ranks leave with 0",
        Said("0", "COMPLETED 0:0 0:0", "COMPLETED 0:0", "COMPLETED 0:0"),
        lambda running: running.job.signal("USR1"),
        launcher=f"--nproc-per-node=2 {SCRIPT} --on SIGUSR1 0",
        ranks=2,
    ),
    Way(
        "a rank ends with 3",
        Said("3", "FAILED 3:0 3:0", "FAILED 3:0", "FAILED 3:0"),
        lambda running: running.release("fail"),
        launcher=f"--nproc-per-node=2 {SCRIPT} --on SIGTERM 0 --fail 1",
        ranks=2,
    ),
    Way(
        "`kill -9` of a rank",
        Said("137", "FAILED 137:0 137:0", "FAILED 9:0", "FAILED 9:0"),
        lambda running: running.worker(0).kill(),
    ),
    Way(
        "an option that hpc-launch does not have",
        Said("2", "FAILED 2:0 2:0", "FAILED 2:0", "FAILED 2:0"),
        None,
        launcher=f"--no-such-option {SCRIPT}",
    ),
    Way(
        "no training script",
        Said("66", "FAILED 66:0 66:0", "FAILED 66:0", "FAILED 66:0"),
        None,
        launcher="missing.py",
    ),
    Way(
        "`scancel JOB`",
        Said("143", "CANCELLED 143:0 143:0", "CANCELLED by UID 0:0", "FAILED 15:0"),
        lambda running: running.job.cancel(),
    ),
    Way(
        "`scancel -s KILL JOB`",
        Said("143", "CANCELLED 143:0 143:0", "CANCELLED by UID 0:0", "FAILED 15:0"),
        lambda running: running.job.signal("KILL"),
    ),
    Way(
        "`scancel -s TERM JOB`",
        Said("143", "FAILED 143:0 143:0", "FAILED 15:0", "FAILED 15:0"),
        lambda running: running.job.signal("TERM"),
    ),
    Way(
        "`scancel -s KILL JOB.0`",
        Said("137", "FAILED 137:0 0:9", "FAILED 9:0", "CANCELLED 0:9"),
        lambda running: running.cluster.run(["scancel", "--signal=KILL", f"{running.job.id}.0"]),
    ),
    TIME_LIMIT,
    Way(
        "a preemption, with `--no-requeue`",
        Said("143", "PREEMPTED 143:0 143:0", "PREEMPTED 0:0", "FAILED 15:0"),
        preempt,
        options=("--no-requeue", "--gres=gpu:4"),
    ),
    Way(
        "`kill -9` of an agent, one of two",
        Said("137", "FAILED 137:0 69:0", "FAILED 9:0", "FAILED 69:0"),
        lambda running: running.agent(1).kill(),
        options=(UNTOUCHED, "--nodes=2"),
        ranks=2,
    ),
    Way(
        "`kill -9` of the only agent",
        Said("137", "FAILED 137:0 0:9", "FAILED 9:0", "CANCELLED 0:9"),
        lambda running: running.agent(0).kill(),
    ),
    Way(
        "`kill -9` of an agent's worker factory",
        Said("137", "FAILED 137:0 137:0", "FAILED 9:0", "FAILED 9:0"),
        lambda running: factory(running).kill(),
    ),
)


@dataclass(frozen=True)
class Ending:
    """How a job really ended.

    Attributes:
        said: what is said of it.
        derived: DerivedExitCode, by scontrol and by sacct.
        story: for the message of a failure.
    """

    said: Said
    derived: tuple[str, str]
    story: str


def submit(cluster: Cluster, folder: Path, way: Way) -> Running:
    """Submit a job that is to end this way."""
    folder.mkdir()
    (folder / SCRIPT).write_text(STAYER)
    with clean_environment():
        job = cluster.sbatch(BATCH.format(launcher=way.launcher), *way.options, cwd=folder)
    return Running(cluster, job, folder, way.ranks)


def is_up(running: Running) -> bool:
    """Wait until all ranks are up; false if the job ends before."""
    files = [running.folder / f"up.{rank}" for rank in range(running.ranks)]

    def up() -> bool:
        return all(file.exists() for file in files)

    wait_for(lambda: up() or running.job.state() in FINAL, DEADLINE, running.describe, pause=0.2)
    return up()


def account(cluster: Cluster, *which: str) -> dict[str, str]:
    """Ask the accounting database about a job or a step, which may not know yet that it has ended."""
    names = ("State", "ExitCode", "DerivedExitCode")
    found: list[str] = []

    def known() -> bool:
        command = ["sacct", "--noheader", "--parsable2", f"--format={','.join(names)}", *which]
        found[:] = cluster.run(command).stdout.splitlines()
        return len(found) == 1 and re.split(r"[ |]", found[0])[0] in FINAL

    wait_for(known, DEADLINE, lambda: f"sacct {' '.join(which)}: {found}\n{cluster.diagnose()}", pause=0.2)
    record = dict(zip(names, found[0].split("|"), strict=True))
    return record | {"State": re.sub(r"(?<= by )\d+$", "UID", record["State"])}


def ending(running: Running) -> Ending:
    """Wait for the end of a job, and for the accounting database to know of it."""
    running.job.wait(DEADLINE)
    job = running.job.record()
    record = account(running.cluster, "--allocations", f"--jobs={running.job.id}")
    step = account(running.cluster, f"--jobs={running.job.id}.0")
    status = running.folder / "status"
    said = Said(
        status.read_text().strip() if status.exists() else "",
        f"{job['JobState']} {job['ExitCode']} {job['DerivedExitCode']}",
        f"{record['State']} {record['ExitCode']}",
        f"{step['State']} {step['ExitCode']}",
    )
    return Ending(said, (job["DerivedExitCode"], record["DerivedExitCode"]), running.describe())


@pytest.fixture(scope="module")
def endings(any_accounting_cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Ending]:
    """Let a job end in each way, all at the same time."""
    top = tmp_path_factory.mktemp("endings")
    # That one first: Slurm looks at time limits every half a minute.
    ways = sorted(WAYS, key=lambda way: way is not TIME_LIMIT)
    jobs = {way: submit(any_accounting_cluster, top / str(number), way) for number, way in enumerate(ways)}
    for way, running in jobs.items():
        if way.cause is not None and is_up(running):
            way.cause(running)
    return {way.name: ending(jobs[way]) for way in reversed(ways)}


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.name)
def test_what_slurm_says_afterwards(endings: Mapping[str, Ending], way: Way) -> None:
    """However a job ends, the job, its record and its step say what the table says."""
    found = endings[way.name]
    ours, sacct = found.derived

    assert found.said == way.said, found.story
    # sacct's is that of the moment at which the job ended: Slurm may not have counted the step by then.
    assert sacct in {ours, "0:0"}, found.story


def test_the_page_says_so() -> None:
    """docs/exit-status.md has this table: these rows, in this order, and no others."""
    section = PAGE.read_text(encoding="utf-8").partition(f"\n## {SECTION}\n")[2].partition("\n## ")[0]
    header, line, *rows = [
        tuple(cell.strip() for cell in line.strip("|").split("|"))
        for line in section.splitlines()
        if line.startswith("|")
    ]

    assert header == HEADER
    assert set(line) == {"---"}
    assert rows == [(way.name, *way.said) for way in WAYS]
