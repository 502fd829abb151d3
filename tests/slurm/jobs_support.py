"""What the tests of jobs share: a training script that reports, and jobs whose reports can be read."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.cluster import Cluster, Job
from tests.conftest import FOREIGN
from tests.support import LEAVE

# Two cores may have to import torch some twenty times, while others do the same.
DEADLINE = 240.0

SCRIPT = "probe.py"

# The training script of most tests. It says in one line what it was given. Its arguments:
#   --reduce      sum up rank + 1 over all ranks with torch
#   --meet A B N  leave a file in A and wait for N files in B: whoever does so runs at the same time
#   --sleep R     sleep for long on all ranks but R
#   --exit R N    end rank R with status N, or by signal -N
PROBE = (
    """
import json, os, pathlib, signal, socket, sys, time

def given(name, count):
    where = sys.argv.index(name) + 1 if name in sys.argv else None
    return sys.argv[where:where + count] if where else None

def say(**facts):
    print(json.dumps(facts | {"env": dict(os.environ), "argv": sys.argv[1:], "host": socket.gethostname()}), flush=True)

rank = int(os.environ["RANK"])
if "--reduce" in sys.argv:
    import torch
    import torch.distributed as dist

    dist.init_process_group("gloo")
    total = torch.tensor([dist.get_rank() + 1])
    dist.all_reduce(total)
    say(total=int(total))
    dist.destroy_process_group()
else:
    say()
if meeting := given("--meet", 3):
    mine, theirs = map(pathlib.Path, meeting[:2])
    mine.mkdir(exist_ok=True)
    (mine / str(os.getpid())).touch()  # the nodes number processes together
    deadline = time.monotonic() + 120
    while not theirs.is_dir() or len(list(theirs.iterdir())) < int(meeting[2]):
        if time.monotonic() > deadline:
            sys.exit(f"nobody came to {theirs}")
        time.sleep(0.05)
ending = given("--exit", 2)
if ending and rank == int(ending[0]):
    status = int(ending[1])
    if status < 0:
        os.kill(os.getpid(), -status)
    sys.exit(status)
sleeping = given("--sleep", 1)
if sleeping and rank != int(sleeping[0]):
    time.sleep(600)
"""
    + LEAVE
)


@dataclass(frozen=True)
class Report:
    """What one rank said.

    Attributes:
        env: its environment.
        argv: its arguments.
        host: the host it ran on, by its own word.
        total: the sum over all ranks of rank + 1, if it was asked for.
    """

    env: Mapping[str, str]
    argv: Sequence[str]
    host: str
    total: int | None = None

    def numbers(self, *names: str) -> tuple[int, ...]:
        """Return variables that are numbers."""
        return tuple(int(self.env[name]) for name in names)


@dataclass(frozen=True)
class JobTree:
    """A job directory, read from the outside.

    Attributes:
        path: where it is.
    """

    path: Path

    def files(self, pattern: str = "*") -> list[str]:
        """List the files in it whose names match, by their paths below it, links aside."""
        found = [Path(folder, name) for folder, _, names in os.walk(self.path) for name in names]
        return sorted(str(path.relative_to(self.path)) for path in found if path.match(pattern))

    def reports(self, attempt: int = 0) -> dict[int, Report]:
        """Return what each rank of an attempt said, by rank, after seeing that it stands where it should."""
        found = {}
        for path in (self.path / f"attempt_{attempt}").glob("*/rank_*.out"):
            report = Report(**json.loads(path.read_text()))
            host, rank = path.parent.name, path.stem.removeprefix("rank_")
            assert (report.env["HPC_LAUNCH_HOST"], report.env["RANK"]) == (host, rank), path
            found[int(rank)] = report
        return dict(sorted(found.items()))

    def events(self, host: str) -> list[dict[str, Any]]:
        """Return the events of a node."""
        return [json.loads(line) for line in (self.path / f"nodes/{host}/events.jsonl").read_text().splitlines()]

    def plan(self) -> dict[str, Any]:
        """Return the plan as run."""
        plan: dict[str, Any] = json.loads((self.path / "job.json").read_text())
        return plan


@dataclass(frozen=True)
class Ended:
    """A job or a command that has ended.

    Attributes:
        status: its exit status.
        output: what it wrote to the console.
        logs: the directory with its job directory.
        state: what Slurm says of the job, COMPLETED for example; empty for one command of it.
        job: the job.
    """

    status: int
    output: str
    logs: Path
    state: str
    job: Job

    @property
    def tree(self) -> JobTree:
        """The job directory, the only one."""
        found = [path for path in self.logs.iterdir() if not path.is_symlink()] if self.logs.is_dir() else []
        assert len(found) == 1, f"{found} in {self.logs}\n{self.output}"
        return JobTree(found[0])

    @property
    def ours(self) -> list[str]:
        """What hpc-launch itself said.

        srun passes lines on in pieces of about a kilobyte, stdout and stderr apart: a line of hpc-launch's can stand
        behind a piece of a long one of a worker's.
        """
        return re.findall(r"hpc-launch: .*", self.output)

    def reports(self) -> dict[int, Report]:
        """Return what each rank said, after seeing that all went well."""
        assert self.status == 0, self.output
        return self.tree.reports()


def write_probe(folder: Path) -> None:
    """Put the training script there."""
    (folder / SCRIPT).write_text(PROBE)


@contextlib.contextmanager
def clean_environment() -> Iterator[None]:
    """Do for fixtures of a whole module what the fixture of this name does for each test."""
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if FOREIGN.fullmatch(name):
                patch.delenv(name)
        yield


def submit(cluster: Cluster, folder: Path, script: str, *options: str) -> Job:
    """Submit a batch script that runs in a folder, next to the training script."""
    write_probe(folder)
    with clean_environment():
        return cluster.sbatch(script, *options, cwd=folder)


def ended(job: Job, folder: Path, deadline: float = DEADLINE) -> Ended:
    """Wait for the end of a job that was submitted in a folder."""
    result = job.wait(deadline)
    status = 128 + result.signal if result.signal else result.exit_code
    return Ended(status, result.output, folder / "logs", result.state, job)


def run_job(cluster: Cluster, folder: Path, script: str, *options: str) -> Ended:
    """Run a batch script in a folder, to its end."""
    return ended(submit(cluster, folder, script, *options), folder)


def run_commands(cluster: Cluster, folder: Path, commands: Mapping[str, str], *options: str) -> dict[str, Ended]:
    """Run commands one after another in one job, to their ends.

    Args:
        cluster: Where.
        folder: Where the training script will be, and beside it the log directory of each command, named after it.
        commands: For the shell, by name.
        options: Of the job.
    """
    lines = [
        f"( export HPC_LAUNCH_LOG_DIR=$PWD/{name}; {command} ) >{name}.console 2>&1; echo $? >{name}.status"
        for name, command in commands.items()
    ]
    # Each of them may take its time.
    whole = ended(submit(cluster, folder, "\n".join(lines), *options), folder, 2 * DEADLINE)
    assert (whole.state, whole.status) == ("COMPLETED", 0), whole.job.describe()

    def text(name: str) -> str:
        return (folder / name).read_text(errors="replace")

    return {
        name: Ended(int(text(f"{name}.status")), text(f"{name}.console"), folder / name, "", whole.job)
        for name in commands
    }
