"""The process that starts a step, with an srun and an scontrol that only say what they were asked."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.support import lines_mention, mentions
from tests.unit.slurm_variables import BATCH
from tests.unit.test_imports import HEAVY, LOOK

SCONTROL = """#!/bin/sh
case "$*" in
    *"show step"*) echo "Job step 4711. not found"; exit 1;;
    *"show aliases"*) {aliases};;
    *) exit 1;;
esac
"""


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """Return a directory with programs, to be put before all others."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (tmp_path / "train.py").touch()
    write(folder / "scontrol", SCONTROL.format(aliases="echo box"))
    write(folder / "srun", '#!/bin/sh\nprintf "%s\\n" "$@" >said\nenv >environment\nexit ${STATUS:-7}\n')
    return folder


def write(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


def look(
    python: str, programs: Path, arguments: list[str], environ: Mapping[str, str]
) -> tuple[int, set[str], subprocess.CompletedProcess[str]]:
    """Run the command line, and return its exit status and which modules it has imported."""
    done = subprocess.run(
        [python, "-c", LOOK.format(arguments=arguments)],
        cwd=programs.parent,
        env={
            **os.environ,
            "PYTHONPATH": str(Path(__file__).parents[2]),
            "PATH": f"{programs}:/usr/bin:/bin",
            **environ,
        },
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    status, names = json.loads(done.stdout.splitlines()[-1])
    return status, set(names), done


@pytest.mark.parametrize("status", [0, 7, 137])
def test_the_status_of_srun_without_torch(python: str, programs: Path, status: int) -> None:
    """The outer process does nothing but start srun and wait: torch is for the nodes."""
    ended, names, done = look(python, programs, ["train.py"], {**BATCH, "STATUS": str(status), "SLURM_NTASKS": "99"})

    assert (status, set()) == (ended, HEAVY & names)
    assert lines_mention(done.stderr.splitlines(), "hpc-launch gpu[01-04] 4711")
    said = (programs.parent / "said").read_text().splitlines()
    assert {"--jobid=4711", "--nodelist=gpu[01-04]", "--nodes=4", "--ntasks=4"} < set(said)
    assert "SLURM_NTASKS=" not in (programs.parent / "environment").read_text()


def test_the_whole_line_with_v(python: str, programs: Path) -> None:
    """-v shows what could be typed."""
    _, _, done = look(python, programs, ["-v", "train.py"], BATCH)

    assert "srun --jobid=4711 '--nodelist=gpu[01-04]' " in done.stderr


def test_srun_that_fails(python: str, programs: Path) -> None:
    """Where no task was started the status is the launcher's own, and the line points to what srun has said."""
    status, _, done = look(python, programs, ["train.py"], {**BATCH, "STATUS": "222"})

    assert status == 75
    assert mentions(done.stderr, "4711 gpu[01-04] srun")


@pytest.mark.parametrize(
    ("aliases", "refused"),
    [("echo gpu01", False), ("true", True), ("exit 1", False), ("exec sleep 1000", False)],
    ids=["node", "login node", "no configuration", "no answer"],
)
def test_is_this_a_login_node(python: str, programs: Path, aliases: str, *, refused: bool) -> None:
    """Only where slurm.conf does not have this host; whoever cannot tell within seconds does not stand in the way."""
    write(programs / "scontrol", SCONTROL.format(aliases=aliases))
    status, _, done = look(python, programs, ["explain"], {})

    assert status == (78 if refused else 0)
    assert refused == mentions(done.stderr, "login")
    assert (len(done.stdout.splitlines()) == 1) is refused  # the modules, which the test itself prints
