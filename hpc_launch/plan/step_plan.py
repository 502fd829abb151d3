"""Whether hpc-launch has to start a step to train in, and which one: one agent on each node of an allocation. Pure.

Outside of a step nothing else does: a process there is on one node or on none, has what the shell was given, and Slurm
tells it nothing (under proctrack/cgroup the SIGTERM of a time limit goes to the shell alone).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from hpc_launch import hostlist
from hpc_launch.errors import ContextError, HostlistError, UsageError
from hpc_launch.plan.launch_context import LaunchContext
from hpc_launch.plan.launch_plan import DerivedValue
from hpc_launch.settings import Origin, Settings
from hpc_launch.slurm import commands, steps
from hpc_launch.slurm.environment import Allocation, Place
from hpc_launch.slurm.steps import RunningStep, StepRequest


def wanted_allocation(settings: Settings, here: LaunchContext) -> Allocation | None:
    """The allocation in which to start a step; None where this process is to train by itself.

    It is to do so where it need not start one and cannot, or should not: on the one node of a job whose shell has no
    srun (a container), or was given a part of the GPUs by hand (CUDA_VISIBLE_DEVICES=0 for one of several runs).

    Raises:
        ContextError: where a step is needed and cannot be started.
    """
    job = here.slurm
    if not isinstance(job, Allocation) or settings.standalone or listed_by_hand(settings):
        return None
    on_a_node = _is_on_a_node(job, here)
    only = on_a_node and len(job.hosts) == 1
    if only and (not here.has_srun or devices_taken_away(here)):
        return None
    if not here.has_srun and on_a_node and settings.nnodes and settings.nnodes.maximum == 1:
        return None
    if not here.has_srun:
        raise ContextError(f"{_where(job, here)}, and srun is not here: {_by_hand(settings, here, job)}")
    if settings.node_rank is not None:
        raise ContextError(
            f"--node-rank {settings.node_rank} in the {job.place.value} of job {job.job_label}: one step runs on all "
            "nodes and numbers them (in a batch script $SLURM_NODEID and $SLURM_PROCID are always 0); leave "
            "--node-rank out"
        )
    if job.components > 1:
        raise ContextError(
            f"job {job.job_label} is heterogeneous, and which of its components are meant is not known: start one "
            "agent on each of their nodes, with 'srun --het-group=0,1 --ntasks-per-node=1 hpc-launch ...' for instance"
        )
    return job


def refuse_without_step(settings: Settings, here: LaunchContext) -> None:
    """See that this process may train by itself.

    Raises:
        ContextError: where that is the work of a step.
    """
    job = wanted_allocation(settings, here)
    if job is not None:
        raise ContextError(f"{_where(job, here)}: {_by_hand(settings, here, job)}")


def refuse_without_environment(settings: Settings, here: LaunchContext) -> None:
    """See that a task of a step whose environment was dropped does not train by itself, as each of the others would.

    Raises:
        ContextError: where there are others, or where that cannot be learnt.
    """
    traced = here.traced
    if traced is None or not only_place(settings):
        return
    size = here.traced_size()
    if size == 1 or (size is None and not traced.of_srun):
        return
    what = "tasks" if traced.of_srun else "nodes"
    raise ContextError(
        f"this is {traced}{f' ({size} {what})' if size else ''}, but the SLURM_* variables are gone: pass them on "
        "(no env -i, sudo -E, apptainer without --cleanenv), name the nodes with --hosts, or say --standalone to run "
        "on this node alone"
    )


def listed_by_hand(settings: Settings) -> bool:
    """Whether somebody starts hpc-launch on each node of a list himself, whatever Slurm says about this place."""
    return settings.hostfile is not None or (settings.hosts is not None and settings.node_rank is not None)


def only_place(settings: Settings) -> bool:
    """Whether nothing but the place where this runs says that it is to run here."""
    listed = settings.hosts is not None or settings.hostfile is not None
    # Lines that were written for torchrun give a single node an address too.
    several = settings.nnodes is None or settings.nnodes.maximum > 1
    address = (settings.node_rank, settings.master_addr, settings.rdzv_endpoint)
    by_hand = listed or (several and any(value is not None for value in address))
    return not settings.standalone and not by_hand


def _is_on_a_node(job: Allocation, here: LaunchContext) -> bool:
    return job.place is not Place.ELSEWHERE and (bool(job.node_name) or here.position(job.hosts) is not None)


def devices_taken_away(here: LaunchContext) -> bool:
    """Whether a mask shows fewer devices than Slurm has given to this shell."""
    given = here.slurm.gpus_on_node if here.slurm else None
    return bool(given) and here.devices.variable in here.environ and len(here.devices) < (given or 0)


def notes(here: LaunchContext) -> tuple[str, ...]:
    """What is probably not meant."""
    # Where the shell is on no node of the job, its mask is no part of what Slurm gave.
    elsewhere = isinstance(here.slurm, Allocation) and not here.slurm.node_name
    if not devices_taken_away(here) and not (elsewhere and here.environ.get(here.devices.variable)):
        return ()
    what = f"{here.devices.variable} of this shell is not that of the step, which has all GPUs of the job on its nodes"
    return (f"{what}: choose with --nproc-per-node, or in the script",)


def _where(job: Allocation, here: LaunchContext) -> str:
    if job.place is Place.ELSEWHERE:
        return f"job {job.job_label} runs on {hostlist.fold(job.hosts)}"
    if _is_on_a_node(job, here):
        return f"this is the {job.place.value} of job {job.job_id} on one of its {len(job.hosts)} nodes"
    return f"{here.host} is not a node of job {job.job_id} ({hostlist.fold(job.hosts)})"


def _by_hand(settings: Settings, here: LaunchContext, job: Allocation) -> str:
    line = commands.run_step(
        here.command or ("hpc-launch",),
        nodes=settings.nnodes.maximum if settings.nnodes else len(job.hosts),
        cpus_per_task=here.environ.get("SLURM_CPUS_PER_TASK", ""),
    )
    alone = ", or 'hpc-launch --standalone' for this node alone" if job.node_name else ""
    return f"start one agent on each node with '{commands.quote(line)}'{alone}"


# --- which one


def chooses(settings: Settings, job: Allocation) -> bool:
    """Whether a step can be on some of the job's nodes or on others: then runs that start together must not collide."""
    named = isinstance(settings.nodes, str) or settings.hosts is not None
    counts = [settings.nodes, settings.nnodes.maximum if settings.nnodes else None]
    return not named and any(isinstance(count, int) and count < len(job.hosts) for count in counts)


def choose_step(
    settings: Settings, here: LaunchContext, job: Allocation, running: Sequence[RunningStep], gpus: Mapping[str, int]
) -> StepRequest:
    """The step to start.

    Args:
        settings: what was asked for.
        here: this process.
        job: where it is to run.
        running: the steps of the job that have not ended.
        gpus: how many GPUs each node has, where srun has to be told (`JobGrants.gpus_to_ask`).

    Raises:
        ContextError: when other nodes are asked for than the job has.
        UsageError: when a list of nodes cannot be read.
    """
    others = [step for step in running if step.of_srun and step.step_id != f"{job.job_id}.{job.step_id}"]
    taken = {host for step in others for host in step.hosts}
    hosts = _named(settings, job) or _counted(settings, job, here, taken)
    return StepRequest(
        job_id=job.job_id,
        hosts=hosts,
        # The step of the shell has all that the job has; it is the shell's, so it is ours to share.
        overlap=settings.overlap or job.place is Place.TERMINAL,
        gpus=tuple(gpus.get(host, 0) for host in hosts) if gpus else (),
        even=bool(gpus) and len({gpus.get(host, 0) for host in job.hosts}) == 1,
        no_kill=settings.may_lose_nodes,
        reader=_first(settings, hosts) if here.typed_into else None,
    )


def _first(settings: Settings, hosts: Sequence[str]) -> int:
    """The task with rank 0: tasks have the order of the job's nodes, ranks that of --hosts."""
    asked = hostlist.expand(settings.hosts) if settings.hosts is not None else ()
    return hosts.index(next((host for host in asked if host in hosts), hosts[0]))


def _named(settings: Settings, job: Allocation) -> tuple[str, ...]:
    """The nodes that were asked for by name, in the order of the job."""
    flag, text = ("--nodes", settings.nodes) if isinstance(settings.nodes, str) else ("--hosts", settings.hosts)
    if not isinstance(text, str):
        return ()
    try:
        asked = hostlist.expand(text)
    except HostlistError as error:
        raise UsageError(f"{flag}: {error}", option=flag) from error
    foreign = [host for host in asked if host not in job.hosts]
    if foreign or not asked:
        raise ContextError(
            f"{flag}: {hostlist.fold(foreign) or 'nothing'} is not of the nodes of job {job.job_label} "
            f"({hostlist.fold(job.hosts)}): name some of these, or leave {flag} out for all"
        )
    return tuple(host for host in job.hosts if host in asked)


def _counted(settings: Settings, job: Allocation, here: LaunchContext, taken: set[str]) -> tuple[str, ...]:
    """As many nodes as were asked for, all by default: rather this one and those where no other step runs."""
    there = len(job.hosts)
    if isinstance(settings.nodes, int):
        flag, least, most = "--nodes", settings.nodes, settings.nodes
    elif settings.nnodes is not None:
        flag, least, most = "--nnodes", settings.nnodes.minimum, settings.nnodes.maximum
    else:
        return job.hosts
    if least > there:
        raise ContextError(
            f"{flag} {least}, but job {job.job_label} has {there} ({hostlist.fold(job.hosts)}): ask for no more, or "
            "submit with more --nodes"
        )
    if most >= there:
        return job.hosts
    mine = job.node_name or (job.hosts[at] if (at := here.position(job.hosts)) is not None else "")
    best = sorted(job.hosts, key=lambda host: (host in taken, host != mine))[:most]
    return tuple(host for host in job.hosts if host in best)


def in_the_way(request: StepRequest, job: Allocation, running: Sequence[RunningStep]) -> tuple[RunningStep, ...]:
    """The steps that have what a request needs, as far as that can be seen."""
    return tuple(
        step
        for step in running
        if step.of_srun and set(step.hosts) & set(request.hosts) and step.step_id != f"{job.job_id}.{job.step_id}"
    )


def already_training(request: StepRequest, job: Allocation, running: Sequence[RunningStep]) -> tuple[RunningStep, ...]:
    """The steps of ours that run there: a second one that overlaps is not meant, unless `--overlap` says so."""
    return tuple(step for step in in_the_way(request, job, running) if step.name == steps.NAME)


def blocked(request: StepRequest, job: Allocation, others: Sequence[RunningStep]) -> str:
    """Why a step could not start, and what can be done."""
    what = f"job {job.job_label} has nothing left for another step on {hostlist.fold(request.hosts)}"
    if not others:
        return f"{what}; srun has said why"
    held = ", ".join(f"step {step.step_id} ({step.name}) on {hostlist.fold(step.hosts)}" for step in others)
    ids = " ".join(step.step_id for step in others)
    free = [host for host in job.hosts if not any(host in step.hosts for step in others)]
    elsewhere = f", or use the free nodes with --nodes '{hostlist.fold(free)}'" if free else ""
    return (
        f"{what}: {held} has it; wait for its end, or end it with 'scancel {ids}'{elsewhere}, or share with --overlap"
    )


def derive_step(job: Allocation, request: StepRequest, line: Sequence[str]) -> tuple[DerivedValue, ...]:
    """What is known of the step before it starts; the rest is known on its nodes."""
    chosen = Origin.JOB.value if request.hosts == job.hosts else "chosen among the job's"
    return (
        DerivedValue("nnodes", str(len(request.hosts)), chosen),
        DerivedValue("hosts", hostlist.fold(request.hosts), chosen),
        DerivedValue("job", job.job_label, job.place.value),
        DerivedValue("step", commands.quote(line), "started by hpc-launch"),
    )
