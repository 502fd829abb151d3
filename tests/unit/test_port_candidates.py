"""The ports of a run: the same on every node, different for different runs."""

from __future__ import annotations

import subprocess

import pytest
from hypothesis import given, strategies as st

from hpc_launch.node.port_candidates import CANDIDATES, candidates

RANGE = range(20000, 32000)


@given(run_id=st.text(), low=st.integers(1, 65000), size=st.integers(1, 500))
def test_candidates_are_different_ports_of_the_range(run_id: str, low: int, size: int) -> None:
    """Each port is in the range and is tried once, however small the range is."""
    ports = range(low, low + size)
    found = candidates(run_id, ports)

    assert set(found) <= set(ports)
    assert 1 <= len(found) == len(set(found)) <= min(CANDIDATES, size)


def test_another_process_computes_the_same(python: str) -> None:
    """Nothing random, nor Python's own hash, is in the sequence: nodes agree without talking."""
    program = (
        "from hpc_launch.node.port_candidates import candidates; print(candidates('4711.0.0', range(20000, 32000)))"
    )
    found = {
        subprocess.run(
            [python, "-c", program], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        ).stdout.strip()
        for seed in ("1", "2")
    }
    assert {str(candidates("4711.0.0", RANGE))} == found


@pytest.mark.parametrize("other", ["4711.1.0", "4711.0.1", "4712.0.0", "14711.0.0", "hosts-4711"])
def test_runs_that_share_nodes_try_other_ports(other: str) -> None:
    """Another step, restart or job begins at another port and goes another way."""
    mine, its = candidates("4711.0.0", RANGE), candidates(other, RANGE)

    assert mine[0] != its[0]
    assert mine != its


def test_neighbouring_jobs_spread_over_the_range() -> None:
    """A thousand jobs in a row begin at nearly a thousand ports, and not at a few."""
    first = {candidates(f"{job}.0.0", RANGE)[0] for job in range(1000, 2000)}

    assert len(first) > 900


def test_reserved_ports_are_all_tried() -> None:
    """A few ports that Slurm has reserved are all candidates, in some order."""
    assert {12000, 12005} == set(candidates("4711.0.0", (12000, 12005)))
