"""The benchmarks run: what they measure is theirs to say, not a test's. The long ones run in the soak."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def test_all_can_be_called() -> None:
    """Each of them imports what it needs, and explains itself."""
    program = """if True:
        import contextlib, pathlib, runpy, sys
        for path in sorted(pathlib.Path(sys.argv[1]).glob("*.py")):
            sys.argv = [str(path), "--help"]
            with contextlib.suppress(SystemExit):
                runpy.run_path(str(path), run_name="__main__")
    """
    done = subprocess.run(
        [sys.executable, "-c", program, str(BENCHMARKS)], capture_output=True, text=True, check=False, timeout=280
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert re.findall(r"^usage: (\S+)", done.stdout, re.MULTILINE) == sorted(
        path.name for path in BENCHMARKS.glob("*.py")
    )


@pytest.mark.soak
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


@pytest.mark.soak
def test_starts_are_measured() -> None:
    """A line for each launcher."""
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / "startup.py"), "--quick"],
        capture_output=True,
        text=True,
        check=False,
        timeout=500,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line.split(" | ")[1] for line in done.stdout.splitlines()[2:]]
    assert rows == ["floor", "torchrun", "hpc-launch exec", "hpc-launch warm"]


@pytest.mark.soak
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
