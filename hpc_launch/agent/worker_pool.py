"""The worker processes of one agent: made for each attempt by the factory, signalled, and ended."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Mapping
from typing import cast

from torch.distributed.elastic.agent.server.api import Worker, WorkerGroup, WorkerSpec
from torch.distributed.elastic.multiprocessing import LogsSpecs

from hpc_launch import torch_private
from hpc_launch.agent import torch_adapter
from hpc_launch.agent.run_context import RunContext
from hpc_launch.console import say
from hpc_launch.errors import HpcLaunchError
from hpc_launch.node import processes
from hpc_launch.rendezvous.handler import SlurmRendezvous
from hpc_launch.settings import Origin
from hpc_launch.workers.command_workers import CommandWorkers
from hpc_launch.workers.factory import Factory, FactoryLostError, spawn_factory
from hpc_launch.workers.factory_server import KILL_SECONDS
from hpc_launch.workers.grace_period import GracePeriod
from hpc_launch.workers.signals import AgentSignals
from hpc_launch.workers.worker_environment import AttemptEnvironment, WorkerNumbers, worker_environment

Environments = dict[int, dict[str, str]]
"""The environments of the workers here, by local rank."""

# How long Slurm may take to signal the other processes of a task, where it signals them all.
_OTHERS_SECONDS = 0.1


class WorkerPool:
    """The workers of one agent, attempt after attempt.

    Attributes:
        factory: makes the workers; another one where it was lost.
        workers: those of the attempt; None before the first.
    """

    def __init__(self, context: RunContext, factory: Factory, grace_period: GracePeriod, signals: AgentSignals) -> None:
        """There are none yet.

        Args:
            context: the run that they are for.
            factory: makes workers.
            grace_period: the time that they have to end.
            signals: what has come to this process.
        """
        self._signals = signals
        self.factory = factory
        self.workers: CommandWorkers | None = None
        self._context = context
        self._grace_period = grace_period

    def start(self, spec: WorkerSpec, environs: Environments, logs: LogsSpecs) -> CommandWorkers:
        """Start those of an attempt, forked if possible.

        Raises:
            HpcLaunchError: when they cannot be started.
        """
        try:
            try:
                self.workers = self._start(spec, environs, logs)
            except FactoryLostError as error:
                say(f"{error}: workers are started by exec")
                self.factory.close()
                self.factory = spawn_factory(self.factory.mask)
                self.workers = self._start(spec, environs, logs)
        except (OSError, FactoryLostError) as error:
            raise HpcLaunchError(f"{self._context.host}: {error}") from error
        return self.workers

    @property
    def running(self) -> list[int]:
        """Process ids of the workers that are not known to have ended."""
        return [*self.workers.running.values()] if self.workers is not None else []

    def send(self, pid: int, signum: int) -> None:
        """Signal one of them."""
        if self.workers is not None:
            with contextlib.suppress(FactoryLostError):
                self.workers.send(pid, signum)

    def heard(self, signum: int) -> bool:
        """Whether Slurm has signalled them itself: then it has signalled the factory as well."""
        try:
            return self.factory.heard(signum)
        except FactoryLostError:
            return False

    def take_signals(self) -> None:
        """Take stop signals that have come to the factory for our own."""
        for signum in self.factory.signalled():
            self._signals.relay(signum)

    def stop(self, signum: signal.Signals, then: Callable[[], None]) -> None:
        """End them, and nothing else, within the grace period.

        Args:
            signum: what they are told first.
            then: is called when they have been told.
        """
        if self.workers is None:
            return
        # A signal that came to the factory alone is a worker's, to its parent; the workers have not got it.
        told = self._grace_period.stopped and self._heard_soon(signum) and not self._signals.relayed
        self.workers.stop(signum, told=told, then=then)
        self.workers.close(signum)
        if self.factory.lost:
            _end_orphans()

    def close(self) -> None:
        """End the factory, and whatever there still is of what it has started."""
        self.factory.close()

    def _start(self, spec: WorkerSpec, environs: Environments, logs: LogsSpecs) -> CommandWorkers:
        settings = self._context.plan.settings
        workers = CommandWorkers(
            name=spec.role,
            entrypoint=spec.entrypoint,
            args={
                local: torch_private.replace_local_rank(spec.args, int(environ["LOCAL_RANK"]))
                for local, environ in environs.items()
            },
            envs=environs,
            logs_specs=logs,
            factory=self.factory,
            forked=self.factory.forks,
            group=settings.no_python,
            grace_period=self._grace_period,
            job=self._context.job.path,
            secret_names=settings.secret_names,
            cpus=self._cpus,
            open_files=self._context.plan.open_files,
        )
        workers.start()
        return workers

    def _cpus(self, worker: int) -> tuple[int, ...]:
        """The CPUs of one of them; none where it is not bound.

        Raises:
            ContextError: when torch is to say it (--numa-binding), and cannot.
        """
        mode, shares = self._context.plan.settings.numa_binding, self._context.plan.shares
        if mode is not None:
            return torch_adapter.numa_cpus(mode, worker)
        return shares[worker].cpus if shares else ()

    def _heard_soon(self, signum: int) -> bool:
        """As `heard`, of a signal that comes now: Slurm signals the processes of a task one after the other."""
        if self._context.world.origin is not Origin.STEP:
            return False
        deadline = time.monotonic() + _OTHERS_SECONDS
        while not (heard := self.heard(signum)) and time.monotonic() < deadline:
            time.sleep(_OTHERS_SECONDS / 10)
        return heard


def environments(context: RunContext, group: WorkerGroup, base: Mapping[str, str]) -> Environments:
    """The environments of the workers of an attempt.

    Args:
        context: the run.
        group: the workers, as torch has numbered them.
        base: the agent's environment, which theirs are made from.
    """
    plan, world, spec = context.plan, context.world, group.spec
    own = spec.rdzv_handler if isinstance(spec.rdzv_handler, SlurmRendezvous) else None
    attempt = AttemptEnvironment(
        number=context.number,
        label=context.label,
        master_addr=str(group.master_addr),
        master_port=int(cast("int", group.master_port)),
        max_restarts=spec.max_restarts,
        run_id=(own.plan.run_id if own is not None else "") or spec.rdzv_handler.get_run_id(),
        role=spec.role,
        use_agent_store=spec.rdzv_handler.use_agent_store,
        signals=plan.settings.signals_to_handle,
        notices=plan.settings.notice_signals,
        agent_workers=own.plan.workers if own is not None else (),
    )
    interface = own.interface if own is not None else ""

    def environment(worker: Worker) -> dict[str, str]:
        environ = worker_environment(
            base,
            place=WorkerNumbers(
                rank=worker.global_rank,
                world_size=worker.world_size,
                local_rank=world.local_agent if world.task_per_rank else worker.local_rank,
                local_world_size=world.local_agents if world.task_per_rank else spec.local_world_size,
                role_rank=worker.role_rank,
                role_world_size=worker.role_world_size,
            ),
            attempt=attempt,
            world=world,
            devices=plan.devices,
            isolated=plan.isolated,
            omp_num_threads=plan.omp_num_threads,
            slurm_env=plan.settings.slurm_env,
            job_directory=str(context.job.path),
            interface=interface,
            gpu_bind=plan.settings.gpu_bind,
        )
        if own is None:  # backends that number nodes by themselves (c10d) are right about it
            environ["GROUP_RANK"], environ["GROUP_WORLD_SIZE"] = str(group.group_rank), str(group.group_world_size)
        return environ

    return {worker.local_rank: environment(worker) for worker in group.workers}


def _end_orphans() -> None:
    """End what a factory that was killed has left to this process, its subreaper."""
    deadline = time.monotonic() + KILL_SECONDS
    while (orphans := processes.descendants(os.getpid())) and time.monotonic() < deadline:
        for orphan in orphans:
            processes.send(orphan, signal.SIGKILL)
        time.sleep(_OTHERS_SECONDS / 10)
