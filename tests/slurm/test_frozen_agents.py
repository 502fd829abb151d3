"""Agents are stopped (SIGSTOP) while their nodes and their workers go on: nobody waits for them for ever."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from hpc_launch.records import events
from tests.cluster import Cluster
from tests.slurm.losses_support import Run, run


@contextlib.contextmanager
def frozen(job: Run, node: str) -> Iterator[None]:
    """Stop the agent of a node for a while."""
    agent = job.agent(node)
    os.kill(agent, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(agent, signal.SIGCONT)


@pytest.mark.parametrize(
    ("node", "killed", "words"),
    [
        pytest.param("gpu003", "gpu002", "lost gpu003", id="a member"),
        pytest.param("gpu001", "gpu003", "gpu002 over gpu001", id="the leader"),
        pytest.param("gpu002", "gpu001", "gpu003 over gpu001", id="the next", marks=pytest.mark.soak),
    ],
)
def test_an_agent_is_frozen_when_another_is_lost(
    cluster: Cluster, tmp_path: Path, node: str, killed: str, words: str
) -> None:
    """It is waited for, and named, and the others go on; when it runs again it takes part from the next attempt on."""
    left = [one for one in cluster.nodes if one not in (node, killed)]
    with run(cluster, tmp_path, "--nnodes=1:4", "--max-restarts=1") as job:
        job.trains_on(0, *cluster.nodes)
        with frozen(job, node):
            cluster.kill(killed)
            job.sees(words)
            job.trains_on(1, *left)
        job.hears_again(node)
        job.fails(1, 0)
        job.trains_on(2, *(one for one in cluster.nodes if one != killed))
        job.ends_well(*left, node)


@pytest.mark.soak
@pytest.mark.parametrize("node", ["gpu001", "gpu003"])
def test_an_agent_is_frozen_while_workers_run(cluster: Cluster, tmp_path: Path, node: str) -> None:
    """That disturbs nobody until the workers of all others have ended: these go on without it, and end well."""
    left = [one for one in cluster.nodes if one != node]
    with run(cluster, tmp_path, "--nnodes=1:4") as job:
        job.trains_on(0, *cluster.nodes)
        with frozen(job, node):
            job.ends_well(*left)

    assert job.so_far.attempts() == [0, 1], job.describe()
    assert [one["host"] for _, one in sorted(job.so_far.said(1).items())] == left, job.describe()


@pytest.mark.soak
@pytest.mark.parametrize("node", ["gpu001", "gpu002", "gpu004"])
@pytest.mark.parametrize("moment", [events.ROUND_ENDED, events.WORKER_ENDED, events.ATTEMPT])
def test_an_agent_is_frozen_while_all_start_again(cluster: Cluster, tmp_path: Path, node: str, moment: str) -> None:
    """At whatever moment, the leader too: the others train, and the agent is one of all in the next attempt.

    If its workers have begun just before, all train, and nobody waits for it.
    """
    together = [one for one in cluster.nodes if one != "gpu003"]
    left = [one for one in together if one != node]
    with run(cluster, tmp_path, "--nnodes=1:4", "--max-restarts=1") as job:
        job.trains_on(0, *cluster.nodes)
        cluster.kill("gpu003")
        job.notes(node, moment, attempt=int(moment == events.ATTEMPT))
        with frozen(job, node):
            attempt, hosts = job.goes_on_in(left, together)
        if hosts == left:
            job.hears_again(node)
        job.fails(attempt, 0)
        job.trains_on(attempt + 1, *together)
        job.ends_well(*together)


@pytest.mark.parametrize("stopped", [False, True], ids=["until it runs again", "until it is told to leave"])
def test_the_leader_of_a_run_of_fixed_size_is_frozen(cluster: Cluster, tmp_path: Path, stopped: bool) -> None:
    """It is no loss: an agent whose worker fails waits for it, with one line, and a signal ends the wait."""
    with run(cluster, tmp_path, "--max-restarts=1", "--node-timeout=1", nodes=2) as job:
        job.trains_on(0, "gpu001", "gpu002")
        with frozen(job, "gpu001"):
            job.fails(0, 1)
            job.sees("waiting gpu001")
            if stopped:
                os.kill(job.agent("gpu002"), signal.SIGTERM)
                job.stops("gpu002", status="143")
        if not stopped:
            job.trains_on(1, "gpu001", "gpu002")
            job.ends_well("gpu001", "gpu002")
