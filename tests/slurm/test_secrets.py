"""By which secrets the agents of a step know each other, and what is said where they have none in common."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.cluster import Cluster
from tests.slurm.steps_support import DEADLINE, Ended, step
from tests.support import LEAVE, mentions

WORKER = (
    """
import os, sys
print(f"rank {os.environ['RANK']} of {os.environ['WORLD_SIZE']}", flush=True)
if any(name.startswith(("HPC_LAUNCH_SECRET", "HPC_LAUNCH_STEP_SECRET")) for name in os.environ):
    print("a worker has a secret", flush=True)
"""
    + LEAVE
)

# Nodes that share neither home nor log directory; what is left on PATH is hpc-launch.
HOMES = 'export HOME=$PWD/home-$SLURM_NODEID; unset XDG_CONFIG_HOME; mkdir -p "$HOME";'
NO_HOME = "export HOME=/proc/none; unset XDG_CONFIG_HOME;"
LOGS = "--log-dir $PWD/logs-$SLURM_NODEID"
NO_MUNGE = 'PATH=$(dirname "$(command -v hpc-launch)");'
SECRET = "export HPC_LAUNCH_SECRET=0123456789abcdef0123456789abcdef;"
LAUNCH = "exec hpc-launch -v --nproc-per-node 1 --join-timeout 20"


def run(cluster: Cluster, folder: Path, before: str, options: str = "", *srun: str) -> Ended:
    """Run a script on two nodes, each of which does something before."""
    (folder / "worker.py").write_text(WORKER)
    return step(cluster, ["bash", "-c", f"{before} {LAUNCH} {options} worker.py"], *srun, cwd=folder)


def met(ended: Ended) -> tuple[int, bool, bool]:
    """Return the status, whether both ranks were of one world, and whether one of them had a secret."""
    together = all(f"rank {rank} of 2" in ended.console for rank in range(2))
    return ended.status, together, "a worker has a secret" in ended.console


def munge_of(cluster: Cluster, folder: Path) -> None:
    """Make commands of munge that ask the cluster's own daemon, as a site's ask theirs."""
    (folder / "bin").mkdir()
    for name in ("munge", "unmunge"):
        command = folder / "bin" / name
        command.write_text(f'#!/bin/sh\nexec /usr/bin/{name} --socket={cluster.run_dir}/munge/socket "$@"\n')
        command.chmod(0o755)


# What nodes have, and the secret that the first of them names when that is all.
WAYS = {
    "a shared home": (NO_MUNGE, LOGS, "key file"),
    "a shared log directory": (HOMES + NO_MUNGE, "", "key file"),
    "a shared log directory and no home": (NO_HOME + NO_MUNGE, "", "key file"),
    "munge": ("PATH=$PWD/bin:$PATH;" + HOMES, LOGS, "munge"),
    "a variable": (
        "export HPC_LAUNCH_SECRET=0123456789abcdef0123456789abcdef;" + HOMES + NO_MUNGE,
        LOGS,
        "HPC_LAUNCH_SECRET",
    ),
    "no proof at all": (HOMES + NO_MUNGE, LOGS + " --insecure-rendezvous", "--insecure-rendezvous"),
}


@pytest.mark.parametrize("way", WAYS)
def test_agents_meet_by_what_they_share(some_cluster: Cluster, tmp_path: Path, way: str) -> None:
    """One thing in common is enough, whatever else a container, a cleaned environment or a node keeps apart."""
    before, options, named = WAYS[way]
    munge_of(some_cluster, tmp_path)
    ended = run(some_cluster, tmp_path, before, options)

    assert (met(ended), named in ended.console) == ((0, True, False), True), ended.describe()


def test_a_step_without_the_environment_of_its_job(some_cluster: Cluster, tmp_path: Path) -> None:
    """`srun --export=NONE` takes HOME and PATH away; the log directory is there."""
    (tmp_path / "worker.py").write_text(WORKER)
    program = some_cluster.run(["sh", "-c", "command -v hpc-launch"], cwd=tmp_path).stdout.strip()
    command = [program, "--nproc-per-node", "1", "worker.py"]
    ended = step(some_cluster, command, "--export=NONE", cwd=tmp_path)

    assert met(ended) == (0, True, False), ended.describe()


def test_a_step_that_hpc_launch_starts_has_a_secret_of_its_own(some_cluster: Cluster, tmp_path: Path) -> None:
    """From an allocation of the login node, for nodes that share nothing else; it is in no argument and no record."""
    (tmp_path / "worker.py").write_text(WORKER)
    start = "export HPC_LAUNCH_STEP_SECRET=; hpc-launch -v --nproc-per-node 1 --join-timeout 20 worker.py"
    done = some_cluster.run(
        ["salloc", "-Q", "--nodes=2", "bash", "-c", start], cwd=tmp_path, check=False, timeout=DEADLINE
    )
    ended = Ended(done.returncode, done.stdout + done.stderr, tmp_path / "logs")

    assert (met(ended), "HPC_LAUNCH_STEP_SECRET" in ended.console) == ((0, True, False), True), ended.describe()


def test_nothing_at_all_is_said_in_one_line(tmp_path: Path, python: str) -> None:
    """At once, with the documented status and what to do, the safe way first."""
    (tmp_path / "worker.py").write_text(WORKER)
    environ = {"HOME": "/proc/none", "PATH": "/nowhere"}
    command = [python, "-m", "hpc_launch", "--hosts", "one,two", "--node-rank", "0", "--start", "exec", "worker.py"]
    done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, check=False)
    (line,) = done.stderr.splitlines()

    assert done.returncode == 77, done.stderr
    assert mentions(line, "secret")
    assert line.index("openssl rand -hex 32") < line.index("--insecure-rendezvous")


def test_different_secrets_are_said_in_one_line(some_cluster: Cluster, tmp_path: Path) -> None:
    """The line names what this agent has; the status is that of agents that do not know each other."""
    ended = run(some_cluster, tmp_path, HOMES + NO_MUNGE, LOGS)
    lines = [line for line in ended.console.splitlines() if mentions(line, "hpc-launch gpu001 secret")]

    assert ended.status in (69, 77), ended.describe()
    assert lines, ended.describe()
    assert "home-1/.config/hpc-launch/key" in lines[0]


def test_plain_torchrun_proves_itself_too(some_cluster: Cluster, tmp_path: Path) -> None:
    """With hpc-launch merely installed, by the variable alone."""
    (tmp_path / "worker.py").write_text(WORKER)
    command = "exec torchrun --nnodes 2 --nproc-per-node 1 --rdzv-backend slurm --rdzv-id own worker.py"
    ended = step(some_cluster, ["bash", "-c", f"{SECRET} {HOMES} {command}"], cwd=tmp_path)

    assert met(ended) == (0, True, True), ended.describe()
