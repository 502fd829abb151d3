"""The benchmarks run: what they measure is theirs to say, not a test's. The long ones run in the soak."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"

# Has each script explain itself; they import what they need first.
HELP = """
import contextlib, pathlib, runpy, sys

for path in sorted(pathlib.Path(sys.argv[1]).glob("*.py")):
    sys.argv = [str(path), "--help"]
    with contextlib.suppress(SystemExit):
        runpy.run_path(str(path), run_name="__main__")
"""


def run(*words: str) -> str:
    """Run Python; returns what it has printed, after seeing that it ended well."""
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def table(name: str) -> list[str]:
    """Run the quick form of a benchmark; returns the lines of its table."""
    return [line for line in run(str(BENCHMARKS / name), "--quick").splitlines() if line.startswith("| ")]


def test_all_can_be_called() -> None:
    """Each of them imports what it needs, and explains itself."""
    names = sorted(path.name for path in BENCHMARKS.glob("*.py"))
    assert re.findall(r"^usage: (\S+)", run("-c", HELP, str(BENCHMARKS)), re.MULTILINE) == names


@pytest.mark.soak
@pytest.mark.usefixtures("slurm_host")
@pytest.mark.parametrize("name", ["restart.py", "rendezvous.py", "lost_node.py"])
def test_a_benchmark_prints_its_table(name: str) -> None:
    """In its quick form each of them ends well, with a line for hpc-launch."""
    lines = [line for line in table(name) if "| hpc-launch | " in line]
    assert lines
    assert all("| 1 of 1 |" in line for line in lines), lines


@pytest.mark.soak
def test_starts_are_measured() -> None:
    """A line for each launcher."""
    rows = [line.split(" | ")[1] for line in table("startup.py")[-4:]]
    assert rows == ["floor", "torchrun", "hpc-launch exec", "hpc-launch warm"]


@pytest.mark.soak
def test_lost_nodes_are_simulated() -> None:
    """A row for a few nodes: all have met, and have gone on without one and without their leader."""
    assert table("losses.py")[-1].startswith("| 8 | ")


def test_connections_of_agents_are_measured() -> None:
    """A row for each cost."""
    assert "| hello, computing of the listening side | " in "\n".join(table("transport.py"))
