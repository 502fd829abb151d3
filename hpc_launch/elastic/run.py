"""Run a plan: make the rendezvous and the agent, run them, and say how it ended."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import logging
import os
import signal
import sys
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import torch.distributed.run as torchrun
from torch.distributed.elastic.agent.server.api import WorkerSpec
from torch.distributed.elastic.events.handlers import get_logging_handler
from torch.distributed.elastic.multiprocessing import LogsSpecs, SignalException, Std
from torch.distributed.elastic.rendezvous import RendezvousHandler, RendezvousParameters
from torch.distributed.elastic.rendezvous.api import RendezvousError as TorchRendezvousError
from torch.distributed.elastic.rendezvous.registry import get_rendezvous_handler

from hpc_launch.elastic import requeue, slurm_view, workers
from hpc_launch.elastic.agent import Agent
from hpc_launch.elastic.console import flush, say
from hpc_launch.elastic.fixed import FixedRendezvous
from hpc_launch.elastic.moving import MovingRendezvous
from hpc_launch.elastic.outlook import Outlook
from hpc_launch.elastic.party import party_of
from hpc_launch.elastic.rendezvous import SlurmRendezvous
from hpc_launch.elastic.rounds import Ending, shape
from hpc_launch.elastic.signals import Signals
from hpc_launch.errors import HpcLaunchError, Interrupted, RendezvousError, UsageError, WorkerError
from hpc_launch.node import limits, network
from hpc_launch.plan import binding
from hpc_launch.plan.model import Plan
from hpc_launch.records.directory import JobDirectory
from hpc_launch.settings import Origin, Settings, StreamChoice, Streams
from hpc_launch.slurm.environment import requeue_id, restart_count
from hpc_launch.slurm.job import JobRecord
from hpc_launch.warm.factory import Factory

# torchrun's macro for the local rank (torch/distributed/elastic/utils/api.py).
_LOCAL_RANK = "${local_rank}"

# How long a node that cannot take part waits for the others to tell them so.
_PATIENCE = 60.0


def count_processes(word: str) -> int:
    """Ask torch how many processes a word such as the name of a device backend stands for.

    Raises:
        UsageError: when torch does not know it.
    """
    try:
        return int(torchrun.determine_local_world_size(word))
    except ValueError as error:
        raise UsageError(f"--nproc-per-node: {error}", option="--nproc-per-node") from error


def refuse(plan: Plan, environ: Mapping[str, str], problem: HpcLaunchError) -> None:
    """Join the others only to say why this node cannot take part.

    Args:
        plan: whom to join.
        environ: the environment.
        problem: why.

    Raises:
        RendezvousError: with the words and the status that all nodes end with.
    """
    _quieten_torch(plan, environ)
    settings = dataclasses.replace(plan.settings, join_timeout=min(plan.settings.join_timeout, _PATIENCE))
    handler = _own_handler(dataclasses.replace(plan, settings=settings), problem)
    try:
        handler.next_rendezvous()
    finally:
        handler.shutdown()


def run(plan: Plan, environ: Mapping[str, str], factory: Factory) -> None:
    """Run the agent of this node until all attempts are over.

    Args:
        plan: what to do.
        environ: the environment that the workers' own is made from.
        factory: makes the workers; it is closed, and nothing is left of them.

    Raises:
        WorkerError: with the status of the worker that failed first, on every node.
        Interrupted: when a signal told the agents to stop.
        RendezvousError: when the nodes did not come together, or lost each other.
    """
    _quieten_torch(plan, environ)
    settings = plan.settings
    signals = Signals(settings.signals_to_handle, settings.notice_signals, at_once=not plan.own_rendezvous)
    with contextlib.ExitStack() as stack:
        stack.callback(factory.close)
        try:
            handler = _handler(plan)
            stack.callback(handler.shutdown)
            stack.callback(signals.ignore)  # what is left is short, and must not be cut off
            if plan.own_rendezvous:
                # Others block in torch, where no handler of ours would run: there signals end us as they do.
                signals.handle()
            with signals.raising():
                spec = _spec(plan, handler, *_command(plan))
                logs = _foreign_logs(settings)

                def outlook(now: Plan) -> Outlook | None:
                    made = _outlook(now, environ)
                    if made is not None:
                        stack.callback(made.close)
                        made.begin(lambda record: _requeue_early(plan, environ, agent, record))
                    return made

                agent = Agent(spec, plan, environ, logs, factory=factory, signals=signals, outlook=outlook)
                stack.callback(agent.close)
                if isinstance(handler, MovingRendezvous) and plan.world.origin is Origin.STEP:
                    stack.callback(slurm_view.follow(handler).close)
                agent.follow_slurm()
                _announce(plan, restart_count(environ))
                flush()
        except SignalException as stop:
            raise Interrupted(stop.sigval, stop.sigval.name) from None
        error = _run_agent(agent, handler, plan)
        agent.left(error)
        # Before the others are waited for: Slurm may be about to kill.
        _requeue(plan, environ, agent, error)
    if error is not None:
        raise error


def _requeue(plan: Plan, environ: Mapping[str, str], agent: Agent, error: HpcLaunchError | None) -> None:
    """Have the job run again, if that was asked for."""
    if plan.settings.requeue and agent.first:
        ended = requeue.Run(error, agent.noticed, agent.slurm_record(), agent.job, *agent.attempts)
        word = requeue.settle(plan, environ, ended)
        if word:
            say(word)


def _requeue_early(plan: Plan, environ: Mapping[str, str], agent: Agent, record: JobRecord) -> None:
    """Do so while the workers end, where Slurm may not leave the time for it afterwards. Called in a thread."""
    if plan.settings.requeue and agent.begun:
        requeue.settle_early(plan, environ, requeue.Run(None, agent.noticed, record, agent.job, *agent.attempts))


def _outlook(plan: Plan, environ: Mapping[str, str]) -> Outlook | None:
    """Begin to ask Slurm about the job's end, on one node for all."""
    if not (plan.world.origin is Origin.STEP and plan.world.leader and plan.own_rendezvous):
        return None
    end = environ.get("SLURM_JOB_END_TIME", "")
    file = JobDirectory(plan.log_root, plan.job_name).end_time
    return Outlook(requeue_id(environ), file, float(end) if end.isdecimal() else None)


def _run_agent(agent: Agent, handler: RendezvousHandler, plan: Plan) -> HpcLaunchError | None:
    """Run it; returns what ended it, said to the other agents."""
    try:
        result = agent.run()
    except SignalException as stop:
        error: HpcLaunchError = Interrupted(stop.sigval, stop.sigval.name)
        if isinstance(handler, SlurmRendezvous):
            cause = f"stopped by {stop.sigval.name} on {plan.world.host}"
            handler.report_end(error.exit_status, cause, stop.sigval.name)
        return error
    except HpcLaunchError as problem:
        if isinstance(handler, SlurmRendezvous):
            handler.report_end(problem.exit_status, str(problem))
        return problem
    except (TorchRendezvousError, torch.distributed.DistError) as problem:
        return RendezvousError(f"{plan.backend} rendezvous at '{plan.endpoint}': {_first_line(problem)}")
    end = agent.end
    if end is None and result.is_failed():
        end = agent.failure_of(result)
    if end is None or end.ending != Ending.FAILED.value:
        return None
    if end.signal:
        signum = signal.Signals[end.signal]
        return Interrupted(signum, signum.name, said=True)
    return WorkerError(end.cause, exit_status=end.status)


# The severity that torch's C++ parts still speak at (c10/util/Logging.h), and where that is kept.
_CPP_FATAL = 3
_CPP_LEVEL = "FLAGS_caffe2_log_level"


def _quieten_torch(plan: Plan, environ: Mapping[str, str]) -> None:
    """Silence torch in this process: what it says is said by us, in fewer words. -v or torch's variables bring it back.

    Its C++ parts warn of host names without a reverse entry, and print stack traces of errors that are said in a line.
    They read TORCH_CPP_LOG_LEVEL when torch is loaded, but so would the workers that are forked from there, and theirs
    is the script's to choose. The flag behind it is an exported variable, so it can be set later.
    """
    if plan.settings.verbose:
        return
    if "LOGLEVEL" not in environ:
        logging.getLogger("torch.distributed.elastic").setLevel(logging.ERROR)
        logging.getLogger("torch.numa").setLevel(logging.CRITICAL)
    if "TORCH_CPP_LOG_LEVEL" not in environ:
        with contextlib.suppress(OSError, ValueError):  # a build of torch that has no such flag speaks
            library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libc10.so"))
            ctypes.c_int.in_dll(library, _CPP_LEVEL).value = _CPP_FATAL


def _own_handler(plan: Plan, problem: HpcLaunchError | None = None) -> SlurmRendezvous:
    party = party_of(plan, problem)
    return MovingRendezvous(party) if party.elastic else FixedRendezvous(party)


# What a process has open besides connections to other nodes: logs, libraries, torch's own.
_OTHER_FILES = 256


def _allow_connections(plan: Plan) -> None:
    """All agents may be connected to this one, and all workers to the store that it has for them."""
    wanted = plan.world.agents + 2 * plan.world.agents * plan.local_world_size + _OTHER_FILES
    allowed = limits.allow_open_files(wanted)
    if allowed < wanted and plan.world.leader:
        say(
            f"note: {plan.world.agents} node(s) may need {wanted} connections to {plan.world.host}, where {allowed} "
            "files can be open: raise the hard limit (ulimit -Hn where the job is submitted, or LimitNOFILE of slurmd)"
        )


def _handler(plan: Plan) -> RendezvousHandler:
    if plan.own_rendezvous:
        if plan.world.leader or plan.elastic:
            _allow_connections(plan)
        return _own_handler(plan)
    settings = plan.settings
    configuration: dict[str, Any] = dict(settings.rdzv_conf)
    configuration.setdefault("timeout", int(settings.join_timeout))
    numbered = plan.world.origin in (Origin.STEP, Origin.HOSTS) or settings.node_rank is not None
    if plan.backend == "static":
        configuration["rank"] = plan.world.agent_rank
    elif plan.backend == "c10d" and numbered and not plan.world.task_per_rank and len(plan.world.hosts) > 1:
        # torch guesses the host by comparing names, and is wrong on nodes with several (pytorch/pytorch#73656).
        named = network.short_name(network.split_endpoint(plan.endpoint)[0])
        if named in (network.short_name(name) for name in (plan.world.hosts[0], *plan.leaders)):
            configuration.setdefault("is_host", "1" if plan.world.node_rank == 0 else "0")
    parameters = RendezvousParameters(
        backend=plan.backend,
        endpoint=plan.endpoint,
        run_id=plan.run_id,
        min_nodes=plan.nnodes.minimum,
        max_nodes=plan.nnodes.maximum,
        local_addr=settings.local_addr,
        **configuration,
    )
    try:
        return get_rendezvous_handler(parameters)
    except (ValueError, TorchRendezvousError) as error:
        if "not registered" in str(error):
            raise UsageError(
                f"--rdzv-backend: '{plan.backend}' is not a rendezvous backend that torch knows: slurm, static, c10d, "
                "etcd, etcd-v2, or one from an installed package",
                option="--rdzv-backend",
            ) from None
        raise RendezvousError(f"{plan.backend} rendezvous at '{plan.endpoint}': {_first_line(error)}") from error


def _first_line(error: BaseException) -> str:
    """What an error of torch says, without the C++ frames."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def _command(plan: Plan) -> tuple[str | Callable[..., Any], tuple[Any, ...]]:
    """What a worker runs, as torchrun makes it from the same options (torch/distributed/run.py, config_from_args)."""
    settings = plan.settings
    script, *arguments = plan.script
    local_rank = () if settings.use_env else (f"--local-rank={_LOCAL_RANK}",)
    if settings.run_path:
        return workers.run_path, (script, *local_rank, *arguments)
    if settings.no_python:
        return script, (*local_rank, *arguments)
    module = ("-m",) if settings.module else ()
    return os.environ.get("PYTHON_EXEC", sys.executable), ("-u", *module, script, *local_rank, *arguments)


def _spec(
    plan: Plan, handler: RendezvousHandler, entrypoint: str | Callable[..., Any], arguments: tuple[Any, ...]
) -> WorkerSpec:
    settings = plan.settings
    more: dict[str, Any] = {}
    if plan.backend == "static":
        # With static rendezvous the workers' endpoint is the given one (torch/distributed/launcher/api.py).
        more["master_addr"], more["master_port"] = network.split_endpoint(plan.endpoint)
    if settings.given("event_log_handler"):
        more["event_log_handler"] = _event_log_handler(settings.event_log_handler)  # not in torch 2.4
    if settings.numa_binding is not None:
        more["numa_options"] = _numa_options(settings.numa_binding)
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


def _event_log_handler(name: str) -> str:
    try:
        get_logging_handler(name)
    except KeyError:
        raise UsageError(
            f"--event-log-handler: torch knows no handler '{name}'; it has null and console",
            option="--event-log-handler",
        ) from None
    return name


def _numa_options(mode: str) -> Any:
    try:
        from torch.numa.binding import AffinityMode, NumaOptions  # noqa: PLC0415 - not in older torch
    except ImportError:
        raise UsageError("--numa-binding needs torch 2.9 or newer", option="--numa-binding") from None
    modes = [known.value for known in AffinityMode]
    if mode not in modes:
        raise UsageError(f"--numa-binding: '{mode}' is not one of {', '.join(modes)}", option="--numa-binding")
    return NumaOptions(affinity_mode=AffinityMode(mode))


def _foreign_logs(settings: Settings) -> LogsSpecs | None:
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


def _announce(plan: Plan, requeues: int) -> None:
    """One line that says what begins, from the first node; then what is probably not meant."""
    if not plan.world.leader:
        return
    world = plan.world
    ranks = world.agents * plan.local_world_size
    size = (
        f"{len(world.hosts)} node{'s' if len(world.hosts) > 1 else ''}, {shape([ranks])} rank{'s' if ranks > 1 else ''}"
    )
    omp = f", OMP_NUM_THREADS={plan.omp_num_threads}" if plan.omp_num_threads else ""
    for line in plan.warnings:
        say(f"note: {line}")
    if plan.settings.verbose:
        for item in plan.derived:
            say(f"{item.name} = {item.value} ({item.origin})")
    again = f"after {requeues} requeue{'s' if requeues > 1 else ''}: " if requeues else ""
    in_full = len(world.hosts) > 1 or plan.settings.verbose
    if in_full or again:
        say(f"{again}{size}{omp}, logs in {plan.log_root / plan.job_name}")
    if in_full or plan.binding.located:
        for line in binding.table(plan.binding, plan.omp_num_threads):
            say(line)
