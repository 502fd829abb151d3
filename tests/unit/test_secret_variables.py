"""The secret of a step or job that hpc-launch starts: a new one each time, in the environment and nowhere else."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from hpc_launch import secret_variables
from hpc_launch.api import submitit_process
from hpc_launch.cli import cli
from tests.unit.slurm_variables import FOUR_NODE_JOB

# Stands for srun, sbatch and the like: it writes down how it was called.
RECORDER = f"""#!{sys.executable}
import json, os, sys
call = {{"argv": sys.argv, "env": dict(os.environ), "script": "" if sys.stdin is None else sys.stdin.read()}}
with open(os.environ["CALLS"] + "/" + os.path.basename(sys.argv[0]), "w") as stream:
    json.dump(call, stream)
print(1234)
"""

INHERITED = {secret_variables.STEP_SECRET: "of an outer job", secret_variables.SECRET: "the user's own"}


@dataclass(frozen=True)
class Call:
    """How a command of Slurm's was called."""

    argv: list[str]
    env: dict[str, str]
    script: str

    @property
    def own(self) -> str:
        """The secret that the step or job is given."""
        return self.env[secret_variables.STEP_SECRET]


@dataclass(frozen=True)
class Place:
    """A directory with a training script, and commands of Slurm's that do nothing."""

    folder: Path

    @property
    def environ(self) -> dict[str, str]:
        root = str(Path(__file__).parents[2])
        home = {"HOME": str(self.folder), "PATH": f"{self.folder}/bin:/usr/bin:/bin", "PYTHONPATH": root}
        return {**home, **INHERITED, "CALLS": str(self.folder)}

    def run(self, *words: str, command: str, **environ: str) -> Call:
        """Call hpc-launch; returns how it called that command."""
        subprocess.run(
            [sys.executable, "-m", "hpc_launch", *words],
            cwd=self.folder,
            env={**self.environ, **environ},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
        )
        return self.call(command)

    def call(self, command: str) -> Call:
        return Call(**json.loads((self.folder / command).read_text()))


@pytest.fixture
def place(tmp_path: Path) -> Place:
    (tmp_path / "bin").mkdir()
    (tmp_path / "train.py").touch()
    for name in ("srun", "sbatch"):
        (tmp_path / "bin" / name).write_text(RECORDER)
        (tmp_path / "bin" / name).chmod(0o755)
    (tmp_path / "bin/scontrol").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "bin/scontrol").chmod(0o755)
    return Place(tmp_path)


def job(place: Place, kind: str) -> Call:
    """A step or job that hpc-launch starts."""
    if kind == "step":
        return place.run("train.py", command="srun", **FOUR_NODE_JOB)
    return place.run("submit", "train.py", command="sbatch")


@pytest.mark.parametrize("kind", ["step", "submit"])
def test_a_secret_is_32_random_bytes_in_the_environment(place: Place, kind: str) -> None:
    """The step or job has one that no other has, whatever it inherits."""
    first, second = job(place, kind), job(place, kind)

    assert re.fullmatch(r"[0-9a-f]{64}", first.own)
    assert len({first.own, second.own, INHERITED[secret_variables.STEP_SECRET]}) == 3


@pytest.mark.parametrize("kind", ["step", "submit"])
def test_a_secret_is_in_no_argument_and_in_no_script(place: Place, kind: str) -> None:
    """Arguments can be read by every user of a node, and job scripts are kept."""
    call = job(place, kind)

    assert call.own not in "".join([*call.argv, call.script])


@pytest.mark.parametrize("kind", ["step", "submit"])
def test_the_users_own_secret_goes_along(place: Place, kind: str) -> None:
    """What is exported before a submission holds for the job."""
    assert job(place, kind).env[secret_variables.SECRET] == INHERITED[secret_variables.SECRET]


def test_a_step_gets_the_whole_environment(place: Place) -> None:
    """srun hands on the secret also where the job was submitted with --export=NONE."""
    call = place.run("train.py", command="srun", SLURM_EXPORT_ENV="NONE", **FOUR_NODE_JOB)

    assert "--export=ALL" in call.argv
    assert "SLURM_EXPORT_ENV" not in call.env


def test_a_secret_of_a_job_from_python(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The process that calls submitit, and so the job, has a secret of its own; nothing else of the job has it."""
    calls: list[dict[str, Any]] = []

    def run(words: list[str], **options: Any) -> subprocess.CompletedProcess[bytes]:
        calls.append({"words": words, **options})
        return subprocess.CompletedProcess(words, 0, b'{"jobs": []}', b"")

    monkeypatch.setattr("hpc_launch.api.submitit_process.subprocess.run", run)
    submitit_process.submit_by_submitit(tmp_path, [], {}, INHERITED)
    call = calls[0]
    own = call["env"][secret_variables.STEP_SECRET]

    assert re.fullmatch(r"[0-9a-f]{64}", own)
    assert own.encode() not in call["input"] + " ".join(call["words"]).encode()


@pytest.mark.parametrize(
    "words",
    [
        ["explain", "--standalone", "-v"],
        ["explain", "--standalone", __file__],
        ["env", "--standalone"],
        ["env", "--standalone", "--export"],
        ["env", "--standalone", "--json"],
        ["config", "show", "--all"],
        ["config", "show", "--all", "--json"],
        ["submit", "--dry-run", "-v", __file__],
    ],
    ids=" ".join,
)
def test_no_command_shows_a_secret(words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their output is pasted into questions and reports."""
    monkeypatch.chdir(tmp_path)
    values = {name: f"value-of-{name}" for name in secret_variables.VARIABLES}
    done = CliRunner().invoke(cli, words, env={**os.environ, **values})

    assert done.output
    assert not [name for name, value in values.items() if value in done.output]


def test_foreign_code_has_none() -> None:
    """What is not the launcher's own runs without any of them."""
    environ = {"PATH": "/bin", **dict.fromkeys(secret_variables.VARIABLES, "c0ffee")}

    assert secret_variables.without_secrets(environ) == {"PATH": "/bin"}
