"""Job scripts made from templates: still bash, still the template's, with what was asked for."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from hpc_launch.errors import UsageError
from hpc_launch.submission.job_script import ScriptChanges, ScriptDraft, render_job_script
from tests.support import lines_mention
from tests.unit.test_templates import FAKE_SRUN, RANK_VARIABLES, TEMPLATES, run

WORDS = ["--max-restarts", "3", "train.py", "two words", "", "$HOME", "*", "it's\n", "--x=`id`"]

SMALL = """#!/bin/bash
# A script of ours.
# Licence: any.
#SBATCH -N 4 -J name
#SBATCH --mem 16G
# Two of them.
#SBATCH --gres=gpu:2,nvme:1
#SBATCH --comment="a # b"

set -euo pipefail
trap : TERM
srun hpc-launch "$@"
"""


def drawn(path: Path) -> ScriptDraft:
    return ScriptDraft(path.stem, path.read_text(), shipped=True)


def small(text: str = SMALL) -> ScriptDraft:
    return ScriptDraft("small", text, shipped=False)


def directives(script: str) -> list[str]:
    return [line.removeprefix("#SBATCH ") for line in script.splitlines() if line.startswith("#SBATCH")]


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.name)
def test_a_script_does_what_its_template_does(path: Path, tmp_path: Path) -> None:
    """Bash, shellcheck and Slurm accept it; it passes on its words and its status, and says nothing about ranks."""
    changes = ScriptChanges(
        options={"nodes": "3", "comment": 'a "b" $c', "mem-per-cpu": "1G"},
        reasons={"nodes": "Derived: so."},
        origin=["Made by a test."],
        software=['export FOUND="$SLURM_IS_UNSET_HERE"'],
        arguments=WORDS,
    )
    script, rest = render_job_script(drawn(path), changes)
    made = tmp_path / path.name
    made.write_text(script)
    done = run(made, tmp_path, fake=FAKE_SRUN, SLURM_CPUS_PER_TASK="7", **ENVIRONMENT)
    printed = done.stdout.split("--cpus-per-task=7\n", 1)[1]

    assert (done.returncode, done.stderr, rest) == (42, "", ())
    assert "".join(f"{word}\n" for word in WORDS) in printed.partition("hpc-launch\n")[2]
    assert not RANK_VARIABLES.search("\n".join(line for line in script.splitlines() if not line.startswith("#")))
    assert {"--nodes=3", '--comment="a \\"b\\" $c"', "--mem-per-cpu=1G"} <= {*directives(script)}
    assert not [line for line in directives(script) if re.match("--mem=", line)]
    assert "To submit" not in script
    if shutil.which("shellcheck"):
        found = subprocess.run(["shellcheck", "--exclude=SC2154", made], capture_output=True, text=True, check=False)
        assert found.stdout == ""


# What some templates expect of Slurm.
ENVIRONMENT = {"SLURM_ARRAY_TASK_ID": "1", "SLURM_JOB_ID": "7", "SLURM_SUBMIT_DIR": "/", "USER": "ada"}


def test_without_changes_the_template_is_left_as_it_is() -> None:
    """Nothing is moved or lost, but for the line that sets the words."""
    script, _ = render_job_script(small(), ScriptChanges(arguments=["train.py"]))

    assert [
        line for line in script.splitlines() if "set --" not in line and "its own options" not in line and line
    ] == [line for line in SMALL.splitlines() if line]


@pytest.mark.parametrize(
    ("options", "lines"),
    [
        ({"nodes": "2"}, ["--job-name=name", "--nodes=2", "--mem 16G", "--gres=gpu:2,nvme:1", '--comment="a # b"']),
        ({"mem-per-gpu": "8G"}, ["-N 4 -J name", "--gres=gpu:2,nvme:1", '--comment="a # b"', "--mem-per-gpu=8G"]),
        ({"gpus": "8"}, ["-N 4 -J name", "--mem 16G", '--comment="a # b"', "--gpus=8"]),
        ({"gres": "nvme:2"}, ["-N 4 -J name", "--mem 16G", "--gres=nvme:2", '--comment="a # b"']),
        ({"comment": None}, ["-N 4 -J name", "--mem 16G", "--gres=gpu:2,nvme:1"]),
        ({"exclusive": ""}, ["-N 4 -J name", "--mem 16G", "--gres=gpu:2,nvme:1", '--comment="a # b"', "--exclusive"]),
    ],
    ids=str,
)
def test_options_take_the_place_of_their_like(options: dict[str, str | None], lines: list[str]) -> None:
    """Short forms, several in a line, and options that mean the same by another name."""
    script, _ = render_job_script(small(), ScriptChanges(options=options))

    assert directives(script) == lines


def test_a_comment_goes_with_its_line() -> None:
    """What is said of a line is not said of another value; the script's own comments stay."""
    script, _ = render_job_script(small(), ScriptChanges(options={"gres": "gpu:1", "nodes": "1"}))

    assert ("Two of them" in script, "Licence: any." in script) == (False, True)


def test_gpus_of_gres_take_the_place_of_the_others() -> None:
    text = SMALL.replace("#SBATCH --gres=gpu:2,nvme:1", "#SBATCH --gpus-per-node=4")
    script, _ = render_job_script(small(text), ScriptChanges(options={"gres": "gpu:a100:2"}))

    assert [line for line in directives(script) if "gp" in line] == ["--gres=gpu:a100:2"]


def test_what_no_line_can_have_is_given_to_sbatch() -> None:
    """A job name with a line break is on sbatch's command line, and the template's is gone."""
    script, rest = render_job_script(small(), ScriptChanges(options={"job-name": "a\nb"}))

    assert (rest, directives(script)[0]) == (("--job-name=a\nb",), "--nodes=4")


def test_points_can_be_read(tmp_path: Path) -> None:
    """Each point of a sweep is a line, and a task of the array gets its own."""
    points = [["--lr", "1e-3"], ["--lr", "two words"]]
    script, _ = render_job_script(drawn(TEMPLATES[0]), ScriptChanges(arguments=["train.py", "--x"], points=points))
    made = tmp_path / "made.sbatch"
    made.write_text(script)

    assert "    1) set -- \"$@\" --lr 'two words' ;;\n" in script
    for number, point in enumerate(points):
        done = run(made, tmp_path, **{**ENVIRONMENT, "SLURM_ARRAY_TASK_ID": str(number)})
        assert done.stdout.endswith("".join(f"{word}\n" for word in ["train.py", "--x", *point]))
    other = run(made, tmp_path, **{**ENVIRONMENT, "SLURM_ARRAY_TASK_ID": "7"})
    assert (other.returncode, other.stdout) == (2, "")
    assert lines_mention(other.stderr.splitlines(), "7")


@pytest.mark.parametrize("failing", [False, True])
def test_the_nodes_are_looked_at_first(tmp_path: Path, *, failing: bool) -> None:
    """A check that fails ends the job with its status, before srun."""
    script, _ = render_job_script(small(), ScriptChanges(arguments=["train.py"], preflight="hpc-launch check || exit"))
    made, fake = tmp_path / "made.sbatch", tmp_path / "hpc-launch"
    made.write_text(script)
    fake.write_text(f"#!/bin/sh\nexit {7 if failing else 0}\n")
    fake.chmod(0o755)

    assert run(made, tmp_path).returncode == (7 if failing else 42)


@pytest.mark.parametrize(
    ("old", "new", "what"),
    [
        ("set -euo pipefail", "set -e", "'set -euo pipefail'"),
        ("trap : TERM", "", "'trap : TERM'"),
        ('"$@"', "train.py", "srun ... hpc-launch"),
        ("srun hpc", "exec srun hpc", "srun ... hpc-launch"),
        ('srun hpc-launch "$@"', 'srun hpc-launch "$@"\necho done', "srun ... hpc-launch"),
        ('srun hpc-launch "$@"', 'srun hpc-launch "$@" | tee log\n:', "srun ... hpc-launch"),
        ("#SBATCH", "#", "#SBATCH"),
        ("#SBATCH --mem 16G", '#SBATCH --mem "16G', "quote"),
        ("#SBATCH --mem 16G", "#SBATCH mem 16G", "#SBATCH mem 16G"),
        ("set -euo pipefail\ntrap : TERM", "trap : TERM\nset -euo pipefail", "in this order"),
    ],
)
def test_a_template_that_lacks_a_place_is_refused(old: str, new: str, what: str) -> None:
    """The message says what is missing."""
    with pytest.raises(UsageError, match=re.escape(what)) as caught:
        render_job_script(small(SMALL.replace(old, new)), ScriptChanges(arguments=["train.py"]))
    assert str(caught.value).startswith("template small")
