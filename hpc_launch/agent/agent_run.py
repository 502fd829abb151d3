"""The run of a plan by one agent: it makes the rendezvous and the agent, runs them, and says how they ended."""

from __future__ import annotations

import contextlib
import dataclasses
import signal
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.rendezvous import RendezvousHandler
from torch.distributed.elastic.rendezvous.api import RendezvousError as TorchRendezvousError

from hpc_launch import torch_private
from hpc_launch.agent import foreign_backends, job_requeue, log_messages, slurm_node_states, torch_adapter
from hpc_launch.agent.agent import Agent
from hpc_launch.agent.job_monitor import JobMonitor
from hpc_launch.console import CONSOLE, flush, say
from hpc_launch.errors import (
    HpcLaunchError,
    Interrupted,
    NoSecretError,
    RendezvousError,
    RoundRefused,
    UsageError,
    WorkerError,
)
from hpc_launch.node import limits
from hpc_launch.plan import cpu_binding
from hpc_launch.plan.launch_plan import Plan
from hpc_launch.records import history, nodes_to_exclude
from hpc_launch.rendezvous.coordinator_server import STRANGERS
from hpc_launch.rendezvous.handler import SlurmRendezvous
from hpc_launch.rendezvous.messages import RoundEnding
from hpc_launch.rendezvous.rendezvous_config import config_of
from hpc_launch.rendezvous.round_checks import shape
from hpc_launch.settings import Origin
from hpc_launch.slurm.environment import requeue_id, restart_count
from hpc_launch.slurm.job import JobRecord
from hpc_launch.workers.factory import Factory
from hpc_launch.workers.signals import AgentSignals

# How long a node that cannot take part waits for the others to tell them so.
_PATIENCE = 60.0

# What a process has open besides connections to other nodes: logs, libraries, torch's own.
_OTHER_FILES = 256


def count_processes(word: str) -> int:
    """Ask torch how many processes a word such as the name of a device backend stands for.

    Raises:
        UsageError: when torch does not know it.
    """
    try:
        return torch_private.count_processes(word)
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
    CONSOLE.serve()
    torch_adapter.quieten(plan, environ)
    settings = dataclasses.replace(plan.settings, join_timeout=min(plan.settings.join_timeout, _PATIENCE))
    try:
        handler = _own_handler(dataclasses.replace(plan, settings=settings), environ, problem)
    except (NoSecretError, UsageError):
        return  # the others cannot know this agent: its own problem is what it ends with
    try:
        handler.next_rendezvous()
    finally:
        handler.shutdown()


def run_agent(plan: Plan, environ: Mapping[str, str], factory: Factory) -> None:
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
    CONSOLE.serve()  # the factory is there: threads may be started from here on
    torch_adapter.quieten(plan, environ)
    settings = plan.settings
    signals = AgentSignals(settings.signals_to_handle, settings.notice_signals, at_once=not plan.own_rendezvous)
    with contextlib.ExitStack() as stack:
        stack.callback(factory.close)
        try:
            handler = _handler(plan, environ)
            stack.callback(handler.shutdown)
            stack.callback(signals.ignore)  # what is left is short, and must not be cut off
            if plan.own_rendezvous:
                # Others block in torch, where no handler of ours would run: there signals end us as they do.
                signals.handle()
            with signals.raising():
                spec = torch_adapter.worker_spec(plan, handler)
                logs = torch_adapter.foreign_logs(settings)

                def job_monitor(now: Plan) -> JobMonitor | None:
                    made = _job_monitor(now, environ, lambda: agent.job.end_time if agent.begun else None)
                    if made is not None:
                        stack.callback(made.close)
                        made.begin(lambda record: _requeue_early(plan, environ, agent, record))
                    return made

                agent = Agent(spec, plan, environ, logs, factory=factory, signals=signals, job_monitor=job_monitor)
                stack.callback(agent.close)
                if isinstance(handler, SlurmRendezvous) and handler.elastic and plan.world.origin is Origin.STEP:
                    stack.callback(slurm_node_states.follow(handler).close)
                agent.follow_slurm()
                _announce(plan, restart_count(environ))
                flush()
        except SignalException as stop:
            raise Interrupted(stop.sigval, stop.sigval.name) from None
        error = _run_attempts(agent, handler, plan)
        if isinstance(error, Interrupted):
            agent.tell_who_cancelled()
        agent.left(error)
        # Before the others are waited for: Slurm may be about to kill.
        _requeue(plan, environ, agent, error)
        if isinstance(error, RendezvousError) and not isinstance(error, RoundRefused) and agent.first and agent.begun:
            log_messages.advice(nodes_to_exclude.find_bad_nodes(history.read_history(agent.job.path)))
    if error is not None:
        raise error


def _requeue(plan: Plan, environ: Mapping[str, str], agent: Agent, error: HpcLaunchError | None) -> None:
    """Have the job run again, if that was asked for."""
    if plan.settings.requeue and agent.first:
        record = agent.slurm_record()
        ended = job_requeue.EndedRun(
            error, agent.noticed, record, agent.job, *agent.attempts, seconds=agent.seconds, end=agent.job_end
        )
        word = job_requeue.settle(plan, environ, ended)
        if word:
            say(word)


def _requeue_early(plan: Plan, environ: Mapping[str, str], agent: Agent, record: JobRecord) -> None:
    """Do so while the workers end, where Slurm may not leave the time for it afterwards. Called in a thread."""
    if plan.settings.requeue and agent.begun:
        job_requeue.settle_early(
            plan, environ, job_requeue.EndedRun(None, agent.noticed, record, agent.job, *agent.attempts, end=record.end)
        )


def _job_monitor(plan: Plan, environ: Mapping[str, str], file: Callable[[], Path | None]) -> JobMonitor | None:
    """Begin to ask Slurm about the job's end, on one node for all."""
    if not (plan.world.origin is Origin.STEP and plan.world.leader and plan.own_rendezvous):
        return None
    end = environ.get("SLURM_JOB_END_TIME", "")
    return JobMonitor(requeue_id(environ), file, float(end) if end.isdecimal() else None)


def _run_attempts(agent: Agent, handler: RendezvousHandler, plan: Plan) -> HpcLaunchError | None:
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
        return foreign_backends.lost_rendezvous(plan, problem)
    end = agent.end
    if end is None and result.is_failed():
        end = agent.failure()
    if end is None or end.ending != RoundEnding.FAILED.value:
        return None
    if end.signal:
        signum = signal.Signals[end.signal]
        return Interrupted(signum, signum.name, said=True)
    return WorkerError(end.cause, exit_status=end.status)


def _handler(plan: Plan, environ: Mapping[str, str]) -> RendezvousHandler:
    if not plan.own_rendezvous:
        return foreign_backends.make_handler(plan)
    if plan.world.leader or plan.elastic:
        _allow_connections(plan)
    return _own_handler(plan, environ)


def _own_handler(plan: Plan, environ: Mapping[str, str], problem: HpcLaunchError | None = None) -> SlurmRendezvous:
    return SlurmRendezvous(config_of(plan, environ, problem))


def _allow_connections(plan: Plan) -> None:
    """All agents may be connected to this one, and all workers to the store that it has for them."""
    wanted = plan.world.agents + 2 * plan.world.agents * plan.local_world_size + _OTHER_FILES
    # Besides these, strangers may be connected until they have had their time.
    allowed = limits.allow_open_files(wanted + plan.world.agents + STRANGERS)
    if allowed < wanted and plan.world.leader:
        say(
            f"note: {plan.world.agents} node(s) may need {wanted} connections to {plan.world.host}, where {allowed} "
            "files can be open: raise the hard limit (ulimit -Hn where the job is submitted, or LimitNOFILE of slurmd)"
        )


def _announce(plan: Plan, requeues: int) -> None:
    """One line that says what begins, from the first node; before it what is probably not meant."""
    for line in plan.warnings if plan.world.leader else plan.seen_here:
        say(f"note: {line}")
    if not plan.world.leader:
        return
    world = plan.world
    spares = plan.settings.spares
    ranks = (world.agents - spares) * plan.local_world_size
    nodes = f"{len(world.hosts)} node{'s' if len(world.hosts) > 1 else ''}{f' ({spares} to spare)' if spares else ''}"
    size = f"{nodes}, {shape([ranks])} rank{'s' if ranks > 1 else ''}"
    omp = f", OMP_NUM_THREADS={plan.omp_num_threads}" if plan.omp_num_threads else ""
    if plan.settings.verbose:
        for item in plan.derived:
            say(f"{item.name} = {item.value} ({item.origin})")
    again = f"after {requeues} requeue{'s' if requeues > 1 else ''}: " if requeues else ""
    in_full = len(world.hosts) > 1 or plan.settings.verbose
    if in_full or again:
        say(f"{again}{size}{omp}, logs in {plan.log_root / plan.job_name}")
    if in_full or plan.binding.located:
        for line in cpu_binding.binding_table(plan.binding, plan.omp_num_threads):
            say(line)
