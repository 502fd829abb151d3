"""How many threads each worker's libraries start (`OMP_NUM_THREADS`). Pure."""

from __future__ import annotations

from hpc_launch.plan.cpu_binding import Binding
from hpc_launch.plan.launch_context import LaunchContext
from hpc_launch.settings import Settings
from hpc_launch.slurm.environment import Step
from hpc_launch.world import World


def omp_num_threads(
    settings: Settings, here: LaunchContext, found: World, local_world_size: int, bound: Binding
) -> tuple[int | None, str]:
    """As many as CPUs that each rank may really use; a variable that is set stays as it is."""
    if settings.omp_num_threads is not None:
        return settings.omp_num_threads, settings.origin("omp_num_threads").value
    if here.environ.get("OMP_NUM_THREADS"):
        return None, "environment"
    cpus, ranks = here.cpus, local_world_size
    if found.task_per_rank and isinstance(here.slurm, Step):
        # Tasks that Slurm has not bound all see the CPUs of the whole step.
        share = (here.slurm.cpus_on_node or cpus) // found.local_agents
        cpus = max(1, min(cpus, share))
    if bound.fewest is not None:
        # One number for all, because those that are forked share one OpenMP, which reads it when it is loaded.
        return min(cpus, bound.fewest), "the fewest CPUs of a local rank"
    return max(1, cpus // ranks), f"{cpus} allowed CPUs / {ranks} local ranks"
