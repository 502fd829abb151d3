"""What is to be checked: the nodes of the job that this is in, or of another one that was named."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hpc_launch import hostlist
from hpc_launch.check.node_facts import software, torch_version
from hpc_launch.errors import ContextError
from hpc_launch.plan import step_plan
from hpc_launch.plan.launch_context import LaunchContext
from hpc_launch.settings import Settings
from hpc_launch.slurm import controller
from hpc_launch.slurm.environment import Allocation, Place, Step
from hpc_launch.slurm.steps import StepRequest

# Seconds for each question to the controller.
_PATIENCE = 5.0


@dataclass(frozen=True)
class NodeSelection:
    """What is to be checked.

    Attributes:
        step: the step to start: the job, and which of its nodes.
        gone: further nodes, which Slurm has taken out of the job.
        given: options of the launcher, as texts by their names: what a run would be given too.
        environ: the environment.
        asker: the node on which this runs; empty on a login node.
        own_software: the versions of what this runs with.
        timeout: seconds that the nodes have for each question.
    """

    step: StepRequest
    given: Mapping[str, Any]
    environ: Mapping[str, str]
    gone: tuple[str, ...] = ()
    asker: str = ""
    own_software: Mapping[str, str] = dataclasses.field(default_factory=dict)
    timeout: float = 60.0


def select_nodes(
    settings: Settings, here: LaunchContext, given: Mapping[str, Any], timeout: float
) -> NodeSelection | None:
    """Say what to check; None in all tasks of a step but the first, which does it for all.

    Raises:
        ContextError: outside of a job, where there is no srun, or where the job lacks the nodes that were asked for.
    """
    place = here.slurm
    if place is None:
        raise ContextError(
            "this is no Slurm job, and hpc-launch check looks at the nodes of one: put 'hpc-launch check' into the job "
            "script before srun, type it after salloc, or name a job that runs with --jobid"
        )
    if isinstance(place, Step) and place.task != 0:
        return None
    if not here.has_srun:
        raise ContextError(
            "there is no srun here, which starts a probe on each node: call hpc-launch check outside of the container"
        )
    if isinstance(place, Allocation) and place.components > 1:
        raise ContextError(
            f"job {place.job_label} is heterogeneous: check the nodes of one component with 'srun --het-group=0 "
            "hpc-launch check'"
        )
    job = _allocation(place) if isinstance(place, Step) else place
    asked = step_plan.choose_step(settings, here, job, (), controller.ask_grants(job.job_id, _PATIENCE).gpus_to_ask)
    there = _still_there(job)
    hosts = tuple(host for host in asked.hosts if host in there)
    if not hosts:
        raise ContextError(
            f"Slurm has taken {hostlist.fold(asked.hosts)} out of job {job.job_label}: no node is left to look at"
        )
    return NodeSelection(
        step=dataclasses.replace(some_of(asked, hosts), overlap=True, name="hpc-launch-check"),
        given=given,
        environ=here.environ,
        gone=tuple(host for host in asked.hosts if host not in there),
        asker=place.node_name,
        own_software=software() | torch_version(),
        timeout=timeout,
    )


def some_of(whole: StepRequest, hosts: tuple[str, ...]) -> StepRequest:
    """The same step on some of its nodes. Pure."""
    gpus = dict(zip(whole.hosts, whole.gpus, strict=False))
    return dataclasses.replace(whole, hosts=hosts, gpus=tuple(gpus[host] for host in hosts if host in gpus))


def _allocation(place: Step) -> Allocation:
    """The nodes of a step, as if they were a job's."""
    return Allocation(
        job_id=place.job_id,
        job_label=place.job_label,
        place=Place.TERMINAL,
        hosts=place.hosts,
        node_name=place.node_name,
        submit_directory=place.submit_directory,
        restart_count=place.restart_count,
    )


def _still_there(job: Allocation) -> tuple[str, ...]:
    """The nodes that the job has now: with --no-kill Slurm takes those out that are down."""
    record = controller.ask_job(job.job_id, _PATIENCE)
    return hostlist.expand(record.nodes) if record and record.nodes else job.hosts
