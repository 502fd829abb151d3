"""The job templates: correct bash, which passes on what it was given and publishes nothing about ranks."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEMPLATES = sorted((ROOT / "sbatch_templates").glob("*.sbatch"))

# What only the process that is this rank may say. In a job script, SLURM_PROCID is 0 for all of them.
RANK_VARIABLES = re.compile(
    r"\b((LOCAL_|GROUP_|ROLE_|NODE_)?(RANK|WORLD_SIZE)|MASTER_(ADDR|PORT)|SLURM_(PROCID|NODEID|LOCALID)|PET_\w+)\b",
)

# Prints its arguments one by one, and ends in a way that nothing else does.
FAKE_SRUN = """#!/bin/sh
printf '%s\\n' "$@"
exit 42
"""

# What Slurm does when a job is cancelled: the script's shell gets SIGTERM while srun is busy.
CANCELLED_SRUN = """#!/bin/sh
kill -TERM $PPID
echo last words
exit 42
"""

# What a template has hpc-launch do besides.
OPTIONS = {"requeue.sbatch": ["--requeue", "on-notice,on-timeout,on-preempt"]}

pytestmark = pytest.mark.parametrize("template", TEMPLATES, ids=lambda path: path.name)


def run(
    template: Path,
    folder: Path,
    *arguments: str,
    fake: str = FAKE_SRUN,
    **env: str,
) -> subprocess.CompletedProcess[str]:
    """Run a template as Slurm would, but for srun."""
    srun = folder / "srun"
    srun.write_text(fake)
    srun.chmod(0o755)
    path = f"{folder}:{os.environ['PATH']}"
    command = ["bash", str(template), *arguments]
    return subprocess.run(command, env={"PATH": path, **env}, capture_output=True, text=True, check=False)


def test_it_is_bash(template: Path) -> None:
    subprocess.run(["bash", "-n", template], check=True)


def test_shellcheck_finds_nothing(template: Path) -> None:
    if not shutil.which("shellcheck"):
        if os.environ.get("CI"):
            pytest.fail("shellcheck is not installed")
        pytest.skip("shellcheck is not installed")
    found = subprocess.run(["shellcheck", template], capture_output=True, text=True, check=False)

    assert found.stdout == ""


def test_slurm_reads_all_its_options(template: Path) -> None:
    """Slurm stops reading at the first command."""
    lines = template.read_text().splitlines()
    first_command = next(number for number, line in enumerate(lines) if line and not line.startswith("#"))

    assert not [line for line in lines[first_command:] if line.startswith("#SBATCH")]


def test_it_starts_one_task_per_node(template: Path) -> None:
    assert "#SBATCH --ntasks-per-node=1\n" in template.read_text()


def test_a_requeue_keeps_the_output(template: Path) -> None:
    assert "#SBATCH --open-mode=append\n" in template.read_text()


def test_a_template_that_requeues_may_and_is_told(template: Path) -> None:
    """hpc-launch's --requeue goes with Slurm's, and with a signal that reaches the steps."""
    lines = template.read_text().splitlines()
    requeues = any("hpc-launch --requeue" in line for line in lines)
    asked = {"#SBATCH --requeue", "#SBATCH --signal=USR1@120"} & {*lines}

    assert len(asked) == 2 * requeues


def test_it_says_nothing_about_ranks(template: Path) -> None:
    assert not RANK_VARIABLES.search(template.read_text())


def test_arguments_reach_the_script_as_they_are(template: Path, tmp_path: Path) -> None:
    done = run(template, tmp_path, "train.py", "--name", "two words", "", "$HOME", "*", SLURM_CPUS_PER_TASK="7")

    assert done.stdout.split("\n") == [
        "--cpus-per-task=7",
        *("hpc-launch", *OPTIONS.get(template.name, []), "train.py", "--name", "two words", "", "$HOME", "*", ""),
    ]


def test_without_arguments_it_runs_train_py(template: Path, tmp_path: Path) -> None:
    assert run(template, tmp_path).stdout.splitlines() == ["hpc-launch", *OPTIONS.get(template.name, []), "train.py"]


def test_its_exit_status_is_that_of_srun(template: Path, tmp_path: Path) -> None:
    done = run(template, tmp_path, "train.py")

    assert (done.returncode, done.stderr) == (42, "")


def test_it_outlives_srun_when_the_job_is_cancelled(template: Path, tmp_path: Path) -> None:
    done = run(template, tmp_path, "train.py", fake=CANCELLED_SRUN)

    assert (done.returncode, done.stdout) == (42, "last words\n")


def test_it_is_documented(template: Path) -> None:
    assert f"`{template.name}`" in (ROOT / "docs/templates.md").read_text()
