"""What a check looks at: the right nodes of the right job, once."""

from __future__ import annotations

import dataclasses
import platform
from pathlib import Path

import pytest
import torch

import hpc_launch
from hpc_launch.check import node_selection
from hpc_launch.errors import ContextError
from hpc_launch.node.devices import Devices
from hpc_launch.plan.launch_context import LaunchContext
from hpc_launch.settings import resolve
from hpc_launch.slurm import controller
from hpc_launch.slurm.environment import Allocation, Place, Step
from hpc_launch.slurm.job import JobRecord
from hpc_launch.slurm.steps import JobGrants, NodeGrant, StepRequest

NODES = ("gpu001", "gpu002", "gpu003", "gpu004")
JOB = Allocation("12", "12", Place.BATCH, NODES, "gpu001", "/home/ada", 0)
STEP = Step(
    job_id="12",
    job_label="12",
    step_id=0,
    hosts=NODES[:2],
    node_name="gpu001",
    node_id=0,
    tasks=4,
    task=0,
    local_tasks=2,
    local_task=0,
    cpus_on_node=8,
    gpus_on_node=None,
    job_hosts=4,
    reserved_ports=(),
    submit_directory="/home/ada",
    restart_count=0,
)


@pytest.fixture(autouse=True)
def answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let Slurm say that gpu002 has been taken out of the job, which has two GPUs on each node."""
    record = JobRecord(job_id="12", state="RUNNING", nodes="gpu[001,003-004]")
    monkeypatch.setattr(controller, "ask_job", lambda *_: record)
    grants = JobGrants(dict.fromkeys(NODES, NodeGrant(8, 2)), by_node=False)
    monkeypatch.setattr(controller, "ask_grants", lambda *_: grants)


def here(place: Step | Allocation | None, *, has_srun: bool = True) -> LaunchContext:
    """Return a process at a place."""
    return LaunchContext(
        environ={},
        directory=Path("/home/ada"),
        host="gpu001",
        slurm=place,
        devices=Devices(),
        cpus=8,
        position=lambda _: 0,
        read=Path.read_text,
        has_srun=has_srun,
    )


def test_all_nodes_that_the_job_still_has() -> None:
    """The step has those that are there, with their GPUs; the others are known to be gone."""
    found = node_selection.select_nodes(resolve({}, {}), here(JOB), {"interface": "ib0"}, 30.0)

    assert found is not None
    assert (found.step.hosts, found.step.gpus, found.step.overlap) == (("gpu001", "gpu003", "gpu004"), (2, 2, 2), True)
    assert (found.gone, found.asker, found.given, found.timeout) == (("gpu002",), "gpu001", {"interface": "ib0"}, 30.0)
    assert found.own_software == {
        "Python": platform.python_version(),
        "hpc-launch": hpc_launch.__version__,
        "torch": torch.__version__,
    }


def test_nodes_that_are_named() -> None:
    """--nodes chooses."""
    found = node_selection.select_nodes(resolve({"nodes": "gpu[003-004]"}, {}), here(JOB), {}, 30.0)

    assert found is not None
    assert (found.step.hosts, found.gone) == (("gpu003", "gpu004"), ())


def test_in_a_step_its_nodes_count() -> None:
    """The first task of a step looks at the nodes of the step, the others at none."""
    settings = resolve({}, {})
    found = node_selection.select_nodes(settings, here(STEP), {}, 30.0)

    assert found is not None
    assert (found.step.hosts, found.gone) == (("gpu001",), ("gpu002",))
    assert node_selection.select_nodes(settings, here(dataclasses.replace(STEP, task=1)), {}, 30.0) is None


@pytest.mark.parametrize(
    ("place", "has_srun", "nodes", "words"),
    [
        (None, True, None, "Slurm job"),
        (JOB, False, None, "srun"),
        (dataclasses.replace(JOB, components=2), True, None, "heterogeneous"),
        (JOB, True, "gpu002", "node"),
        (JOB, True, "gpu009", "gpu009"),
    ],
)
def test_where_nothing_can_be_looked_at(
    place: Allocation | None, has_srun: bool, nodes: str | None, words: str
) -> None:
    """One line says what is missing, and what to do."""
    settings = resolve({"nodes": nodes} if nodes else {}, {})
    with pytest.raises(ContextError, match=words):
        node_selection.select_nodes(settings, here(place, has_srun=has_srun), {}, 30.0)


def test_some_nodes_of_a_step_keep_their_gpus() -> None:
    """Each node brings its own number; without numbers there are none."""
    whole = StepRequest("12", ("a", "b", "c"), gpus=(1, 2, 3))

    assert node_selection.some_of(whole, ("a", "c")).gpus == (1, 3)
    assert node_selection.some_of(dataclasses.replace(whole, gpus=()), ("a", "c")).gpus == ()
