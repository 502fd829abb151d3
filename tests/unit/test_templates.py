"""The job templates: correct bash, which passes on what it was given and publishes nothing about ranks."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from hpc_launch.submission import submission_plan
from hpc_launch.submission.job_request import JobRequest, Software, SubmitContext
from hpc_launch.submission.job_script import ScriptDraft
from hpc_launch.submission.template_check import contract
from hpc_launch.submission.templates import summary

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

# What srun gets before the training script, in templates that start hpc-launch otherwise than by its name alone.
STARTED = {
    "amd.sbatch": ["env", "--unset=CUDA_VISIBLE_DEVICES", "--unset=GPU_DEVICE_ORDINAL", "hpc-launch"],
    "apptainer.sbatch": [
        *("apptainer", "exec", "--nv", "--bind", "/submit dir", "--pwd", "/"),
        *("--env", "PYTHONNOUSERSITE=1", "/path/to/image.sif", "hpc-launch"),
    ],
    "elastic.sbatch": [
        *("hpc-launch", "--nnodes", "1:1"),  # of a job whose number of nodes is not known here
        *("--max-restarts", "3", "--requeue", "on-failure", "--max-requeues", "3"),
    ],
    "pyxis.sbatch": [
        *(
            "--container-image=/path/to/image.sqsh",
            "--container-mounts=/:/,/submit dir:/submit dir",
        ),
        *("--container-workdir=/", "--no-container-entrypoint", "hpc-launch"),
    ],
    "requeue.sbatch": ["env", "--block-signal=USR1", "hpc-launch", "--requeue", "on-notice,on-timeout,on-preempt"],
}

# What it gets before the CPUs, and after the script.
BEFORE = {"elastic.sbatch": ["--no-kill", "--ntasks-per-node=1"]}
AFTER = {"array.sbatch": ["--lr", "1e-4", "--seed", "1"]}

# Words that are easily taken for something else.
UGLY = ("--name", "two words", "", "$HOME", "*", "it's", '"', "\\", "-x", "%j", "ü", "`x`", "!", "# no", "~")

# What Slurm sets in a job script, as far as a template uses it.
SLURM = {"SLURM_JOB_ID": "7", "SLURM_SUBMIT_DIR": "/submit dir", "SLURM_ARRAY_TASK_ID": "2"}

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
    return subprocess.run(
        command, cwd="/", env={"PATH": path, **SLURM, **env}, capture_output=True, text=True, check=False
    )


def test_it_is_bash(template: Path) -> None:
    subprocess.run(["bash", "-n", template], check=True)


def test_shellcheck_finds_nothing(template: Path) -> None:
    if not shutil.which("shellcheck"):
        if os.environ.get("CI"):
            pytest.fail("shellcheck is not installed")
        pytest.skip("shellcheck is not installed")
    found = subprocess.run(["shellcheck", template], capture_output=True, text=True, check=False)

    assert found.stdout == ""


def test_it_keeps_the_contract(template: Path) -> None:
    """Nothing in it would be found by `hpc-launch template check`."""
    assert contract(template.read_text()) == ()


def test_it_says_what_it_is_for(template: Path) -> None:
    """The first line of the comment is one sentence."""
    assert re.fullmatch(r"[A-Z][^.]*\.", summary(template.read_text()))


def test_it_starts_one_task_per_node(template: Path) -> None:
    """An agent on each node; or one for each GPU, where that is the template's point."""
    expected = {
        "task_per_gpu.sbatch": "#SBATCH --ntasks-per-node=4\n",
        "elastic.sbatch": "\nsrun --no-kill --ntasks-per-node=1 ",
    }

    assert expected.get(template.name, "#SBATCH --ntasks-per-node=1\n") in template.read_text()


def test_a_requeue_keeps_the_output(template: Path) -> None:
    assert "#SBATCH --open-mode=append\n" in template.read_text()


def test_a_template_that_requeues_may(template: Path) -> None:
    """hpc-launch's --requeue goes with Slurm's."""
    text = template.read_text()

    assert ("\n#SBATCH --requeue\n" in text) == ("--requeue on-" in text)


def test_a_template_that_takes_turns_is_told(template: Path) -> None:
    """A requeue after a notice needs one, which reaches the steps."""
    text = template.read_text()

    assert ("\n#SBATCH --signal=USR1@120\n" in text) == ("on-notice" in text)


def test_it_says_nothing_about_ranks(template: Path) -> None:
    assert not RANK_VARIABLES.search(template.read_text())


def expected(template: Path, *words: str, cpus: str = "", held: bool = False) -> list[str]:
    """Return what srun is to be given.

    Args:
        template: which.
        words: what hpc-launch gets.
        cpus: of a task.
        held: whether a signal was asked for, which is held back unless that is the business of a container.
    """
    name = template.name
    given = [f"--cpus-per-task={cpus}"] if cpus else []
    started = [*STARTED.get(name, ["hpc-launch"])]
    if held and name not in {"apptainer.sbatch", "pyxis.sbatch", "requeue.sbatch"}:
        place = started.index("hpc-launch")
        started[place:place] = ["env", "--block-signal=USR1"]
    return [*BEFORE.get(name, []), *given, *started, *words, *AFTER.get(name, [])]


def test_arguments_reach_the_script_as_they_are(template: Path, tmp_path: Path) -> None:
    words = ["train.py", *UGLY]
    done = run(template, tmp_path, *words, SLURM_CPUS_PER_TASK="7")

    assert done.stdout.removesuffix("\n").split("\n") == expected(template, *words, cpus="7")


def test_without_arguments_it_runs_train_py(template: Path, tmp_path: Path) -> None:
    assert run(template, tmp_path).stdout.splitlines() == expected(template, "train.py")


REQUESTS = {
    "plain": JobRequest("train.py"),
    "ugly": JobRequest("my 'train'.py", arguments=UGLY, options=("--max-restarts", "2")),
    "sized": JobRequest(
        "train.py",
        arguments=UGLY,
        slurm={"nodes": "2", "gpus-per-node": "1", "time": "10:00", "job-name": 'it\'s "$HOME" %j', "mem": None},
        software=Software(("cuda/12", "py thon"), "/a venv", ("export A='b c'",)),
        requeue=("on-notice", "on-timeout"),
    ),
}


@pytest.mark.parametrize("wanted", REQUESTS)
def test_what_submit_makes_of_it_is_as_good(template: Path, tmp_path: Path, wanted: str) -> None:
    """The script keeps the contract, is good bash, and gives srun the words that were asked for, in all jobs."""
    request = REQUESTS[wanted]
    draft = ScriptDraft(template.stem, template.read_text(), shipped=True)
    made = submission_plan.make_submission(request, draft, SubmitContext({"PATH": "/usr/bin"}), ()).script
    script = tmp_path / "made.sbatch"
    script.write_text(made)
    assert contract(made) == (), made
    subprocess.run(["bash", "-n", script], check=True)
    if shutil.which("shellcheck"):
        # Without its remarks on words such as '$HOME', which are meant as they are.
        checked = ["shellcheck", "--severity=warning", str(script)]
        found = subprocess.run(checked, capture_output=True, text=True, check=False)
        assert found.stdout == "", made

    # What a site has: modules, and the virtual environment.
    script.write_text(
        made.replace("source '/a venv/bin/activate'", ":").replace("set -euo pipefail", "module() { :; }", 1)
    )
    done = run(script, tmp_path)
    assert done.stdout.removesuffix("\n").split("\n") == expected(
        template, *request.options, request.script, *request.arguments, held="on-notice" in request.requeue
    ), made


def test_env_that_cannot_hold_signals_back_is_left_out(template: Path, tmp_path: Path) -> None:
    """Nodes may have older coreutils: then the step begins as it would without it."""
    old = tmp_path / "old"
    old.mkdir()
    (old / "env").write_text('#!/bin/sh\ncase "$1" in --block*) exit 125;; esac\nexec /usr/bin/env "$@"\n')
    (old / "env").chmod(0o755)
    script = tmp_path / "script.sbatch"
    script.write_text(template.read_text().replace("set -euo pipefail", f"set -euo pipefail; PATH={old}:$PATH", 1))
    done = run(script, tmp_path, "train.py")

    words = [word for word in expected(template, "train.py") if word != "--block-signal=USR1"]
    words = words[1:] if template.name == "requeue.sbatch" else words
    assert done.stdout.splitlines() == words, done.stderr


def test_its_exit_status_is_that_of_srun(template: Path, tmp_path: Path) -> None:
    done = run(template, tmp_path, "train.py")

    assert (done.returncode, done.stderr) == (42, "")


def test_it_outlives_srun_when_the_job_is_cancelled(template: Path, tmp_path: Path) -> None:
    done = run(template, tmp_path, "train.py", fake=CANCELLED_SRUN)

    assert (done.returncode, done.stdout) == (42, "last words\n")


def test_it_is_documented(template: Path) -> None:
    assert f"`{template.name}`" in (ROOT / "docs/templates.md").read_text()
