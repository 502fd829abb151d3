"""The worker processes of one agent: made for each attempt, by the factory or by torch, signalled, and ended."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Mapping
from typing import Any, cast

from torch.distributed.elastic.agent.server.api import Worker, WorkerGroup, WorkerSpec
from torch.distributed.elastic.multiprocessing import LogsSpecs, PContext, start_processes

from hpc_launch import secret
from hpc_launch.agent.run_context import RunContext
from hpc_launch.console import say
from hpc_launch.errors import ContextError, HpcLaunchError
from hpc_launch.node import processes
from hpc_launch.rendezvous.handler import SlurmRendezvous
from hpc_launch.settings import Origin
from hpc_launch.workers.command_workers import CommandWorkers, hidden_variables, replace_local_rank
from hpc_launch.workers.factory import Factory, FactoryLostError, spawn
from hpc_launch.workers.factory_server import KILL_SECONDS
from hpc_launch.workers.grace_period import GracePeriod
from hpc_launch.workers.worker_environment import Attempt, Place, worker_environment

Environments = dict[int, dict[str, str]]
"""The environments of the workers here, by local rank."""

# How long Slurm may take to signal the other processes of a task, where it signals them all.
_OTHERS_SECONDS = 0.1

# torch waits for workers of its own making in whole seconds, and not forever.
_LONGEST_WAIT = 1 << 20


class WorkerPool:
    """The workers of one agent, attempt after attempt.

    Attributes:
        factory: makes workers that are commands; another one where it was lost.
        workers: those of the attempt; None before the first.
    """

    def __init__(
        self, context: RunContext, environ: Mapping[str, str], factory: Factory, grace_period: GracePeriod
    ) -> None:
        """There are none yet.

        Args:
            context: the run that they are for.
            environ: the agent's environment.
            factory: makes workers.
            grace_period: the time that they have to end.
        """
        self.factory = factory
        self.workers: PContext | None = None
        self._context = context
        self._environ = environ
        self._grace_period = grace_period

    def start(self, spec: WorkerSpec, environs: Environments, logs: LogsSpecs) -> PContext:
        """Start those of an attempt.

        Raises:
            HpcLaunchError: when they cannot be started.
        """
        arguments: dict[int, tuple[Any, ...]] = {
            local: replace_local_rank(spec.args, int(environ["LOCAL_RANK"])) for local, environ in environs.items()
        }
        if callable(spec.entrypoint):
            hidden = hidden_variables(self._environ, environs[0])
            arguments = {local: (hidden, self._cpus(local), *words) for local, words in arguments.items()}
        common: dict[str, Any] = {
            "name": spec.role,
            "entrypoint": spec.entrypoint,
            "args": arguments,
            "envs": environs,
            "logs_specs": logs,
        }
        by_torch = callable(spec.entrypoint) or self._context.plan.settings.numa_binding
        self.workers = self._start_by_torch(spec, common) if by_torch else self._start_commands(common)
        return self.workers

    @property
    def running(self) -> list[int]:
        """Process ids of the workers that are not known to have ended."""
        if self.workers is None:
            return []
        pids = self.workers.running if isinstance(self.workers, CommandWorkers) else self.workers.pids()
        return [*pids.values()]

    def send(self, pid: int, signum: int) -> None:
        """Signal one of them."""
        if isinstance(self.workers, CommandWorkers):
            with contextlib.suppress(FactoryLostError):
                self.workers.send(pid, signum)
        else:
            processes.send(pid, signum)

    def heard(self, signum: int) -> bool:
        """Whether Slurm has signalled them itself: then it has signalled the factory as well."""
        try:
            return self.factory.heard(signum)
        except FactoryLostError:
            return False

    def stop(self, signum: signal.Signals, then: Callable[[], None]) -> None:
        """End them, and nothing else, within the grace period.

        Args:
            signum: what they are told first.
            then: is called when they have been told.
        """
        if isinstance(self.workers, CommandWorkers):
            told = self._grace_period.stopped and self._heard_soon(signum)
            self.workers.stop(signum, told=told, then=then)
            self.workers.close(signum)
            if self.factory.lost:
                _end_orphans()
        elif self.workers is not None:
            self._grace_period.open()
            then()
            self.workers.close(signum, timeout=max(1, int(min(self._grace_period.left, _LONGEST_WAIT))))

    def close(self) -> None:
        """End the factory, and whatever there still is of what it has started."""
        self.factory.close()

    def _start_commands(self, common: dict[str, Any]) -> CommandWorkers:
        """Start workers that are commands, forked if possible."""
        try:
            try:
                return self._start_with_factory(common)
            except FactoryLostError as error:
                say(f"{error}: workers are started by exec")
                self.factory.close()
                self.factory = spawn(self.factory.mask)
                return self._start_with_factory(common)
        except (OSError, FactoryLostError) as error:
            raise HpcLaunchError(f"{self._context.host}: {error}") from error

    def _start_with_factory(self, common: dict[str, Any]) -> CommandWorkers:
        workers = CommandWorkers(
            **common,
            factory=self.factory,
            forked=self.factory.forks,
            group=self._context.plan.settings.no_python,
            grace_period=self._grace_period,
            job=self._context.job.path,
            secret_names=self._context.plan.settings.secret_names,
            cpus=self._cpus,
        )
        workers.start()
        return workers

    def _start_by_torch(self, spec: WorkerSpec, common: dict[str, Any]) -> PContext:
        """Start workers as torch does: functions, and commands bound by --numa-binding."""
        settings = self._context.plan.settings
        # torch adds these to the environment of this process, and takes nothing away (SubprocessHandler).
        hidden = dict.fromkeys(secret.VARIABLES & self._environ.keys(), "")
        common["envs"] = {local: {**hidden, **environ} for local, environ in common["envs"].items()}
        # Older releases of torch do not know of it.
        more: dict[str, Any] = {} if settings.numa_binding is None else {"numa_options": spec.numa_options}
        try:
            workers: PContext = start_processes(**common, start_method=settings.start_method, **more)
        except (RuntimeError, AssertionError, ValueError, OSError) as error:
            if settings.numa_binding is None:
                raise
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise ContextError(
                f"--numa-binding {settings.numa_binding}: {reason}; leave it out, or see torch's numa/binding.py"
            ) from error
        with contextlib.suppress(FactoryLostError):
            self.factory.adopt([*workers.pids().values()])  # so that they do not outlive this agent either
        return workers

    def _cpus(self, worker: int) -> tuple[int, ...]:
        """The CPUs of one of them; none where it is not bound."""
        shares = self._context.plan.shares
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
    attempt = Attempt(
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
            place=Place(
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
