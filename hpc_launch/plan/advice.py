"""What is worth saying where somebody asks (`explain`), and would only be noise in every run. Pure.

A line each, with what to do. Some can be seen from a job script or a shell only, before there is a step.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from hpc_launch import hostlist
from hpc_launch.errors import HostlistError
from hpc_launch.node import network
from hpc_launch.plan.launch_context import LaunchContext
from hpc_launch.plan.launch_plan import Plan
from hpc_launch.settings import NodeRange, Origin, Settings
from hpc_launch.slurm.cluster_rules import ClusterRules
from hpc_launch.slurm.environment import Allocation, Place, Step
from hpc_launch.slurm.job import JobRecord
from hpc_launch.world import World

# From and to these releases (the second no more), srun does not read SLURM_CPUS_PER_TASK (their release notes).
_CPUS_FORGOTTEN = ((22, 5), (23, 11))

# From this release on a step may share the GPUs that its tasks are given (srun(1), --gres-flags).
_TASK_SHARING = (23, 11)

# A GPU count in SLURM_TRES_PER_TASK: `gres/gpu:1` or `gres/gpu:a100:1` before Slurm 24.05, `gres/gpu=1` since.
_TRES_GPUS = re.compile(r"\bgres/gpu[:=]")

_ENDED = frozenset({"COMPLETED", "CANCELLED", "FAILED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED"})


@dataclass(frozen=True)
class AdviceContext:
    """What advice is given about.

    Attributes:
        world: who would take part in a run here.
        rules: those of the cluster; None where they were not learnt.
        job: the job; None where it was not learnt.
        addresses: what the first node's name resolves to on this node.
    """

    settings: Settings
    here: LaunchContext
    world: World
    rules: ClusterRules | None = None
    job: JobRecord | None = None
    addresses: Sequence[str] = ()


def advice_lines(about: AdviceContext) -> tuple[str, ...]:
    """All that is worth saying."""
    return (
        *_left_over(about),
        *_part_of_the_job(about),
        *_exported(about),
        *_forgotten_cpus(about),
        *_tasks_of_the_job(about),
        *_isolation(about),
        *_bad_exit(about),
        *_lost_nodes(about),
        *_leader_name(about),
    )


def superfluous(settings: Settings, plan: Plan, addresses: Sequence[str]) -> str:
    """The options that say what Slurm says: scripts that were written for torchrun have several of them.

    Args:
        settings: what was asked for.
        plan: the plan of the run.
        addresses: what the first node's name resolves to on this node.

    Returns:
        One line; empty where there is none.
    """
    world, devices = plan.world, len(plan.devices)
    if world.origin is not Origin.STEP:
        return ""
    nodes, listed = len(world.hosts), settings.hosts
    counts: set[int | str] = {1} if world.task_per_rank else set()
    if devices and not world.task_per_rank:
        counts = {devices, "gpu", "auto"}
    same = {
        "nnodes": settings.nnodes == NodeRange(nodes, nodes),
        "node_rank": settings.node_rank == world.node_rank,
        "nproc_per_node": settings.nproc_per_node in counts,
        "master_addr": settings.master_addr in (world.hosts[0], *addresses),
        "hosts": listed is not None and hostlist.expand(listed) == world.hosts,
        "rdzv_backend": settings.rdzv_backend == "slurm",
    }
    found = [
        f"--{name.replace('_', '-')} {getattr(settings, name)}" for name in same if same[name] and settings.given(name)
    ]
    if not found:
        return ""
    return f"Slurm says as much: {', '.join(found)} can be left out"


def _script(about: AdviceContext) -> Allocation | None:
    """The job, in its batch script: there people write srun themselves. Elsewhere hpc-launch does, and knows how."""
    job = about.here.slurm
    return job if isinstance(job, Allocation) and job.place is Place.BATCH else None


def _left_over(about: AdviceContext) -> Iterator[str]:
    """A shell in tmux or a notebook outlives the job that it was opened in."""
    slurm = about.here.slurm
    if slurm is None or about.rules is None:
        return
    mend = "the SLURM_* variables are left over, unset them (or open a new shell)"
    if about.job is None:
        yield f"Slurm does not know a job {slurm.job_id}: {mend}"
    elif about.job.state in _ENDED:
        yield f"job {slurm.job_id} is over ({about.job.state}): {mend}"


def _part_of_the_job(about: AdviceContext) -> Iterator[str]:
    step = about.here.slurm
    if not isinstance(step, Step) or "SLURM_HET_SIZE" in about.here.environ:
        return
    if step.job_hosts is not None and len(step.hosts) < step.job_hosts:
        yield f"this step has {len(step.hosts)} of the {step.job_hosts} nodes of the job: srun --nodes={step.job_hosts}"


def _exported(about: AdviceContext) -> Iterator[str]:
    """What `sbatch --export` says goes on to srun (sbatch(1), SLURM_EXPORT_ENV)."""
    said = about.here.environ.get("SLURM_EXPORT_ENV", "ALL")
    if _script(about) is None or said == "ALL" or said.startswith("ALL,"):
        return
    if about.here.environ.get("SRUN_EXPORT_ENV", "").partition(",")[0] == "ALL":
        return
    few = "no variables but Slurm's own, PATH included" if said in ("NONE", "NIL") else f"only {said}"
    yield f"--export={said} counts for srun too, its tasks get {few}: use srun --export=ALL"


def _forgotten_cpus(about: AdviceContext) -> Iterator[str]:
    cpus = about.here.environ.get("SLURM_CPUS_PER_TASK")
    release = about.rules.release if about.rules else None
    if _script(about) is None or cpus is None or release is None:
        return
    first, last = _CPUS_FORGOTTEN
    if first <= release < last and about.here.environ.get("SRUN_CPUS_PER_TASK") != cpus:
        yield (
            f"srun of Slurm {_written(release)} does not take --cpus-per-task={cpus} from the job, and a step may get "
            f"one CPU: use srun --cpus-per-task={cpus}"
        )


def _tasks_of_the_job(about: AdviceContext) -> Iterator[str]:
    """A job's number of tasks counts for every srun in it (srun(1), SLURM_NTASKS)."""
    job, tasks = _script(about), about.here.environ.get("SLURM_NTASKS", "")
    if job is None or not tasks.isdecimal() or int(tasks) == len(job.hosts):
        return
    nodes = len(job.hosts)
    if int(tasks) < nodes:
        yield f"the job has {tasks} task(s) on {nodes} nodes: srun uses {tasks} of them; use --ntasks-per-node=1"
        return
    counts = _tasks_per_node(about)
    uneven = f", {about.here.environ['SLURM_TASKS_PER_NODE']} by node" if len(set(counts)) > 1 else ""
    yield (
        f"the job has {tasks} tasks on {nodes} node(s){uneven}: plain srun starts {tasks} agents with one worker each; "
        f"srun --ntasks={nodes} --ntasks-per-node=1 starts one on each node, with a worker per GPU"
    )


def _isolation(about: AdviceContext) -> Iterator[str]:
    """`--gpus-per-task` implies --gpu-bind=per_task (sbatch(1)): tasks of a node do not see each other's GPUs."""
    environ, release = about.here.environ, about.rules.release if about.rules else None
    asked = "SLURM_GPUS_PER_TASK" in environ or _TRES_GPUS.search(environ.get("SLURM_TRES_PER_TASK", ""))
    if _script(about) is None or not asked or max(_tasks_per_node(about), default=1) == 1:
        return
    sharing = " (or --gres-flags=allow-task-sharing)" if release and release >= _TASK_SHARING else ""
    yield (
        "--gpus-per-task shows each task its own GPU only, and NCCL cannot use peer access: ask for --gpus-per-node "
        f"and --ntasks-per-node=1, or use srun --gpu-bind=none{sharing}"
    )


def _tasks_per_node(about: AdviceContext) -> tuple[int, ...]:
    """How many tasks the job has on its nodes; none where it did not ask for a number (then these are CPUs)."""
    text = about.here.environ.get("SLURM_TASKS_PER_NODE", "") if "SLURM_NTASKS" in about.here.environ else ""
    try:
        return tuple(hostlist.parse_counts(text)) if text else ()
    except HostlistError:
        return ()


def _bad_exit(about: AdviceContext) -> Iterator[str]:
    """The --kill-on-bad-exit of srun, and what it means where fewer nodes would do."""
    if not about.settings.may_lose_nodes or about.here.slurm is None:
        return
    asked = f"--nnodes {about.settings.nnodes}" if about.settings.nnodes else f"--spares {about.settings.spares}"
    said = about.here.environ.get("SLURM_KILL_BAD_EXIT")
    if said == "1" or (said is None and about.rules is not None and about.rules.kill_on_bad_exit):
        where = "SLURM_KILL_BAD_EXIT=1" if said else "KillOnBadExit=1 on this cluster"
        yield f"{where}: Slurm ends the step when one agent fails, whatever {asked} allows: use srun -K0"


def _lost_nodes(about: AdviceContext) -> Iterator[str]:
    """What a run survives, and what not."""
    if not about.settings.may_lose_nodes or about.here.slurm is None:
        return
    spares = ", and not spares only" if about.settings.spares else ""
    yield (
        f"a node without an answer for {about.settings.node_timeout:g} s is lost, and the others start again: if they "
        f"are half of those there were, or more (of two halves that both live, one){spares}"
    )
    if _script(about) is not None:
        yield (
            "of lost nodes Slurm ends the job unless it has --no-kill, among the #SBATCH lines and for srun (one that "
            "hpc-launch starts has it); the loss of this node, where the script runs, can only be met with --requeue"
        )


def _leader_name(about: AdviceContext) -> Iterator[str]:
    world = about.world
    if len(world.hosts) == 1 or world.node_rank == 0 or network.is_address(world.hosts[0]):
        return
    leader = world.hosts[0]
    if not about.addresses:
        yield f"the name {leader} does not resolve on this node: its addresses are read from the job directory"
    elif all(map(network.is_loopback, about.addresses)):
        yield (
            f"{leader}, the first node, resolves to {', '.join(about.addresses)} here, which is this node: mend "
            "/etc/hosts, or say --master-addr"
        )


def _written(release: tuple[int, int]) -> str:
    return f"{release[0]}.{release[1]:02d}"
