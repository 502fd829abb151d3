"""Derive a plan. Pure: all that it needs to know of the world is in `Here`."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from hpc_launch import hostlist, world
from hpc_launch.errors import ContextError, HostlistError, UsageError, reason
from hpc_launch.node import network, ports
from hpc_launch.plan import binding, identity, start, traps
from hpc_launch.plan.binding import Binding
from hpc_launch.plan.commands import WHOLE, command_of
from hpc_launch.plan.here import Here
from hpc_launch.plan.identity import Identity, Lineage
from hpc_launch.plan.model import Derived, Plan
from hpc_launch.plan.step import refuse_without_environment, refuse_without_step
from hpc_launch.settings import PROCESS_WORDS, NodeRange, Origin, Settings
from hpc_launch.slurm.environment import Allocation, Step
from hpc_launch.world import World

# torchrun's default of --master-port with static rendezvous (torch/distributed/run.py).
_STATIC_PORT = 29500

# Who may give the list of nodes, and what to change where it is another one that is meant.
_LISTED = {
    Origin.STEP: ("the step", "srun --nodes"),
    Origin.JOB: ("the job", "sbatch --nodes"),
    Origin.HOSTS: ("the host list", "--hosts"),
}

# Job ids of the other schedulers whose host files people bring: all nodes of a job see the same one.
_FOREIGN_JOB_IDS = ("PBS_JOBID", "LSB_JOBID", "OAR_JOB_ID", "COBALT_JOBID", "JOB_ID")


def make(settings: Settings, here: Here, script: Sequence[str]) -> Plan:
    """Decide everything that can be decided before the nodes talk.

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
    step = here.slurm if isinstance(here.slurm, Step) and found.origin is Origin.STEP else None
    backend = _backend(settings, found)
    if settings.hang_timeout and backend != "slurm":
        raise UsageError(
            f"--hang-timeout: the agents tell each other that somebody makes progress, which the {backend} rendezvous "
            "has no place for: leave it out, or use --rdzv-backend slurm",
            option="--hang-timeout",
        )
    nnodes = _node_range(settings, found, backend)
    local_world_size, process_origin = _local_world_size(settings, here, found)
    run_id, run_origin = _run_id(settings, here, found, step)
    reserved = step.reserved_ports if step and not settings.given("port_range") else ()
    candidates = ports.candidates(run_id, reserved or settings.port_range)
    bound = binding.decide(settings, here, found, step, local_world_size)
    omp, omp_origin = _omp_num_threads(settings, here, found, local_world_size, bound)
    leaders, leader_origin = _leaders(settings, found)
    endpoint = _endpoint(settings, found, backend, leaders[0], candidates[0])
    how = start.choose(settings, here, script, bound=bool(bound.shares))
    case = traps.Case(settings, here, found, step, local_world_size, backend)
    log_root, log_origin = _log_root(settings, here)
    job_name = _job_name(settings, here, found)
    derived = (
        Derived("nnodes", str(nnodes), _origin(settings, "nnodes", found.origin)),
        Derived("hosts", hostlist.fold(found.hosts), found.origin.value),
        Derived("node_rank", str(found.node_rank), _origin(settings, "node_rank", found.origin)),
        Derived("nproc_per_node", str(local_world_size), process_origin),
        *_task_values(found, local_world_size),
        Derived("rdzv_backend", backend, _origin(settings, "rdzv_backend", Origin.DEFAULT)),
        Derived("rdzv_id", run_id, run_origin),
        Derived("master_addr", leaders[0], leader_origin),
        _master_port(settings, backend, endpoint, candidates[0]),
        Derived("devices", ",".join(here.devices.tokens) or "none", here.devices.source),
        Derived("cpu_bind", bound.summary, bound.reason),
        Derived("omp_num_threads", str(omp or here.environ.get("OMP_NUM_THREADS", "")), omp_origin),
        Derived("start", how.how, how.reason),
        Derived("log_dir", str(log_root), log_origin),
        Derived("job_directory", job_name or "local-<time>-<pid>", _job_name_origin(settings, job_name)),
    )
    return Plan(
        settings=settings,
        world=found,
        nnodes=nnodes,
        backend=backend,
        endpoint=endpoint,
        leaders=leaders,
        run_id=run_id,
        identity=_identity(settings, here, found, script),
        ports=candidates,
        store_ports=reserved or settings.port_range,
        local_world_size=local_world_size,
        devices=here.devices,
        isolated=_isolated(settings, here),
        omp_num_threads=omp,
        start=how,
        log_root=log_root,
        job_name=job_name,
        script=tuple(script),
        derived=derived,
        warnings=(
            *settings.notes,
            *traps.warnings(case),
            *filter(None, (bound.warning,)),
        ),
        seen_here=traps.unseen_by_the_first(case),
        binding=bound,
    )


def _origin(settings: Settings, name: str, otherwise: Origin | str) -> str:
    origin = settings.origins.get(name, otherwise)
    return origin.value if isinstance(origin, Origin) else origin


def _world(settings: Settings, here: Here) -> World:
    """Who takes part: asked-for lists first, then the step; alone otherwise."""
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


def _world_without_step(settings: Settings, here: Here) -> World:
    if isinstance(here.slurm, Allocation):
        refuse_without_step(settings, here)
        return world.one_node(here.slurm.node_name or here.host, Origin.JOB)
    refuse_without_environment(settings, here)
    if settings.nnodes and settings.nnodes.maximum > 1:
        return _manual_world(settings, here)
    return world.one_node(here.host)


def _refuse_nodes(settings: Settings, here: Here) -> None:
    """Nodes are picked for a step that is started; here there is one already, or nothing to pick from."""
    if settings.nodes is not None and not isinstance(here.slurm, Allocation):
        where = "srun has chosen the nodes of this step" if here.slurm else "there is no Slurm job here"
        raise UsageError(
            f"--nodes {settings.nodes}: {where}; leave it out, name the nodes with --hosts, or a job with --jobid",
            option="--nodes",
        )


def _listed_world(settings: Settings, here: Here) -> World:
    flag = "--hosts" if settings.hosts is not None else "--hostfile"
    slots: dict[str, int | None]
    try:
        if settings.hosts is not None:
            hosts = tuple(dict.fromkeys(hostlist.expand(settings.hosts)))
            slots = {}
        else:
            name = settings.hostfile or ""
            entries = hostlist.parse_hostfile(here.read(here.directory / name))
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


def _manual_world(settings: Settings, here: Here) -> World:
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


def _backend(settings: Settings, found: World) -> str:
    """Our own wherever the nodes are known; torchrun's rule where they are described by hand."""
    if settings.rdzv_backend is not None:
        if settings.standalone and settings.rdzv_backend != "slurm":
            return "slurm"  # torchrun's --standalone overrides the backend too
        return settings.rdzv_backend
    by_hand = settings.node_rank is not None or settings.master_addr is not None
    known = found.origin in (Origin.STEP, Origin.JOB, Origin.HOSTS) or settings.standalone
    if not known and len(found.hosts) > 1:
        if settings.rdzv_endpoint is not None and not by_hand:
            raise UsageError(
                f"--rdzv-endpoint {settings.rdzv_endpoint} needs --rdzv-backend (c10d, etcd, ...)",
                option="--rdzv-endpoint",
            )
        return "static"
    return "slurm"


def _node_range(settings: Settings, found: World, backend: str) -> NodeRange:
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
        raise ContextError(
            f"--nnodes {asked}, but {what} has {there} ({hostlist.fold(found.hosts)}): leave --nnodes out, or change "
            f"{mend}"
        )
    if backend != "slurm":
        return asked
    return NodeRange(asked.minimum, there)


def _local_world_size(settings: Settings, here: Here, found: World) -> tuple[int, str]:
    """How many workers this agent starts, and who said so."""
    asked, visible = settings.nproc_per_node, here.devices
    origin = _origin(settings, "nproc_per_node", Origin.DEFAULT)
    if found.task_per_rank:
        return _one_per_task(asked, found), "one worker per Slurm task"
    if isinstance(asked, int):
        return _no_more_than_devices(asked, here), origin
    if asked is None and found.slots is not None:
        return _no_more_than_devices(found.slots, here), Origin.HOSTS.value
    if asked in ("gpu", "xpu") and not (len(visible) and (asked == "xpu") == (visible.variable == "ZE_AFFINITY_MASK")):
        raise UsageError(f"--nproc-per-node {asked}: {visible.source}; use a number", option="--nproc-per-node")
    if asked not in (None, *PROCESS_WORDS):
        raise UsageError(
            f"--nproc-per-node: '{asked}' is not a number from 1 on, one of {', '.join(PROCESS_WORDS)}, or a device "
            "type that torch knows",
            option="--nproc-per-node",
        )
    if asked == "cpu" or (asked == "auto" and not len(visible)):
        return here.cpus, f"{origin}, allowed CPUs"
    return (len(visible), visible.source) if len(visible) else (1, f"{origin} ({visible.source})")


def _one_per_task(asked: int | str | None, found: World) -> int:
    if isinstance(asked, int) and asked > 1:
        raise ContextError(
            f"--nproc-per-node {asked} with {found.local_agents} tasks on {found.host}: each task would start {asked} "
            "workers; use srun --ntasks-per-node=1, or leave --nproc-per-node out for one rank per task"
        )
    return 1


def _no_more_than_devices(asked: int, here: Here) -> int:
    visible = here.devices
    if 0 < len(visible) < asked:
        raise UsageError(
            f"--nproc-per-node: {asked} workers but {len(visible)} devices ({visible.source}): use --nproc-per-node "
            f"{len(visible)}, or set {visible.variable}= to run on CPUs",
            option="--nproc-per-node",
        )
    return asked


def _run_id(settings: Settings, here: Here, found: World, step: Step | None) -> tuple[str, str]:
    if settings.rdzv_id is not None:
        return settings.rdzv_id, settings.origin("rdzv_id").value
    if step is not None:
        return f"{step.job_id}.{step.step_id}.{step.restart_count}", "job, step and restart count"
    if found.origin is Origin.HOSTS:
        job = _foreign_job(here)
        digest = hashlib.sha256(",".join(found.hosts).encode()).hexdigest()[:8]
        return f"hosts-{job or digest}", "job id" if job else "host list"
    return "none", Origin.DEFAULT.value


def _identity(settings: Settings, here: Here, found: World, script: Sequence[str]) -> Identity:
    lineage = _lineage(settings, here)
    in_slurm = lineage.place and found.origin in (Origin.STEP, Origin.JOB)
    place = f"{lineage.place}/{lineage.incarnation}" if in_slurm else _place_outside(settings, here, found)
    if settings.rdzv_id is not None:
        made = identity.of_id(place, settings.rdzv_id, script, module=settings.module)
    else:
        made = identity.of_command(
            place,
            script,
            here.directory,
            module=settings.module,
            no_python=settings.no_python,
            run_path=settings.run_path,
        )
    command = WHOLE
    if not made.explicit:
        command = command_of((str(here.directory), *script), here.environ, here.host)
    words = identity.words(script, module=settings.module, secret_names=settings.secret_names)
    return replace(made, lineage=lineage, command=command, words=words)


def _lineage(settings: Settings, here: Here) -> Lineage:
    """What the run continues: by the step where it is in one, as that has the same number in each start of the job."""
    slurm = here.slurm
    by_user = settings.origin("log_dir") in (Origin.FLAG, Origin.ENVIRONMENT, Origin.TORCHRUN_ENVIRONMENT)
    apart = by_user or settings.log_name is not None
    if settings.standalone or slurm is None:
        return Lineage(apart=apart)
    place = identity.place_in_slurm(
        here.environ.get("SLURM_CLUSTER_NAME", ""),
        here.environ.get("SLURM_JOB_ID_HET_GROUP_0") or slurm.job_id,
        slurm.step_id if isinstance(slurm, Step) else None,
    )
    return Lineage(place, slurm.restart_count, apart)


def _place_outside(settings: Settings, here: Here, found: World) -> str:
    if len(found.hosts) == 1:
        return identity.place_of_process(here.host, here.pid)
    if found.origin is Origin.HOSTS:
        return identity.place_of_hosts(found.hosts, _foreign_job(here))
    # Nothing else is surely the same on all: each node may have another name or address for the first one.
    return identity.place_by_hand(settings.rdzv_id or "")


def _foreign_job(here: Here) -> str:
    return next((here.environ[name] for name in _FOREIGN_JOB_IDS if here.environ.get(name)), "")


def _job_name(settings: Settings, here: Here, found: World) -> str:
    if settings.log_name is not None:
        return settings.log_name
    if isinstance(here.slurm, Step) and not settings.standalone:
        return f"{here.slurm.job_label}.{here.slurm.step_id}"
    if isinstance(here.slurm, Allocation) and not settings.standalone:
        return here.slurm.job_label
    if settings.rdzv_id is not None and len(found.hosts) > 1:
        return settings.rdzv_id.replace("/", "_").lstrip(".") or "none"
    return ""


def _job_name_origin(settings: Settings, job_name: str) -> str:
    if settings.log_name is not None:
        return settings.origin("log_name").value
    return "job and step" if job_name else "chosen at start"


def local_job_name(now: float, pid: int) -> str:
    """The name of a job directory outside of Slurm."""
    return f"local-{time.strftime('%Y%m%d-%H%M%S', time.localtime(now))}-{pid}"


def _leaders(settings: Settings, found: World) -> tuple[tuple[str, ...], str]:
    """Under which names the first node may be found, the most trusted first."""
    if settings.standalone:
        return ("127.0.0.1",), settings.origin("standalone").value
    if settings.rdzv_endpoint:
        return (network.split_endpoint(settings.rdzv_endpoint)[0],), settings.origin("rdzv_endpoint").value
    if settings.master_addr:
        return (network.split_endpoint(settings.master_addr)[0],), settings.origin("master_addr").value
    if len(found.hosts) == 1:
        return ("127.0.0.1",), "one node"
    if found.origin in (Origin.STEP, Origin.HOSTS):
        return (found.hosts[0],), f"first of the {found.origin.value}'s nodes"
    return ("127.0.0.1",), Origin.DEFAULT.value


def _endpoint(settings: Settings, found: World, backend: str, leader: str, port: int) -> str:
    """Where the backend is found: as given, else as torchrun would make it; our own needs no word about it."""
    if settings.rdzv_endpoint and not settings.standalone:
        return settings.rdzv_endpoint
    if backend == "static":
        usual = port if found.origin is Origin.STEP else _STATIC_PORT
        return network.join_endpoint(leader, settings.master_port or usual)
    if backend == "c10d":
        # An agent that meets nobody needs no port that others know, and must not meet another run's: they share "none".
        return network.join_endpoint(leader, port if found.agents > 1 else 0)
    return ""


def _master_port(settings: Settings, backend: str, endpoint: str, candidate: int) -> Derived:
    if settings.master_port is None and backend == "static":
        port = network.split_endpoint(endpoint)[1]
        return Derived("master_port", str(port or "missing"), "rendezvous endpoint")
    origin = _origin(settings, "master_port", "first of the port range that is free, by a hash of rdzv_id")
    return Derived("master_port", str(settings.master_port or candidate), origin)


def _isolated(settings: Settings, here: Here) -> bool:
    """Whether each worker is shown its own device only. CUDA knows no other way for MIG devices."""
    if settings.virtual_local_rank and settings.given("gpu_bind") and settings.gpu_bind != "isolate":
        raise UsageError(
            f"--gpu-bind {settings.gpu_bind} and --virtual-local-rank, which is --gpu-bind isolate: leave one out",
            option="--gpu-bind",
        )
    if settings.gpu_bind == "none":
        return False
    return settings.virtual_local_rank or settings.gpu_bind == "isolate" or here.devices.exclusive


def _omp_num_threads(
    settings: Settings, here: Here, found: World, local_world_size: int, bound: Binding
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


def _log_root(settings: Settings, here: Here) -> tuple[Path, str]:
    if settings.log_dir is not None:
        return here.directory / settings.log_dir, settings.origin("log_dir").value
    submit = here.slurm.submit_directory if here.slurm else ""
    if submit:
        return Path(submit) / "logs", "directory of submission"
    return here.directory / "logs", "working directory"


def _task_values(found: World, local_world_size: int) -> tuple[Derived, ...]:
    """The ranks that are known before the nodes talk: those of tasks that are one rank each."""
    if not found.task_per_rank:
        return ()
    origin = Origin.STEP.value
    return (
        Derived("rank", str(found.agent_rank), origin),
        Derived("local_rank", str(found.local_agent), origin),
        Derived("world_size", str(found.agents * local_world_size), origin),
        Derived("local_world_size", str(found.local_agents), origin),
    )
