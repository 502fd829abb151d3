"""What a step that is yet to start will find on its first node, by what Slurm says of the job. Pure.

`explain` and `env` make the plan of the run from it: where they are called, in a job script or in a shell of `salloc`,
there may be other CPUs, other GPUs and another network.
"""

from __future__ import annotations

from dataclasses import replace

from hpc_launch.node.devices import Devices
from hpc_launch.node.topology import Topology
from hpc_launch.plan.launch_context import LaunchContext
from hpc_launch.plan.launch_plan import DerivedValue, Plan
from hpc_launch.slurm import steps
from hpc_launch.slurm.environment import Allocation, Step
from hpc_launch.slurm.steps import JobGrants, StepRequest

# What is known on the nodes only, or is said of the step itself.
_NOT_YET = frozenset(
    {"nnodes", "hosts", "node_rank", "rdzv_id", "master_port", "cpu_bind", "open_files", "job_directory"}
)


def first_task(here: LaunchContext, job: Allocation, request: StepRequest, grants: JobGrants) -> LaunchContext | None:
    """What the first task of a step will find.

    Args:
        here: this process.
        job: where the step is to run.
        request: the step.
        grants: what the job has.

    Returns:
        None where Slurm does not say what the job has on the first node of the step.
    """
    grant = grants.nodes.get(request.hosts[0])
    if grant is None or not grant.cpus:
        return None
    step = Step(
        job_id=job.job_id,
        job_label=job.job_label,
        step_id=0,
        hosts=request.hosts,
        node_name=request.hosts[0],
        node_id=0,
        tasks=len(request.hosts),
        task=0,
        local_tasks=1,
        local_task=0,
        cpus_on_node=grant.cpus,
        gpus_on_node=grant.gpus or None,
        job_hosts=len(job.hosts),
        reserved_ports=(),
        submit_directory=job.submit_directory,
        restart_count=job.restart_count,
        ours=True,
    )
    return replace(
        here,
        environ=steps.task_environment(steps.srun_environment(here.environ, job.job_id)),
        host=step.node_name,
        slurm=step,
        devices=_devices(grant.gpus, f"the job's GPUs on {step.node_name}"),
        cpus=grant.cpus,
        allowed=frozenset(range(grant.cpus)),
        topology=Topology,
        locations=tuple,
        traced=None,
    )


def known_values(made: Plan) -> tuple[DerivedValue, ...]:
    """What is known of a plan that was made of `first_task`, before its step has started."""
    return tuple(item for item in made.derived if item.name not in _NOT_YET)


def _devices(count: int, source: str) -> Devices:
    return Devices(tuple(map(str, range(count))), "CUDA_VISIBLE_DEVICES", source) if count else Devices()
