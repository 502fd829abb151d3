"""Which nodes take part in a run, and how many are needed: by lists that were asked for, the step, or flags. Pure."""

from __future__ import annotations

from hpc_launch import hostlist, world
from hpc_launch.errors import ContextError, HostlistError, UsageError, reason
from hpc_launch.home import expand_home
from hpc_launch.plan.launch_context import LaunchContext
from hpc_launch.plan.step_plan import refuse_without_environment, refuse_without_step
from hpc_launch.settings import NodeRange, Origin, Settings
from hpc_launch.slurm.environment import Allocation, Step
from hpc_launch.world import World

# Who may give the list of nodes, and what to change where it is another one that is meant.
_LISTED = {
    Origin.STEP: ("the step", "srun --nodes"),
    Origin.JOB: ("the job", "sbatch --nodes"),
    Origin.HOSTS: ("the host list", "--hosts"),
}


def decide_participants(settings: Settings, here: LaunchContext) -> World:
    """The nodes that take part, and the place of this one: asked-for lists first, then the step; alone otherwise.

    Raises:
        UsageError: for options that cannot be meant.
        ContextError: when what is asked for and what is there contradict each other.
    """
    found = _world(settings, here)
    alone = len(found.hosts) == 1 and found.origin is not Origin.STEP and not settings.standalone
    if settings.node_rank and alone:
        raise UsageError(
            f"--node-rank: {settings.node_rank} is not a node of 1: say how many there are with --nnodes, or --hosts",
            option="--node-rank",
        )
    return found


def _world(settings: Settings, here: LaunchContext) -> World:
    if settings.standalone:
        return world.one_node(here.host, settings.origin("standalone"))
    if isinstance(here.slurm, Step) and here.slurm.ours:
        return _own_world(settings, here.slurm)
    _refuse_nodes(settings, here)
    if settings.hosts is not None or settings.hostfile is not None:
        return _listed_world(settings, here)
    if isinstance(here.slurm, Step):
        return _step_world(here.slurm)
    return _world_without_step(settings, here)


def _world_without_step(settings: Settings, here: LaunchContext) -> World:
    if isinstance(here.slurm, Allocation):
        refuse_without_step(settings, here)
        return world.one_node(here.slurm.node_name or here.host, Origin.JOB)
    refuse_without_environment(settings, here)
    if settings.nnodes and settings.nnodes.maximum > 1:
        return _manual_world(settings, here)
    return world.one_node(here.host)


def _refuse_nodes(settings: Settings, here: LaunchContext) -> None:
    """Nodes are picked for a step that is started; here there is one already, or nothing to pick from."""
    if settings.nodes is not None and not isinstance(here.slurm, Allocation):
        where = "srun has chosen the nodes of this step" if here.slurm else "there is no Slurm job here"
        raise UsageError(
            f"--nodes {settings.nodes}: {where}; leave it out, name the nodes with --hosts, or a job with --jobid",
            option="--nodes",
        )


def _listed_world(settings: Settings, here: LaunchContext) -> World:
    flag = "--hosts" if settings.hosts is not None else "--hostfile"
    slots: dict[str, int | None]
    try:
        if settings.hosts is not None:
            hosts = tuple(dict.fromkeys(hostlist.expand(settings.hosts)))
            slots = {}
        else:
            name = settings.hostfile or ""
            entries = hostlist.parse_hostfile(here.read(here.directory / expand_home(name)))
            hosts = tuple(entry.host for entry in entries)
            slots = {entry.host: entry.slots for entry in entries}
    except HostlistError as error:
        raise UsageError(f"{flag}: {error}", option=flag) from error
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{flag}: cannot read {settings.hostfile}: {reason(error)}", option=flag) from error
    if not hosts:
        raise UsageError(f"{flag} names no node", option=flag)
    index = settings.node_rank if settings.node_rank is not None else here.position(hosts)
    if index is None:
        raise UsageError(
            f"{flag}: this host ({here.host}) is not in {hostlist.fold(hosts)}: run on those hosts, or say which of "
            "them it is with --node-rank",
            option=flag,
        )
    if index >= len(hosts):
        raise UsageError(f"--node-rank: {index} is not a node of {hostlist.fold(hosts)}: they are numbered from 0")
    return world.of_nodes(hosts, index, Origin.HOSTS, slots.get(hosts[index]))


def _own_world(settings: Settings, step: Step) -> World:
    """The step was started for this run, with the nodes that were asked for; those of --hosts in that order."""
    hosts = step.hosts
    if settings.hosts is not None:
        hosts = tuple(dict.fromkeys(host for host in hostlist.expand(settings.hosts) if host in step.hosts))
    return world.of_nodes(hosts, hosts.index(step.node_name), Origin.STEP)


def _step_world(step: Step) -> World:
    if not step.task_per_rank:
        return world.of_nodes(step.hosts, step.node_rank, Origin.STEP)
    return World(
        hosts=step.hosts,
        node_rank=step.node_rank,
        agents=step.tasks,
        agent_rank=step.task,
        local_agents=step.local_tasks,
        local_agent=step.local_task,
        task_per_rank=True,
        origin=Origin.STEP,
    )


def _manual_world(settings: Settings, here: LaunchContext) -> World:
    """Several nodes, described by hand as for torchrun: neither their names nor, with c10d, their order is known."""
    if settings.node_rank is None and settings.master_addr is None and settings.rdzv_endpoint is None:
        raise UsageError(
            f"--nnodes {settings.nnodes}, but nothing says which nodes: use srun, or --hosts 'node[1-4]', or "
            "--node-rank and --master-addr, or --rdzv-backend and --rdzv-endpoint",
            option="--nnodes",
        )
    count = settings.nnodes.maximum if settings.nnodes else 1
    rank = settings.node_rank or 0
    hosts = tuple(here.host if number == rank else f"node{number}" for number in range(count))
    return world.of_nodes(hosts, rank, settings.origin("nnodes"))


def needed_nodes(settings: Settings, found: World, backend: str) -> NodeRange:
    """How many of the nodes are needed, and how many there can be.

    Raises:
        UsageError: for options that cannot be meant.
        ContextError: when what is asked for and what is there contradict each other.
    """
    nodes = _asked_nodes(settings, found, backend)
    if settings.spares:
        _refuse_spares(settings, found, backend)
        nodes = NodeRange(min(nodes.minimum, nodes.maximum - settings.spares), nodes.maximum)
    if nodes.minimum < nodes.maximum and backend == "slurm" and found.task_per_rank:
        raise UsageError(
            f"--nnodes {nodes} with {found.local_agents} tasks on {found.host}: a run that goes on without nodes that "
            "are lost has one task on each; use srun --ntasks-per-node=1"
        )
    return nodes


def _refuse_spares(settings: Settings, found: World, backend: str) -> None:
    if backend != "slurm":
        raise UsageError(f"--spares needs the rendezvous backend slurm, and not {backend}", option="--spares")
    if settings.spares >= len(found.hosts):
        raise UsageError(
            f"--spares {settings.spares}: there are {len(found.hosts)} nodes, and one at least is to work",
            option="--spares",
        )


def _asked_nodes(settings: Settings, found: World, backend: str) -> NodeRange:
    asked, there = settings.nnodes, len(found.hosts)
    if asked is None:
        return NodeRange(there, there)
    if found.origin in _LISTED and not asked.minimum <= there <= asked.maximum:
        what, mend = _LISTED[found.origin]
        said = settings.places.get("nnodes", "--nnodes")
        raise ContextError(
            f"{said} {asked}, but {what} has {there} ({hostlist.fold(found.hosts)}): leave {said} out, or change {mend}"
        )
    if backend != "slurm":
        return asked
    return NodeRange(asked.minimum, there)
