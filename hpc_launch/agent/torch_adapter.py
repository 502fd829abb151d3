"""The adapter to torch: what torch's agent and log specs are told of a plan, and that torch is to be quiet."""

from __future__ import annotations

import dataclasses
import logging
import os
import sys
from collections.abc import Mapping
from importlib import metadata
from typing import Any

import torch
from torch.distributed.elastic.agent.server.api import WorkerSpec
from torch.distributed.elastic.events import get_logging_handler  # type: ignore[attr-defined]  # documented, not exported
from torch.distributed.elastic.multiprocessing import LogsSpecs, Std
from torch.distributed.elastic.rendezvous import RendezvousHandler

from hpc_launch import torch_private
from hpc_launch.errors import ContextError, UsageError
from hpc_launch.node import network
from hpc_launch.plan.launch_plan import Plan
from hpc_launch.settings import Settings, StreamChoice, Streams
from hpc_launch.workers import run_path


def quieten(plan: Plan, environ: Mapping[str, str]) -> None:
    """Silence torch in this process: what it says is said by us, in fewer words.

    -v or torch's variables bring it back.
    """
    if plan.settings.verbose:
        return
    if "LOGLEVEL" not in environ:
        logging.getLogger("torch.distributed.elastic").setLevel(logging.ERROR)
        # An error file that cannot be read is no error of this process.
        logging.getLogger("torch.distributed.elastic.multiprocessing.errors").setLevel(logging.CRITICAL)
    if "TORCH_CPP_LOG_LEVEL" not in environ:
        torch_private.silence_cpp()


def first_line(error: BaseException) -> str:
    """What an error of torch says, without the C++ frames."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def worker_spec(plan: Plan, handler: RendezvousHandler) -> WorkerSpec:
    """What torch's agent is told of the workers.

    Raises:
        UsageError: when this torch does not know an option.
    """
    settings = plan.settings
    entrypoint, arguments = _command(plan)
    more: dict[str, Any] = {}
    if plan.backend == "static":
        # With static rendezvous the workers' endpoint is the given one (torch/distributed/launcher/api.py).
        more["master_addr"], more["master_port"] = network.split_endpoint(plan.endpoint)
    if settings.given("event_log_handler"):
        more["event_log_handler"] = _event_log_handler(settings.event_log_handler)
    if settings.numa_binding is not None:
        _check_numa_mode(settings.numa_binding)
    return WorkerSpec(
        role=settings.role,
        local_world_size=plan.local_world_size,
        entrypoint=entrypoint,
        args=arguments,
        rdzv_handler=handler,
        max_restarts=settings.max_restarts,
        monitor_interval=settings.monitor_interval,
        local_addr=settings.local_addr,
        **more,
    )


def _command(plan: Plan) -> tuple[str, tuple[str, ...]]:
    """What a worker runs, as torchrun makes it from the same options (torch/distributed/run.py, config_from_args)."""
    settings = plan.settings
    script, *arguments = plan.script
    local_rank = () if settings.use_env else (f"--local-rank={torch_private.LOCAL_RANK}",)
    if settings.run_path:
        return sys.executable, ("-u", "-m", run_path.__name__, script, *local_rank, *arguments)
    if settings.no_python:
        return script, (*local_rank, *arguments)
    module = ("-m",) if settings.module else ()
    return os.environ.get("PYTHON_EXEC", sys.executable), ("-u", *module, script, *local_rank, *arguments)


def _event_log_handler(name: str) -> str:
    if "event_log_handler" not in {field.name for field in dataclasses.fields(WorkerSpec)}:
        raise UsageError(
            f"--event-log-handler {name}: torch {torch.__version__} has no such option, newer ones do; leave it out",
            option="--event-log-handler",
        )
    try:
        get_logging_handler(name)
    except KeyError:
        raise UsageError(
            f"--event-log-handler: torch knows no handler '{name}'; it has null and console",
            option="--event-log-handler",
        ) from None
    return name


def _check_numa_mode(mode: str) -> None:
    try:
        from torch.numa.binding import AffinityMode  # noqa: PLC0415 - not in older torch
    except ImportError:
        raise UsageError("--numa-binding needs torch 2.9 or newer", option="--numa-binding") from None
    modes = [known.value for known in AffinityMode]
    if mode not in modes:
        raise UsageError(f"--numa-binding: '{mode}' is not one of {', '.join(modes)}", option="--numa-binding")


def numa_cpus(mode: str, local_rank: int) -> tuple[int, ...]:
    """The CPUs that torch chooses for a worker by the NUMA node of its device (--numa-binding).

    Raises:
        ContextError: when it finds none, or no device.
    """
    try:
        cpus = torch_private.numa_cpus(mode, local_rank)
        problem = "" if cpus else f"local rank {local_rank} may use none of the CPUs near its device"
    except (RuntimeError, AssertionError, ValueError, OSError) as error:
        cpus, problem = (), first_line(error)
    if problem:
        raise ContextError(f"--numa-binding {mode}: {problem}; leave it out, or see torch's numa/binding.py")
    return cpus


def foreign_logs(settings: Settings) -> LogsSpecs | None:
    """The log destinations of an entry point, if one was asked for."""
    if settings.logs_specs is None:
        return None
    found = metadata.entry_points(group="torchrun.logs_specs", name=settings.logs_specs)
    if not found:
        raise UsageError(
            f"--logs-specs: no installed package has a torchrun.logs_specs entry point '{settings.logs_specs}'",
            option="--logs-specs",
        )
    specs: LogsSpecs = next(iter(found)).load()(
        log_dir=settings.log_dir,
        redirects=_torch_streams(settings.redirects),
        tee=_torch_streams(settings.tee),
        local_ranks_filter=set(settings.local_ranks_filter) or None,
    )
    return specs


def _torch_streams(choice: StreamChoice | None) -> Std | dict[int, Std]:
    if choice is None:
        return Std.NONE
    return {rank: Std(int(streams)) for rank, streams in choice.per_rank} or Std(int(choice.everyone or Streams.NONE))
