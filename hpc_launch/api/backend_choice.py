"""Where a job is to run: queued by Slurm, in an allocation that is there, or here. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from hpc_launch import hostlist
from hpc_launch.api.job_resources import CLUSTERS, Resources
from hpc_launch.errors import ContextError, UsageError
from hpc_launch.slurm.environment import Allocation, Place, Step

SLURM, ALLOCATION, LOCAL, DEBUG = "slurm", "allocation", "local", "debug"

# The shells of an allocation that somebody has asked for to work in. A batch script is another's job.
_TO_WORK_IN = frozenset({Place.SHELL, Place.INTERACTIVE, Place.TERMINAL})


@dataclass(frozen=True)
class BackendChoice:
    """Where a job is to run.

    Attributes:
        cluster: `slurm`, `allocation`, `local` or `debug`.
        why: in words that follow that.
    """

    cluster: str
    why: str


def choose_backend(
    asked: str, here: Step | Allocation | None, *, has_slurm: Callable[[], bool], resources: Resources
) -> BackendChoice:
    """Say where a job is to run.

    Args:
        asked: what was asked for; `auto` leaves it open.
        here: where in Slurm this process is.
        has_slurm: says whether jobs can be submitted from here.
        resources: what the job is to have.

    Raises:
        UsageError: there is no such kind of cluster.
        ContextError: what was asked for is not to be had here.
    """
    check_cluster(asked)
    if asked == SLURM and not has_slurm():
        raise ContextError(
            "cluster='slurm', but there is no sbatch here, or no slurm.conf that it finds: is this a machine of the "
            "cluster?"
        )
    if asked == ALLOCATION:
        if not isinstance(here, Allocation):
            raise ContextError("cluster='allocation', but this is not the shell of an allocation: get one with salloc")
        too_much = _too_much(here, resources)
        if too_much:
            raise ContextError(f"cluster='allocation': {too_much}")
    if asked != "auto":
        return BackendChoice(asked, "as asked")
    if isinstance(here, Allocation) and here.place in _TO_WORK_IN:
        too_much = _too_much(here, resources)
        if not too_much:
            return BackendChoice(
                ALLOCATION, f"job {here.job_label} has its nodes already; cluster='slurm' would queue it"
            )
        return BackendChoice(SLURM, too_much)
    if has_slurm():
        return BackendChoice(SLURM, "queued by sbatch")
    return BackendChoice(LOCAL, "there is no Slurm here")


def check_cluster(asked: str) -> None:
    """Refuse a kind of cluster that there is not.

    Raises:
        UsageError: naming those that there are.
    """
    if asked not in CLUSTERS:
        raise UsageError(f"cluster={asked!r}: {', '.join(CLUSTERS)} is expected", option="cluster")


def _too_much(job: Allocation, resources: Resources) -> str:
    """Why an allocation is not enough; empty where it is, as far as is known."""
    needed = resources.all_nodes.minimum
    if needed > len(job.hosts):
        return (
            f"{needed} nodes are asked for, and the allocation {job.job_label} has {len(job.hosts)} "
            f"({hostlist.fold(job.hosts)})"
        )
    gpus = job.gpus_on_node
    if resources.gpus_per_node and gpus is not None and resources.gpus_per_node > gpus:
        return f"{resources.gpus_per_node} GPUs per node are asked for, and the allocation {job.job_label} has {gpus}"
    return ""


def local_ranks(resources: Resources, devices: int) -> tuple[int, str]:
    """How many ranks run on this machine alone, in place of several nodes; and why not as many as were asked for.

    Args:
        resources: what was asked for.
        devices: the accelerators of this machine.
    """
    asked = resources.node_range.maximum * (resources.ranks or 1)
    if resources.gpus_per_node and devices and asked > devices:
        return devices, f"{devices} ranks instead of {asked}, as this machine has {devices} GPU(s)"
    return asked, ""
