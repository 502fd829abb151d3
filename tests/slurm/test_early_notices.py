"""A notice signal that comes in the first moment of a step ends nothing, and the workers hear of it."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import psutil
import pytest

from tests.cluster import Cluster, Job
from tests.slurm.jobs_support import DEADLINE, clean_environment
from tests.slurm.python_support import told, write_program
from tests.slurm.signals_support import SCRIPT, STAYER, Running
from tests.support import mentions, wait_for

REPETITIONS = [pytest.param(number, marks=[pytest.mark.soak] if number else []) for number in range(50)]


def signal_the_first_python(cluster: Cluster, node: str, word: str) -> None:
    """Send SIGUSR1 to the first Python process of a node that has some word on its line, as soon as it is seen."""

    def found() -> int | None:
        for pid in cluster.processes(node):
            try:
                words = psutil.Process(pid).cmdline()
            except psutil.Error:
                continue
            if words and "python" in Path(words[0]).name and any(word in one for one in words[1:]):
                os.kill(pid, signal.SIGUSR1)
                return pid
        return None

    wait_for(found, DEADLINE, cluster.diagnose, pause=0)


def submitted(cluster: Cluster, output: str) -> Job:
    """Give the job that `hpc-launch submit` says it has submitted."""
    found = re.search(r"^job (\d+)", output, re.MULTILINE)
    assert found is not None, output
    return Job(cluster, found[1])


def check_heard(running: Running) -> None:
    """See that the job ends well, after each worker got the signal once."""
    running.await_signal("SIGUSR1")
    running.release()
    result = running.job.wait(DEADLINE)
    assert (result.state, result.exit_code) == ("COMPLETED", 0), running.describe()
    assert {counts["SIGUSR1"] for counts in running.got().values()} == {1}, running.describe()


@pytest.mark.parametrize("repetition", REPETITIONS)
def test_our_own_step(any_cluster: Cluster, tmp_path: Path, repetition: int) -> None:
    """A step that hpc-launch starts itself holds it back before Python begins."""
    del repetition
    (tmp_path / SCRIPT).write_text(STAYER)
    with clean_environment():
        job = any_cluster.sbatch(
            f"hpc-launch --nproc-per-node=1 {SCRIPT} --until go", "--nodes=2", "--job-name=outer", cwd=tmp_path
        )
    signal_the_first_python(any_cluster, "gpu002", "hpc-launch")
    check_heard(Running(any_cluster, job, tmp_path, 2))


@pytest.mark.parametrize("repetition", REPETITIONS)
def test_a_submitted_script(any_cluster: Cluster, tmp_path: Path, repetition: int) -> None:
    """The script of `hpc-launch submit --signal` does it by env."""
    del repetition
    (tmp_path / SCRIPT).write_text(STAYER)
    words = ["hpc-launch", "submit", "--nodes=2", "--signal=USR1@60", "--time=10", "--mem=100M", "--cpus-per-task=1"]
    with clean_environment():
        done = any_cluster.run([*words, "--nproc-per-node=1", SCRIPT, "--until", "go"], cwd=tmp_path)
    signal_the_first_python(any_cluster, "gpu002", "hpc-launch")
    check_heard(Running(any_cluster, submitted(any_cluster, done.stdout), tmp_path, 2))


@pytest.mark.parametrize("repetition", REPETITIONS)
def test_a_job_from_python(any_cluster: Cluster, tmp_path: Path, repetition: int) -> None:
    """Neither submitit's process nor the agent that it starts ends by it."""
    del repetition
    text = f"""
if __name__ == "__main__":
    job = hpc_launch.submit("{SCRIPT}", "--until", "go", nodes=1, ranks_per_node=1, cpus_per_task=1, time=10)
    tell(job=job.job_id)
"""
    (tmp_path / SCRIPT).write_text(STAYER)
    with clean_environment():
        line = write_program(tmp_path, text)
        done = any_cluster.run(line, cwd=tmp_path)
    number = told(done.stdout)[0]["job"]
    signal_the_first_python(any_cluster, "gpu001", "submitit")
    check_heard(Running(any_cluster, Job(any_cluster, number), tmp_path, 1))


def test_slurm_s_own(some_cluster: Cluster, tmp_path: Path) -> None:
    """Slurm sends a signal whose lead is longer than the job as soon as it looks; `submit` says so."""
    (tmp_path / SCRIPT).write_text(STAYER)
    words = ["hpc-launch", "submit", "--nodes=1", "--signal=USR1@120", "--time=2", "--mem=100M", "--cpus-per-task=1"]
    with clean_environment():
        done = some_cluster.run([*words, "--nproc-per-node=1", SCRIPT, "--until", "go"], cwd=tmp_path)
    assert mentions(done.stdout + done.stderr, "--signal=USR1@120", "2 min"), done
    check_heard(Running(some_cluster, submitted(some_cluster, done.stdout), tmp_path, 1))
