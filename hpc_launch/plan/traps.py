"""What is probably not meant: known traps that can be seen from here, a line each. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from hpc_launch import hostlist, text
from hpc_launch.plan import cpu_binding
from hpc_launch.plan.launch_context import LaunchContext
from hpc_launch.settings import Origin, Settings
from hpc_launch.slurm.environment import Step
from hpc_launch.world import World

_PRESET = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class TrapContext:
    """What a trap is looked for in.

    Attributes:
        step: the Slurm step of the run; None where the run has nothing to do with one.
        backend: the rendezvous backend.
    """

    settings: Settings
    here: LaunchContext
    world: World
    step: Step | None
    local_world_size: int
    backend: str

    @property
    def local_ranks(self) -> int:
        """The workers on this node, of all its agents."""
        return self.world.local_agents * self.local_world_size


def warnings(case: TrapContext) -> tuple[str, ...]:
    """The traps that this run has fallen into."""
    return tuple(line for trap in TRAPS if (line := trap(case)) is not None)


def unseen_by_the_first(case: TrapContext) -> tuple[str, ...]:
    """The traps that the first agent does not see: each is told by one of those that do."""
    if case.step is None:
        return ()
    place = (case.world.node_rank, case.world.local_agent)
    if place == (0, 1):
        found = [_isolated_tasks(case)]
    elif place == (1, 0):
        found = [_ignored_node_rank(case) if case.settings.node_rank == 0 else None, _too_few_devices(case)]
    else:
        found = []
    return tuple(line for line in found if line is not None)


def _few_cpus(case: TrapContext) -> str | None:
    cpus, ranks = cpu_binding.given_cpus(case.here, case.world, case.step), case.local_world_size
    if cpus >= ranks:
        return None
    mend = ""
    if case.step is not None:
        mend = ": ask for more with --cpus-per-task of sbatch or salloc"
    if case.step is not None and not case.step.ours:
        mend = ": ask for more with srun --cpus-per-task (Slurm 22.05 to 23.02 does not pass the job's on to srun)"
    return f"{ranks} local ranks share {text.count(cpus, 'CPU')}{mend}"


def _numbered_otherwise(case: TrapContext) -> str | None:
    step = case.step
    if step is None or step.node_id in (None, step.node_rank):
        return None
    return (
        f"SLURM_NODEID={step.node_id}, but {step.node_name} is number {step.node_rank} of {hostlist.fold(step.hosts)}: "
        "the order of the list counts (they differ in heterogeneous steps)"
    )


def _other_node_rank(case: TrapContext) -> str | None:
    """Scripts that were written for torchrun number nodes by themselves."""
    asked = case.settings.node_rank
    return _ignored_node_rank(case) if case.step and asked not in (None, case.world.node_rank) else None


def _ignored_node_rank(case: TrapContext) -> str:
    world = case.world
    return (
        f"--node-rank {case.settings.node_rank} is ignored: {world.host} is node {world.node_rank} of "
        f"{hostlist.fold(world.hosts)} (in a batch script $SLURM_NODEID and $SLURM_PROCID are always 0); leave it out"
    )


def _other_backend(case: TrapContext) -> str | None:
    """Scripts that were written for torchrun bring its rendezvous along (docs/from-torchrun.md)."""
    if case.step is None or case.backend == "slurm" or case.world.agents == 1:
        return None
    return (
        f"--rdzv-backend {case.backend}: each node counts restarts and judges failures by itself; leave --rdzv-backend "
        "and --rdzv-endpoint out, and all nodes of the step have the same attempts, one root cause and one exit status"
    )


def _isolated_tasks(case: TrapContext) -> str | None:
    """Device cgroups per task (Slurm 21.08 on) break peer access: NVIDIA/nccl#1066, open-mpi/ompi#11949.

    Devices are numbered within the cgroup. So the second task sees device 0 where it has a cgroup of its own, and
    another number where it was given a part of a shared one, as by `--gres-flags=allow-task-sharing`, or by a site that
    does not constrain devices; the first task sees device 0 anyway.
    """
    gpus = case.step.gpus_on_node if case.step else None
    if not case.world.task_per_rank or case.here.devices.tokens != ("0",) or (gpus or 0) <= 1:
        return None
    return (
        f"each of {case.local_ranks} tasks sees one GPU, as device 0, and NCCL cannot use peer access between them: "
        "use srun --ntasks-per-node=1, or srun --gpu-bind=none"
    )


def _idle_devices(case: TrapContext) -> str | None:
    tasks, devices = case.world.local_agents, case.here.devices
    if case.step is None or not case.world.task_per_rank or not 1 < tasks < len(devices):
        return None
    return (
        f"{tasks} tasks on {case.world.host}, each one rank, but {len(devices)} GPUs ({devices.source}): use srun "
        f"--ntasks-per-node={len(devices)}, or --ntasks-per-node=1, with which hpc-launch starts a worker per GPU"
    )


def _too_few_devices(case: TrapContext) -> str | None:
    """Srun starts CPUs/c tasks on each node of an exclusive job that says -c and not -n, whatever GPUs there are."""
    tasks, devices = case.world.local_agents, case.here.devices
    # Where each task sees a single one, that is its own (`_isolated_tasks`).
    if case.step is None or not case.world.task_per_rank or not 1 < len(devices) < tasks:
        return None
    return (
        f"{tasks} tasks on {case.world.host}, each one rank, but {len(devices)} GPUs ({devices.source}): none has the "
        f"number of a LOCAL_RANK from {len(devices)} on; use srun --ntasks-per-node={len(devices)}, or "
        "--ntasks-per-node=1, with which hpc-launch starts a worker per GPU"
    )


def _hidden_devices(case: TrapContext) -> str | None:
    gpus, devices = case.step.gpus_on_node if case.step else None, case.here.devices
    if gpus and not devices:
        return (
            f"Slurm gave {gpus} GPU{'s' if gpus > 1 else ''} on {case.world.host} but none is visible "
            f"({devices.source}): is the driver there, or a mask such as CUDA_VISIBLE_DEVICES empty?"
        )
    if not gpus or case.world.task_per_rank or len(devices) == gpus:
        return None
    return f"Slurm gave {gpus} GPUs on {case.world.host} but {len(devices)} are visible ({devices.source})"


def _unasked_devices(case: TrapContext) -> str | None:
    """Slurm hides GPUs that nobody asked for (ConstrainDevices), and the driver's files are there all the same."""
    if case.step is None or case.step.gpus_on_node or not case.world.leader:
        return None
    there = case.here.configured_gpus(case.step.node_name)
    if not there:
        return None
    return (
        f"{case.world.host} has {text.count(there, 'GPU')}, but Slurm gave this step none: to train on GPUs, use "
        f"--gpus-per-node={there} for sbatch, salloc or srun"
    )


def _single_device_processes(case: TrapContext) -> str | None:
    if not case.here.devices.exclusive or case.settings.virtual_local_rank or case.settings.gpu_bind != "visible":
        return None
    return "MIG devices: each worker sees its own as device 0 and has LOCAL_RANK=0"


def _ranks_already_set(case: TrapContext) -> str | None:
    preset = [name for name in _PRESET if name in case.here.environ]
    if not preset:
        return None
    return f"{', '.join(preset)} {'is' if len(preset) == 1 else 'are'} set already: the workers get their own"


def _other_libraries_names(case: TrapContext) -> str | None:
    """What NCCL_SOCKET_IFNAME may have, Gloo takes for the name of an interface: "Unable to find address for: ^lo"."""
    name, value = "GLOO_SOCKET_IFNAME", case.here.environ.get("GLOO_SOCKET_IFNAME", "")
    if not value.startswith(("^", "=")):
        return None
    return f"{name}={value} is written as for NCCL: Gloo wants the name of an interface; unset it, or use --interface"


def _unwatched_output(case: TrapContext) -> str | None:
    settings = case.settings
    if not settings.hang_timeout or (settings.redirects is None and settings.tee is None and not settings.logs_specs):
        return None
    how = "--logs-specs" if settings.logs_specs else "-r or -t"
    return (
        f"--hang-timeout watches output in files of the job directory only: what {how} sends elsewhere is no sign of "
        "life, and ranks should call runtime.mark_progress"
    )


def _spares_of_one(case: TrapContext) -> str | None:
    """Spares alone never begin (`rendezvous.membership`): they cannot know that the others train no more."""
    nodes, spares = len(case.world.hosts), case.settings.spares
    if not spares or nodes - spares > 1:
        return None
    return (
        f"--spares {spares} leaves one node with workers, and without it spares do not begin: leave --spares out, "
        f"and of {nodes} nodes --nnodes 1:{nodes} goes on with those that are left"
    )


def _environment_gone(case: TrapContext) -> str | None:
    """In a batch script there is one process, which may be meant; other nodes that the job has are idle then."""
    traced = case.here.traced
    if (
        traced is None
        or traced.of_srun
        or case.world.origin is not Origin.DEFAULT
        or case.here.traced_size() is not None
    ):
        return None
    return (
        f"this is {traced}, but the SLURM_* variables are gone, so that this node trains alone: pass them on for all "
        "nodes of the job, or say --standalone"
    )


def _alone_in_a_container(case: TrapContext) -> str | None:
    """Where the container also hides the cgroup of the step, nothing else shows that other tasks train alone too."""
    here, world = case.here, case.world
    if not here.contained or here.traced is not None or world.origin is not Origin.DEFAULT or len(world.hosts) > 1:
        return None
    return (
        "this container has no SLURM_* variables, so that this node trains alone: in a step pass them into it "
        "(docs/containers.md), or say --standalone"
    )


TRAPS: tuple[Callable[[TrapContext], str | None], ...] = (
    _few_cpus,
    _numbered_otherwise,
    _other_node_rank,
    _other_backend,
    _idle_devices,
    _too_few_devices,
    _hidden_devices,
    _unasked_devices,
    _single_device_processes,
    _ranks_already_set,
    _other_libraries_names,
    _unwatched_output,
    _spares_of_one,
    _environment_gone,
    _alone_in_a_container,
)
