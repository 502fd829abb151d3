"""The environment of a worker: what torch scripts read, and what Slurm's variables should say of it. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hpc_launch import secret_variables
from hpc_launch.node.devices import Devices
from hpc_launch.world import World

# Variables that say which task of a step a process is: wrong for the workers of one task, each in its own way.
_IDENTITY = re.compile(
    r"SLURM_(PROCID|LOCALID|NODEID|GTIDS|NTASKS|NPROCS|TASKS_PER_NODE|NTASKS_PER_NODE|TASK_PID|STEP_.*|STEPID)"
    r"|SLURMD_NODENAME|PMI_.*|PMIX_.*|PMI2_.*"
)


@dataclass(frozen=True)
class WorkerNumbers:
    """The numbers of one worker.

    Attributes:
        rank: among all workers.
        local_rank: among those of its node.
        role_rank: among those of its role.
    """

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    role_rank: int
    role_world_size: int


@dataclass(frozen=True)
class AttemptEnvironment:
    """What all workers of an attempt share.

    Attributes:
        number: of the attempt in this run, from 0.
        label: of the attempt in the job directory.
        agent_workers: workers of each agent, by agent; empty where that is not known.
        signals: names of the signals that stop the agent (--signals-to-handle).
        notices: names of the signals that are passed on (--notice-signals).
    """

    number: int
    label: int
    master_addr: str
    master_port: int
    max_restarts: int
    run_id: str
    role: str
    use_agent_store: bool
    agent_workers: Sequence[int] = ()
    signals: Sequence[str] = ()
    notices: Sequence[str] = ()


def worker_environment(  # noqa: D417 - the types say it
    base: Mapping[str, str],
    *,
    place: WorkerNumbers,
    attempt: AttemptEnvironment,
    world: World,
    devices: Devices,
    isolated: bool,
    omp_num_threads: int | None,
    slurm_env: str,
    job_directory: str,
    interface: str = "",
    gpu_bind: str = "visible",
) -> dict[str, str]:
    """The whole environment of one worker.

    The names from RANK to TORCH_NCCL_ASYNC_ERROR_HANDLING are those that torchrun sets
    (torch/distributed/elastic/agent/server/local_elastic_agent.py).

    Args:
        base: the environment of the agent; it is copied, but for the secret of the run.
        isolated: show the worker its own device only, as device 0.
        slurm_env: `rank`, `keep` or `hide`, as --slurm-env.
        interface: the network to train over, where the user has not said; empty leaves the choice to the libraries.
        gpu_bind: `none` leaves the device masks as they are.
    """
    environ = secret_variables.without_secrets(base)
    environ.update(
        {
            "RANK": str(place.rank),
            "WORLD_SIZE": str(place.world_size),
            "LOCAL_RANK": str(place.local_rank),
            "LOCAL_WORLD_SIZE": str(place.local_world_size),
            "GROUP_RANK": str(world.node_rank),
            "GROUP_WORLD_SIZE": str(len(world.hosts)),
            "ROLE_RANK": str(place.role_rank),
            "ROLE_WORLD_SIZE": str(place.role_world_size),
            "ROLE_NAME": attempt.role,
            "MASTER_ADDR": attempt.master_addr,
            "MASTER_PORT": str(attempt.master_port),
            "TORCHELASTIC_RESTART_COUNT": str(attempt.number),
            "TORCHELASTIC_MAX_RESTARTS": str(attempt.max_restarts),
            "TORCHELASTIC_RUN_ID": attempt.run_id,
            "TORCHELASTIC_USE_AGENT_STORE": str(attempt.use_agent_store),
            "TORCHELASTIC_SIGNALS_TO_HANDLE": ",".join(attempt.signals),
            "TORCH_NCCL_ASYNC_ERROR_HANDLING": base.get("TORCH_NCCL_ASYNC_ERROR_HANDLING", "1"),
            "HPC_LAUNCH_ATTEMPT": str(attempt.label),
            "HPC_LAUNCH_NOTICE_SIGNALS": ",".join(attempt.notices) or "none",
            "HPC_LAUNCH_HOST": world.host,
            "HPC_LAUNCH_JOB_DIRECTORY": job_directory,
        }
    )
    # A fatal signal (SIGSEGV, SIGABRT) then leaves the stacks of Python in the rank's .err; empty leaves them out.
    environ.setdefault("PYTHONFAULTHANDLER", "1")
    if omp_num_threads is not None:
        environ["OMP_NUM_THREADS"] = str(omp_num_threads)
    if interface:
        environ.setdefault("GLOO_SOCKET_IFNAME", interface)
        # NCCL takes a name for a prefix, unless told otherwise (NCCL documentation, NCCL_SOCKET_IFNAME).
        environ.setdefault("NCCL_SOCKET_IFNAME", f"={interface}")
    if gpu_bind != "none":
        environ.update(_device_mask(base, place.local_rank, devices, isolated=isolated))
    if isolated:
        environ["LOCAL_RANK"] = "0"
    if "SLURM_PROCID" in base:
        _tell_slurm_rank(environ, place, attempt, world, slurm_env)
    return environ


def _device_mask(base: Mapping[str, str], local_rank: int, devices: Devices, *, isolated: bool) -> dict[str, str]:
    """The device mask of a worker, as changes to the environment; an index into the mask that is there."""
    mask: dict[str, str] = {}
    if isolated:
        tokens = devices.tokens or tuple(map(str, range(local_rank + 1)))  # none to choose from: as torchrun does
        mask[devices.variable or "CUDA_VISIBLE_DEVICES"] = tokens[local_rank % len(tokens)]
    numbers = devices.variable == "CUDA_VISIBLE_DEVICES" and all(token.isdigit() for token in devices.tokens)
    if numbers and len(devices) and "CUDA_DEVICE_ORDER" not in base:
        # Slurm numbers GPUs in the order of the bus (gres.conf(5)); CUDA's own default is the fastest first.
        mask["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
    return mask


def _tell_slurm_rank(
    environ: dict[str, str], place: WorkerNumbers, attempt: AttemptEnvironment, world: World, slurm_env: str
) -> None:
    """Let Slurm's variables speak of the worker: as its task has them, all workers of a node would be task 0."""
    if slurm_env == "hide":
        for name in [name for name in environ if _IDENTITY.fullmatch(name)]:
            del environ[name]
    if slurm_env != "rank":
        return
    environ["SLURM_PROCID"] = str(place.rank)
    environ["SLURM_LOCALID"] = str(place.local_rank)
    environ["SLURM_NODEID"] = str(world.node_rank)
    first = place.rank - place.local_rank
    if not world.task_per_rank:
        environ["SLURM_GTIDS"] = ",".join(str(first + number) for number in range(place.local_world_size))
    for name in ("SLURM_NTASKS", "SLURM_NPROCS", "SLURM_STEP_NUM_TASKS"):
        environ[name] = str(place.world_size)
    if attempt.agent_workers and not world.task_per_rank:
        counts = run_lengths(attempt.agent_workers)
        environ["SLURM_TASKS_PER_NODE"] = environ["SLURM_STEP_TASKS_PER_NODE"] = counts
    if len({*attempt.agent_workers}) == 1 or "SLURM_NTASKS_PER_NODE" in environ:
        environ["SLURM_NTASKS_PER_NODE"] = str(place.local_world_size)
    if len({*attempt.agent_workers}) > 1:
        environ.pop("SLURM_NTASKS_PER_NODE", None)  # nodes have different numbers of ranks


def run_lengths(counts: Sequence[int]) -> str:
    """Write counts as Slurm does: `4(x3),2`."""
    parts: list[tuple[int, int]] = []
    for count in counts:
        if parts and parts[-1][0] == count:
            parts[-1] = (count, parts[-1][1] + 1)
        else:
            parts.append((count, 1))
    return ",".join(f"{count}(x{times})" if times > 1 else str(count) for count, times in parts)
