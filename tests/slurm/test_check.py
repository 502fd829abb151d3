"""`hpc-launch check` names the bad node, and only that one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster import Cluster, ClusterConfig, host
from tests.slurm.check_support import Checked, check, mounted, pretending
from tests.slurm.jobs_support import run_job

BAD = "gpu003"


def only(checked: Checked, *words: str, node: str = BAD) -> None:
    """See that one node is named, with one finding that has these words, and is the one to leave out."""
    assert (checked.status, set(checked.findings)) == (1, {node}), checked.output
    assert len(checked.findings[node]) == 1, checked.output
    assert all(word in checked.findings[node][0] for word in words), checked.output
    assert checked.report["exclude"] == node


def test_a_good_allocation(cluster: Cluster, tmp_path: Path) -> None:
    """Where all is well nothing is found, all ranks have reduced, and nothing is left behind."""
    checked = check(cluster, tmp_path, "--nproc-per-node=2")
    report = checked.report

    assert (checked.status, report["ok"], report["findings"], report["exclude"]) == (0, True, [], ""), checked.output
    assert [(entry["ranks"], entry["errors"]) for entry in report["reductions"]] == [(8, {})]
    assert list(report["nodes"]) == list(cluster.nodes)
    assert [path.name for path in tmp_path.iterdir()] == ["pretend"]


def test_a_node_whose_slurmd_is_gone(cluster: Cluster, tmp_path: Path) -> None:
    """A node on which Slurm cannot start anything is named, with Slurm's word; the others are looked at all the same."""
    script = f"touch started; until [ -e killed ]; do sleep 0.05; done; hpc-launch check --json >report; echo $? >status"
    job = cluster.sbatch(script, "--no-kill", "--nodes=4", cwd=tmp_path, env=pretending(tmp_path, {}))
    job.wait_for_file(tmp_path / "started") if hasattr(job, "wait_for_file") else None
    cluster.kill(BAD)
    (tmp_path / "killed").touch()
    job.wait(240)
    checked = Checked(int((tmp_path / "status").read_text()), (tmp_path / "report").read_text())

    only(checked, "Slurm cannot start a process there", "Communication connection failure")
    assert checked.report["reductions"][0]["ranks"] == 3
