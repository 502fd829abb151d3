"""Agents take nothing from the workers' CPUs while nothing happens: their threads sleep."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cluster import Cluster
from tests.slurm.losses_support import WAITS, run
from tests.wakes import agent_and_factory, wakes_per_second


@pytest.mark.parametrize(
    ("options", "spares"),
    [(["--nnodes=2"], []), (["--spares=1"], ["gpu003"])],
    ids=["of fixed size", "elastic, with a spare"],
)
def test_agents_of_quiet_workers_sleep(cluster: Cluster, tmp_path: Path, options: list[str], spares: list[str]) -> None:
    """For ten seconds an agent and its factory wake less than twice a second, all their threads together.

    Once what begins with a run is over: Slurm's first answers may take a while where much else is done.
    """
    nodes = ["gpu001", "gpu002", *spares]
    with run(cluster, tmp_path, *options, nodes=len(nodes), worker=WAITS) as job:
        job.trains_on(0, "gpu001", "gpu002")
        for node in spares:
            job.sees(f"{node} is a spare")
        groups = [agent_and_factory(job.agent(node)) for node in nodes]
        for _ in range(3):
            woke = wakes_per_second([pid for group in groups for pid in group], 10)
            busy = [group for group in groups if sum(woke[pid] for pid in group) >= 2]
            if not busy:
                break
        job.ends_well(*nodes)

    assert busy == [], woke
