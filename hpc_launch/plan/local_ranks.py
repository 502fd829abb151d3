"""How many workers an agent starts, and which devices each of them sees. Pure."""

from __future__ import annotations

from hpc_launch.errors import ContextError, UsageError
from hpc_launch.plan.launch_context import LaunchContext
from hpc_launch.plan.launch_plan import origin_of
from hpc_launch.settings import PROCESS_WORDS, Origin, Settings
from hpc_launch.world import World


def count_workers(settings: Settings, here: LaunchContext, found: World) -> tuple[int, str]:
    """How many workers this agent starts, and who said so."""
    asked, visible = settings.nproc_per_node, here.devices
    origin = origin_of(settings, "nproc_per_node", Origin.DEFAULT)
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


def _no_more_than_devices(asked: int, here: LaunchContext) -> int:
    visible = here.devices
    if 0 < len(visible) < asked:
        raise UsageError(
            f"--nproc-per-node: {asked} workers but {len(visible)} devices ({visible.source}): use --nproc-per-node "
            f"{len(visible)}, or set {visible.variable}= to run on CPUs",
            option="--nproc-per-node",
        )
    return asked


def isolated(settings: Settings, here: LaunchContext) -> bool:
    """Whether each worker is shown its own device only. CUDA knows no other way for MIG devices."""
    if settings.virtual_local_rank and settings.given("gpu_bind") and settings.gpu_bind != "isolate":
        raise UsageError(
            f"--gpu-bind {settings.gpu_bind} and --virtual-local-rank, which is --gpu-bind isolate: leave one out",
            option="--gpu-bind",
        )
    if settings.gpu_bind == "none":
        return False
    return settings.virtual_local_rank or settings.gpu_bind == "isolate" or here.devices.exclusive
