"""The benchmarks run: what they measure is theirs to say, not a test's."""

import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.mark.usefixtures("slurm_host")
@pytest.mark.parametrize("name", ["restart.py", "rendezvous.py", "lost_node.py"])
def test_a_benchmark_prints_its_table(name: str) -> None:
    """In its quick form each of them ends well, with a line for hpc-launch."""
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / name), "--quick"], capture_output=True, text=True, check=False, timeout=280
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [line for line in done.stdout.splitlines() if "| hpc-launch | " in line]
    assert lines, done.stdout + done.stderr
    assert all("| 1 of 1 |" in line for line in lines), done.stdout + done.stderr


def test_lost_nodes_are_simulated() -> None:
    """A row for a few nodes: all have met, and have gone on without one and without their leader."""
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / "losses.py"), "--quick"],
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1].startswith("| 8 | "), done.stdout + done.stderr


def test_connections_of_agents_are_measured() -> None:
    """A row for each cost."""
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / "transport.py"), "--quick"],
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[2].startswith("| hello, computing of the listening side | "), done.stdout
