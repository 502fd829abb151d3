"""What the tests of jobs from Python share: programs that submit, run on the head, and what they say."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.cluster import Cluster
from tests.slurm.jobs_support import DEADLINE, clean_environment

# Every program begins so. It says what it has to say by `tell`.
HEAD = """
import json, os, signal, sys, time
from pathlib import Path
import hpc_launch

def tell(**facts):
    print("told:" + json.dumps(facts), flush=True)

def place():
    return [int(os.environ["RANK"]), os.environ["HPC_LAUNCH_HOST"]]
"""


def write_program(folder: Path, text: str, name: str = "program.py") -> list[str]:
    """Put a program into a folder; returns the line that runs it."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(HEAD + text)
    return [sys.executable, name]


def told(output: str) -> list[dict[str, Any]]:
    """What a program has told."""
    return [json.loads(line.removeprefix("told:")) for line in output.splitlines() if line.startswith("told:")]


def run(
    cluster: Cluster, folder: Path, text: str, *, before: Sequence[str] = (), name: str = "program.py"
) -> list[dict[str, Any]]:
    """Run a program on the head, to its end.

    Args:
        cluster: Where.
        folder: Its working directory.
        text: What follows `HEAD`.
        before: Words in front of its line, of salloc for example.
        name: Its file.

    Returns:
        What it has told.
    """
    with clean_environment():
        line = [*before, *write_program(folder, text, name)]
        done = cluster.run(line, cwd=folder, check=False, timeout=2 * DEADLINE)
    assert done.returncode == 0, describe(folder, done)
    return told(done.stdout)


def describe(folder: Path, done: subprocess.CompletedProcess[str]) -> str:
    """Tell everything about a program, and its jobs, for a failed assertion."""
    logs = "".join(f"\n== {path}\n{path.read_text(errors='replace')}" for path in folder.glob("logs/submitted/*_log.*"))
    return f"{done.stdout}\n{done.stderr}{logs}"
