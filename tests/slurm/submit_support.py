"""What the tests of submissions share: a fast stand-in for the launcher, and `hpc-launch submit` on a cluster."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hpc_launch.slurm import commands
from hpc_launch.slurm.job import JobRecord, read_job
from tests.cluster import Cluster, Job
from tests.cluster.jobs import FINAL
from tests.support import wait_for

# What keeps the contract of templates, and starts the script without importing torch: for what Slurm does.
TEMPLATE = """#!/bin/bash
#
# Start the script by itself.

#SBATCH --job-name=train
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=1
#SBATCH --mem=100M
#SBATCH --time=60
#SBATCH --output=%x-%j.out
#SBATCH --open-mode=append

set -euo pipefail

trap : TERM

# The CPUs are repeated because srun of Slurm 22.05 to 23.02 does not take them over from the job.
srun ${SLURM_CPUS_PER_TASK:+--cpus-per-task="$SLURM_CPUS_PER_TASK"} ./not-hpc-launch "${@:-train.py}"
"""

LAUNCHER = f"""#!{sys.executable}
import os, sys
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""

# Writes what it was given into a directory: a file for each job and task. Its arguments do nothing but
#   --end N       end with status N, or by signal -N
#   --limit       let the job's time limit be now
#   --wait FILE   wait until there is one
SCRIPT = """
import json, os, pathlib, sys, time

words = sys.argv[1:]
facts = {"argv": words, "env": dict(os.environ), "cpus": len(os.sched_getaffinity(0)), "cwd": os.getcwd()}
name = os.environ["SLURM_JOB_ID"] + "." + os.environ.get("SLURM_PROCID", "0")
print("begins", name, flush=True)
# The directory of submission; below it, since a job may run elsewhere.
place = pathlib.Path(os.environ["SLURM_SUBMIT_DIR"], "said")
place.mkdir(exist_ok=True)
(place / ("." + name)).write_text(json.dumps(facts))
(place / ("." + name)).rename(place / name)
if "--limit" in words:
    os.system("scontrol update jobid=$SLURM_JOB_ID endtime=now+3")
if "--wait" in words:
    file = pathlib.Path(words[words.index("--wait") + 1])
    while not file.exists():
        time.sleep(0.05)
print("ends", flush=True)
if "--end" in words:
    status = int(words[words.index("--end") + 1])
    if status < 0:
        os.kill(os.getpid(), -status)
    sys.exit(status)
"""


def prepare(folder: Path) -> Path:
    """Put the script, the template and its launcher there."""
    folder.mkdir(exist_ok=True)
    (folder / "fast.sbatch").write_text(TEMPLATE)
    (folder / "train.py").write_text(SCRIPT)
    (folder / "not-hpc-launch").write_text(LAUNCHER)
    (folder / "not-hpc-launch").chmod(0o755)
    return folder


def command(*words: str) -> list[str]:
    """The words of `hpc-launch submit`."""
    return [sys.executable, "-m", "hpc_launch", "submit", *words]


def call(
    cluster: Cluster, folder: Path, *words: str, env: Mapping[str, str] | None = None, timeout: float = 240
) -> subprocess.CompletedProcess[str]:
    """Call `hpc-launch submit` on the head."""
    return cluster.run(command(*words), cwd=folder, env=env, check=False, timeout=timeout)


def fast(cluster: Cluster, folder: Path, *words: str, env: Mapping[str, str] | None = None) -> Job:
    """Submit a job from the fast template."""
    done = call(cluster, folder, "--parsable", "--template=./fast.sbatch", *words, env=env)
    assert done.returncode == 0, done.stderr
    return Job(cluster, done.stdout.strip())


def finished(job: Job) -> Job:
    """Wait until a job has completed."""
    result = job.wait(120)
    assert (result.state, result.exit_code) == ("COMPLETED", 0), job.describe()
    return job


def record(job: Job) -> JobRecord:
    """Return what the controller knows of a job, whatever its name is."""
    found = read_job(job.cluster.run(commands.show_job(job.id)).stdout)
    assert found is not None
    return found


def completed(job: Job) -> JobRecord:
    """Wait until a job has completed, whatever its name is."""
    found = wait_for(lambda: over if (over := record(job)).state in FINAL else None, 120, lambda: str(record(job)))
    assert found is not None
    assert (found.state, found.exit_code) == ("COMPLETED", 0), found
    return found


def said(folder: Path, job: str, rank: int = 0) -> dict[str, Any]:
    """Return what a task of a job has said."""
    facts: dict[str, Any] = json.loads((folder / "said" / f"{job}.{rank}").read_text())
    return facts


def one_line(done: subprocess.CompletedProcess[str]) -> str:
    """Return the one line with which a call was refused."""
    lines = [line for line in done.stderr.splitlines() if not line.startswith("hpc-launch: note: ")]
    assert (len(lines), done.stdout) == (1, ""), done
    assert lines[0].startswith("hpc-launch: "), done
    return lines[0].removeprefix("hpc-launch: ")


# Variables that differ between any two jobs, or that only a shell's own place makes.
VOLATILE = frozenset(
    {
        "SLURM_JOB_ID",
        "SLURM_JOBID",
        "SLURM_TASK_PID",
        "SLURM_SRUN_COMM_PORT",
        "SLURM_STEP_LAUNCHER_PORT",
        "SLURM_LAUNCH_NODE_IPADDR",
        "HPC_LAUNCH_STEP_SECRET",
    }
    | {"SLURM_JOB_START_TIME", "SLURM_JOB_END_TIME", "SLURM_SUBMIT_HOST", "HOSTNAME", "SHLVL", "_", "OLDPWD", "PWD"}
    | {"SLURM_JOB_GPUS", "SLURM_STEP_GPUS", "SLURM_NODELIST", "SLURM_JOB_NODELIST", "SLURM_STEP_NODELIST"}
    | {"SLURMD_NODENAME", "SLURM_TOPOLOGY_ADDR", "SLURM_SRUN_COMM_HOST"}
)


def stable(facts: Mapping[str, Any]) -> dict[str, Any]:
    """What should be the same for two submissions of the same job."""
    env = {name: value for name, value in facts["env"].items() if name not in VOLATILE}
    return {"env": env, "argv": facts["argv"], "cpus": facts["cpus"], "cwd": facts["cwd"]}


def poison() -> dict[str, str]:
    """Variables of another job, of another launcher, and for sbatch and srun."""
    return {
        "SLURM_CPU_BIND": "quiet,mask_cpu:0x1",
        "SLURM_CPU_BIND_TYPE": "mask_cpu:",
        "SLURM_CPU_BIND_LIST": "0x1",
        "SLURM_NTASKS": "7",
        "SLURM_NPROCS": "7",
        "SLURM_CPUS_PER_TASK": "3",
        "SLURM_TRES_PER_TASK": "cpu=5",
        "SLURM_GPUS_PER_TASK": "1",
        "SLURM_MEM_PER_CPU": "1",
        "SLURM_DISTRIBUTION": "arbitrary",
        "SLURM_EXPORT_ENV": "NONE",
        "SRUN_EXPORT_ENV": "NONE",
        "SRUN_CPUS_PER_TASK": "2",
        "SBATCH_PARTITION": "nowhere",
        "SBATCH_ACCOUNT": "nobody",
        "SBATCH_CPUS_PER_TASK": "9",
        "SBATCH_JOB_NAME": "poisoned",
        "SBATCH_TIMELIMIT": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "1",
        "RANK": "5",
        "WORLD_SIZE": "9",
        "LOCAL_RANK": "3",
        "TORCHELASTIC_RUN_ID": "other",
        "CUDA_VISIBLE_DEVICES": "3",
        "OMP_NUM_THREADS": "99",
        "PMI_RANK": "1",
        "PMIX_RANK": "1",
    }
