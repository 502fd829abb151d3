"""What a worker runs for --run-path, as a program of its own."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.support import mentions

WORKER = {"HPC_LAUNCH_JOB_DIRECTORY": "/logs/job", "HPC_LAUNCH_ATTEMPT": "0", "RANK": "3"}


def run(python: str, script: Path, body: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run a script as a worker would that was started anew."""
    script.write_text(body)
    words = [python, "-m", "hpc_launch.workers.run_path", str(script), "--lr", "1"]
    return subprocess.run(words, env={**os.environ, **environ}, capture_output=True, text=True, check=False)


def test_a_worker_says_where_it_is(python: str, tmp_path: Path) -> None:
    """It answers when it is asked for its stacks, which a process that is no worker does not, and reports crashes."""
    body = "import faulthandler, signal; print(bool(signal.getsignal(signal.SIGRTMIN + 10)), faulthandler.is_enabled())"

    assert run(python, tmp_path / "train.py", body, **WORKER).stdout == "True True\n"
    assert run(python, tmp_path / "train.py", body).stdout == "False True\n"


@pytest.mark.parametrize(
    ("body", "status", "where"),
    [
        ("import sys\ndef train():\n    raise ValueError(sys.argv[1:])\ntrain()\n", 1, "train.py:3"),
        ("def train(:\n", 1, "train.py:1"),
        ("import json\njson.loads('{')\n", 1, "train.py:2"),
    ],
)
def test_an_exception_leaves_the_error_file(python: str, tmp_path: Path, body: str, status: int, where: str) -> None:
    """It is torch's file, with the place in the script, and the script's own frames only."""
    left = tmp_path / "error.json"
    done = run(python, tmp_path / "train.py", body, TORCHELASTIC_ERROR_FILE=str(left))
    message = json.loads(left.read_text())["message"]

    assert done.returncode == status
    assert done.stderr.splitlines()[-1].endswith(message["message"].removesuffix(" (train.py, line 1)"))
    assert message["extraInfo"]["where"].endswith(where)
    assert "runpy" not in message["extraInfo"]["py_callstack"]
    assert "run_path" not in message["extraInfo"]["py_callstack"]


FORKS = """
import os, sys
if os.fork() == 0:
    raise ValueError
sys.exit(os.waitstatus_to_exitcode(os.wait()[1]))
"""


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ("raise SystemExit(42)", 42),
        ("raise SystemExit('why')", 1),
        (FORKS, 1),
    ],
)
def test_what_is_no_failure_of_the_worker_leaves_none(python: str, tmp_path: Path, body: str, status: int) -> None:
    """An exit with a status, and an exception in a process that the script has forked."""
    left = tmp_path / "error.json"

    assert run(python, tmp_path / "train.py", body, TORCHELASTIC_ERROR_FILE=str(left)).returncode == status
    assert not left.exists()


def test_an_error_file_without_room_is_none(python: str, tmp_path: Path) -> None:
    """Where the file can be made and not be written nothing is left of it: what is cut off says nothing."""
    left = tmp_path / "error.json"
    body = "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))\nraise ValueError('a bad batch')\n"
    done = run(python, tmp_path / "train.py", body, TORCHELASTIC_ERROR_FILE=str(left))

    assert (done.returncode, left.exists()) == (1, False)
    assert mentions(done.stderr, "ValueError: a bad batch")
