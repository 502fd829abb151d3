"""Derive a plan: each decision has a file of its own. Pure: what it needs of the world is in `LaunchContext`."""

from __future__ import annotations

from collections.abc import Sequence

from hpc_launch import hostlist
from hpc_launch.node import port_candidates
from hpc_launch.node.limits import UNLIMITED
from hpc_launch.plan import (
    cpu_binding,
    local_ranks,
    log_paths,
    open_files,
    participants,
    rendezvous_backend,
    run_identity,
    start_method,
    threads,
    traps,
)
from hpc_launch.plan.launch_context import LaunchContext
from hpc_launch.plan.launch_plan import DerivedValue, Plan, origin_of
from hpc_launch.settings import Origin, Settings
from hpc_launch.slurm.environment import Step
from hpc_launch.world import World


def make_plan(settings: Settings, here: LaunchContext, script: Sequence[str]) -> Plan:
    """Decide everything that can be decided before the nodes talk.

    Raises:
        UsageError: for options that cannot be meant.
        ContextError: when what is asked for and what is there contradict each other.
    """
    found = participants.decide_participants(settings, here)
    step = here.slurm if isinstance(here.slurm, Step) and found.origin is Origin.STEP else None
    backend = rendezvous_backend.choose_rendezvous_backend(settings, found)
    nnodes = participants.needed_nodes(settings, found, backend)
    local_world_size, process_origin = local_ranks.count_workers(settings, here, found)
    run_id, run_origin = run_identity.run_id(settings, here, found, step)
    reserved = step.reserved_ports if step and not settings.given("port_range") else ()
    candidates = port_candidates.candidates(run_id, reserved or settings.port_range)
    bound = cpu_binding.decide_binding(settings, here, found, step, local_world_size)
    omp, omp_origin = threads.omp_num_threads(settings, here, found, local_world_size, bound)
    files, files_origin = open_files.open_files(settings, here)
    leaders, leader_origin = rendezvous_backend.leaders(settings, found)
    endpoint = rendezvous_backend.endpoint(settings, found, backend, leaders[0], candidates[0])
    how = start_method.choose_start_method(settings, here, script, bound=bool(bound.shares))
    case = traps.TrapContext(settings, here, found, step, local_world_size, backend)
    log_root, log_origin = log_paths.log_root(settings, here)
    job_name, name_origin = log_paths.base_directory_name(settings, here, found)
    derived = (
        DerivedValue("nnodes", str(nnodes), origin_of(settings, "nnodes", found.origin)),
        DerivedValue("hosts", hostlist.fold(found.hosts), found.origin.value),
        DerivedValue("node_rank", str(found.node_rank), origin_of(settings, "node_rank", found.origin)),
        DerivedValue("nproc_per_node", str(local_world_size), process_origin),
        *_task_values(found, local_world_size),
        DerivedValue("rdzv_backend", backend, origin_of(settings, "rdzv_backend", Origin.DEFAULT)),
        DerivedValue("rdzv_id", run_id, run_origin),
        DerivedValue("master_addr", leaders[0], leader_origin),
        rendezvous_backend.master_port(settings, backend, endpoint, candidates[0]),
        DerivedValue("devices", ",".join(here.devices.tokens) or "none", here.devices.source),
        DerivedValue("cpu_bind", bound.summary, bound.reason),
        DerivedValue("omp_num_threads", str(omp or here.environ.get("OMP_NUM_THREADS", "")), omp_origin),
        DerivedValue("open_files", str(files) if files != UNLIMITED else "unlimited", files_origin),
        DerivedValue("start", how.how, how.reason),
        DerivedValue("log_dir", str(log_root), log_origin),
        DerivedValue("job_directory", job_name or "local-<time>-<pid>", name_origin),
    )
    return Plan(
        settings=settings,
        world=found,
        nnodes=nnodes,
        backend=backend,
        endpoint=endpoint,
        leaders=leaders,
        run_id=run_id,
        identity=run_identity.decide_identity(settings, here, found, script),
        ports=candidates,
        store_ports=reserved or settings.port_range,
        local_world_size=local_world_size,
        devices=here.devices,
        isolated=local_ranks.isolated(settings, here),
        omp_num_threads=omp,
        open_files=files,
        start=how,
        log_root=log_root,
        job_name=job_name,
        script=tuple(script),
        derived=derived,
        warnings=(*settings.notes, *traps.warnings(case), *filter(None, (bound.warning,))),
        seen_here=traps.unseen_by_the_first(case),
        binding=bound,
    )


def _task_values(found: World, local_world_size: int) -> tuple[DerivedValue, ...]:
    """The ranks that are known before the nodes talk: those of tasks that are one rank each."""
    if not found.task_per_rank:
        return ()
    origin = Origin.STEP.value
    return (
        DerivedValue("rank", str(found.agent_rank), origin),
        DerivedValue("local_rank", str(found.local_agent), origin),
        DerivedValue("world_size", str(found.agents * local_world_size), origin),
        DerivedValue("local_world_size", str(found.local_agents), origin),
    )
