"""The agent: torch's elastic agent, with workers, environments and rounds of our own.

It is a subclass of torch's LocalElasticAgent. With any other rendezvous backend torch's loop runs it; with `slurm` the
loop is the one here, in which all agents do the same at the same time.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, cast

from torch.distributed import Store  # type: ignore[attr-defined]  # public, but its types do not export it
from torch.distributed.elastic.agent.server.api import RunResult, Worker, WorkerGroup, WorkerSpec, WorkerState
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.events.api import Event, EventSource
from torch.distributed.elastic.multiprocessing import LogsSpecs, PContext, start_processes
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure
from torch.distributed.elastic.rendezvous import RendezvousHandler

from hpc_launch.elastic import ending, hang, surroundings
from hpc_launch.elastic.console import duration, say
from hpc_launch.elastic.environment import Attempt, Place, worker_environment
from hpc_launch.elastic.hang import Activity, HangWatch
from hpc_launch.elastic.logs import JobLogs
from hpc_launch.elastic.moving import MovingRendezvous, SpareReleased
from hpc_launch.elastic.notices import Notices
from hpc_launch.elastic.outlook import Outlook
from hpc_launch.elastic.recording import Recorder
from hpc_launch.elastic.rendezvous import SlurmRendezvous
from hpc_launch.elastic.rounds import Ending, RoundEnd
from hpc_launch.elastic.signals import Signals
from hpc_launch.elastic.window import SlurmFacts, Window
from hpc_launch.elastic.workers import (
    CommandWorkers,
    Wakeup,
    hidden_variables,
    replace_local_rank,
    status_of,
    wakeup,
)
from hpc_launch.errors import ContextError, HpcLaunchError, LogDirError, RendezvousError
from hpc_launch.node import processes
from hpc_launch.plan import derive
from hpc_launch.plan.model import Plan
from hpc_launch.records import causes, directory, events, faults, telling
from hpc_launch.records.directory import JobDirectory
from hpc_launch.records.stacks import HANG
from hpc_launch.settings import Origin
from hpc_launch.slurm import controller
from hpc_launch.slurm.environment import requeue_id
from hpc_launch.slurm.job import JobRecord
from hpc_launch.warm.factory import Factory, FactoryLostError, spawn
from hpc_launch.warm.server import KILL_SECONDS

# How long Slurm may take to signal the other processes of a task, where it signals them all.
_OTHERS_SECONDS = 0.1

# Under this name the agents share what Slurm says, and so often they ask for it while workers end.
_FACTS = "slurm"
_FACTS_SECONDS = 1.0

# How long Slurm's answer is waited for before it is said how long the workers have.
_ANSWER_SECONDS = 1.0

# A failure that looks as if it followed another one is reported when nobody has reported that one for so long.
_SYMPTOM_SECONDS = 1.0
_LOOK_SECONDS = 0.05

# How long the other agents may take to write down what they know of a failure, once the workers here have ended.
_RECORDS_SECONDS = 5.0

# torch waits for workers of its own making in whole seconds, and not forever.
_LONGEST_WAIT = 1 << 20


class Agent(LocalElasticAgent):
    """One node's agent.

    Attributes:
        end: how the run ended, once it has.
    """

    def __init__(
        self,
        spec: WorkerSpec,
        plan: Plan,
        environ: Mapping[str, str],
        logs_specs: LogsSpecs | None,
        *,
        factory: Factory,
        signals: Signals,
        outlook: Callable[[Plan], Outlook | None],
    ) -> None:
        """Prepare it.

        Args:
            spec: torch's own.
            plan: what to do.
            environ: the environment that the workers' own is made from.
            logs_specs: where output goes, if somebody else decides.
            factory: makes the workers.
            signals: what has come to this process.
            outlook: begins to ask Slurm about the end of the job, where a plan makes that this agent's task.
        """
        # The time out of torch's exit barrier, for other backends: a slow node may finish as late as the job lives.
        super().__init__(
            # Ours are made for each attempt: they need its number.
            spec,
            cast("LogsSpecs", logs_specs),
            start_method=plan.settings.start_method,
            exit_barrier_timeout=365 * 24 * 3600.0,
        )
        self.end: RoundEnd | None = None
        self._plan = plan
        self._whole = plan.world
        self._environ = environ
        self._foreign_logs = logs_specs
        self._logs: JobLogs | None = None
        self._recorder = Recorder(plan, environ)
        # The first node may choose another name for all; other backends have no way to agree on one.
        self._job = JobDirectory(plan.log_root, plan.job_name or derive.local_job_name(time.time(), os.getpid()))
        self._first_attempt = 0
        self._attempt = -1
        self._stop: RoundEnd | None = None
        self._factory = factory
        self._signals = signals
        self._begin_outlook = outlook
        self._outlook: Outlook | None = None
        self._window = Window(_grace(plan, environ), self._slurm_facts, signals)
        self._facts = SlurmFacts()
        self._next_facts = 0.0
        self._hang: HangWatch | None = None
        self._told_of_disk = False
        self._notices = Notices(lambda: signals.notices, self._heard, self._send)
        if isinstance(spec.rdzv_handler, SlurmRendezvous):
            spec.rdzv_handler.observer = self._recorder.say

    @property
    def job(self) -> JobDirectory:
        """The job directory."""
        return self._job

    @property
    def begun(self) -> bool:
        """Whether there has been an attempt."""
        return self._attempt >= 0

    @property
    def attempts(self) -> tuple[int, int]:
        """The numbers of the first and of the last attempt of this run, in the job directory."""
        return self._first_attempt, self._first_attempt + max(0, self._attempt)

    def slurm_record(self) -> JobRecord | None:
        """What Slurm says of the job now that the run has ended; None where it says nothing."""
        if self._outlook is None:
            return controller.ask_job(requeue_id(self._environ))
        return self._outlook.asked_now()

    @property
    def noticed(self) -> bool:
        """Whether the workers have been told of a notice signal."""
        return self._notices.told

    @property
    def first(self) -> bool:
        """Whether this agent acts for all when the run has ended."""
        handler = self._worker_group.spec.rdzv_handler
        return handler.leads if isinstance(handler, MovingRendezvous) else self._plan.world.leader

    def follow_slurm(self) -> None:
        """Begin to ask Slurm about the end of the job, if that is this agent's task by now."""
        if self._outlook is None:
            self._outlook = self._begin_outlook(self._plan)

    # ---- one attempt

    def _rendezvous(self, worker_group: WorkerGroup) -> None:
        with self._signals.raising():
            super()._rendezvous(worker_group)
        handler = worker_group.spec.rdzv_handler
        if isinstance(handler, MovingRendezvous):
            self._plan = dataclasses.replace(self._plan, world=handler.world(self._whole))
            self._recorder.moved(self._plan)
            self.follow_slurm()
        if isinstance(handler, SlurmRendezvous):
            self._attempt = handler.round_number
            self._remaining_restarts = max(0, worker_group.spec.max_restarts - self._attempt)
            self._job = JobDirectory(self._plan.log_root, handler.plan.job)
            self._first_attempt = handler.plan.first_attempt
        else:
            # Other backends know no common number; torch's agents count their own restarts.
            self._attempt = worker_group.spec.max_restarts - self._remaining_restarts
            if not self._recorder.opened:
                self._first_attempt = self._job.next_attempt()
        self._open_records(worker_group.workers[0].world_size)

    def _open_records(self, world_size: int) -> None:
        """Write down the attempt that begins."""
        if not self._recorder.opened:
            self._recorder.open(self._job, self._first_attempt)
            if self._plan.world.leader:
                plan = self._job.plan(self._first_attempt)
                directory.write_json(plan, {**self._plan.as_dict(), **surroundings.describe(self._environ)})
                directory.point_latest(self._job.last_plan, f"{plan.parent.name}/{plan.name}")
                directory.point_latest(self._job.root / "latest", self._job.job)
            if self._plan.shares:
                threads, shares = self._plan.omp_num_threads, [share.as_dict() for share in self._plan.shares]
                self._recorder.say(
                    events.BINDING, why=self._plan.binding.reason, omp_num_threads=threads, shares=shares
                )
        label = self._first_attempt + self._attempt
        if self._plan.world.leader:
            with contextlib.suppress(*[LogDirError] if self._attempt else []):  # a disk that is full now ends no run
                directory.make(self._job.attempt(label))
            directory.point_latest(self._job.path / "latest", self._job.attempt(label).name)
        self._recorder.begin(label, world_size)

    def _assign_worker_ranks(
        self, store: Store, group_rank: int, group_world_size: int, spec: WorkerSpec
    ) -> list[Worker]:
        """The ranks of the workers here; where a node may be gone the next moment, without asking the others."""
        handler = spec.rdzv_handler
        if not isinstance(handler, MovingRendezvous):
            workers: list[Worker] = super()._assign_worker_ranks(store, group_rank, group_world_size, spec)
            return workers
        sizes = handler.plan.workers
        first, whole = sum(sizes[:group_rank]), sum(sizes)
        return [Worker(local, first + local, first + local, whole, whole) for local in range(spec.local_world_size)]

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, Any]:
        self._signals.handle()
        spec = worker_group.spec
        environs = {worker.local_rank: self._environment(worker, worker_group) for worker in worker_group.workers}
        self._setup_local_watchdog(envs=environs)
        self._setup_healthcheck()
        logs: LogsSpecs
        if self._foreign_logs is not None:
            logs = self._foreign_logs
        else:
            logs = self._logs = JobLogs(self._plan.settings, self._job, self._plan.world.host, self._logs)
        arguments: dict[int, tuple[Any, ...]] = {
            worker.local_rank: replace_local_rank(spec.args, int(environs[worker.local_rank]["LOCAL_RANK"]))
            for worker in worker_group.workers
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
        if callable(spec.entrypoint) or self._plan.settings.numa_binding:
            self._pcontext = self._start_by_torch(common)
            self._signals.handle()  # torch has put its own handlers there
        else:
            self._pcontext = self._start_commands(common)
        if self._logs is not None:
            self._logs.start()
        pids: dict[int, Any] = self._pcontext.pids()
        self._notices.begin([*pids.values()])
        self._hang = self._hang_watch({worker.global_rank: pids[worker.local_rank] for worker in worker_group.workers})
        with self._recorder.together():
            for worker in worker_group.workers:
                self._recorder.started(worker.local_rank, worker.global_rank, self._pcontext)
        return pids

    def _hang_watch(self, pids: Mapping[int, int]) -> HangWatch | None:
        """What watches whether this attempt hangs; None where nobody asked for it."""
        plan, world = self._plan, self._plan.world
        if not plan.settings.hang_timeout:
            return None
        label = self._first_attempt + self._attempt
        files = [self._job.rank(label, world.host, rank) for rank in pids]
        watched = [path for one in files for path in (one.out, one.err)] + [self._job.progress(rank) for rank in pids]
        return HangWatch(
            timeout=plan.settings.hang_timeout,
            job=self._job,
            attempt=label,
            host=world.host,
            agents=world.agents,
            agent=world.agent_rank,
            leader=world.leader,
            workers=lambda: {rank: pid for rank, pid in pids.items() if processes.alive(pid)},
            activity=Activity(watched),
        )

    def _start_commands(self, common: dict[str, Any]) -> CommandWorkers:
        """Start workers that are commands, forked if possible."""
        try:
            try:
                return self._start_with(self._factory, common)
            except FactoryLostError as error:
                say(f"{error}: workers are started by exec")
                self._factory.close()
                self._factory = spawn(self._factory.mask)
                return self._start_with(self._factory, common)
        except (OSError, FactoryLostError) as error:
            raise HpcLaunchError(f"{self._plan.world.host}: {error}") from error

    def _start_with(self, factory: Factory, common: dict[str, Any]) -> CommandWorkers:
        settings = self._plan.settings
        workers = CommandWorkers(
            **common,
            factory=factory,
            forked=factory.forks,
            group=settings.no_python,
            window=self._window,
            cpus=self._cpus,
        )
        workers.start()
        return workers

    def _cpus(self, worker: int) -> tuple[int, ...]:
        """The CPUs of one worker of this agent; none where it is not bound."""
        shares = self._plan.shares
        return shares[worker].cpus if shares else ()

    def _start_by_torch(self, common: dict[str, Any]) -> PContext:
        """Start workers as torch does: functions, and commands bound by --numa-binding."""
        binding = self._plan.settings.numa_binding
        if binding is None:
            return self._adopted(start_processes(**common, start_method=self._start_method))
        options = self._worker_group.spec.numa_options
        try:
            return self._adopted(start_processes(**common, start_method=self._start_method, numa_options=options))
        except (RuntimeError, AssertionError, ValueError, OSError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise ContextError(
                f"--numa-binding {binding}: {reason}; leave it out, or see torch's numa/binding.py"
            ) from error

    def _adopted(self, workers: PContext) -> PContext:
        """See that workers which torch has started do not outlive this agent either."""
        with contextlib.suppress(FactoryLostError):
            self._factory.adopt([*workers.pids().values()])
        return workers

    def _environment(self, worker: Worker, group: WorkerGroup) -> dict[str, str]:
        plan, world = self._plan, self._plan.world
        handler = group.spec.rdzv_handler
        one_each = world.task_per_rank
        place = Place(
            rank=worker.global_rank,
            world_size=worker.world_size,
            local_rank=world.local_agent if one_each else worker.local_rank,
            local_world_size=world.local_agents if one_each else group.spec.local_world_size,
            role_rank=worker.role_rank,
            role_world_size=worker.role_world_size,
        )
        attempt = Attempt(
            number=self._attempt,
            label=self._first_attempt + self._attempt,
            master_addr=str(group.master_addr),
            master_port=int(cast("int", group.master_port)),
            max_restarts=group.spec.max_restarts,
            run_id=handler.get_run_id(),
            role=group.spec.role,
            use_agent_store=handler.use_agent_store,
            signals=plan.settings.signals_to_handle,
            notices=plan.settings.notice_signals,
            agent_workers=handler.plan.workers if isinstance(handler, SlurmRendezvous) else (),
        )
        # Backends that number nodes by themselves (c10d) are right about it.
        environ = worker_environment(
            self._environ,
            place=place,
            attempt=attempt,
            world=world,
            devices=plan.devices,
            isolated=plan.isolated,
            omp_num_threads=plan.omp_num_threads,
            slurm_env=plan.settings.slurm_env,
            job_directory=str(self._job.path),
            interface=handler.interface if isinstance(handler, SlurmRendezvous) else "",
            gpu_bind=plan.settings.gpu_bind,
        )
        if not isinstance(handler, SlurmRendezvous):
            environ["GROUP_RANK"], environ["GROUP_WORLD_SIZE"] = str(group.group_rank), str(group.group_world_size)
        return environ

    def _construct_event(self, state: str, *args: Any, **kwargs: Any) -> Event:
        """Make torch's events only for those who read them: they look up the host's full name, which can take long."""
        if self._plan.settings.event_log_handler != "null":
            return super()._construct_event(state, *args, **kwargs)
        return Event(state, EventSource.AGENT)

    def _restart_workers(self, worker_group: WorkerGroup) -> None:
        """Begin another attempt, as torch's own loop does it."""
        failed = causes.first(self._recorder.workers)
        cause = telling.line(failed) if failed else "the group has changed"
        self._recorder.say(events.ROUND_ENDED, **_facts(self._own_end(Ending.RESTART, 1, cause)))
        super()._restart_workers(worker_group)

    def _stop_workers(self, worker_group: WorkerGroup, **_: Any) -> None:  # noqa: ARG002 - there is one group
        self._shutdown()

    def _shutdown(self, death_sig: signal.Signals = signal.SIGTERM, *_: Any, **__: Any) -> None:
        """End the workers of this attempt, and nothing else.

        Not torch's own: its further arguments differ between releases, and that of torch 2.4 closes the rendezvous.
        """
        for helper in (self._worker_watchdog, getattr(self, "_health_check_server", None)):
            if helper is not None:
                helper.stop()
        self._worker_watchdog = self._health_check_server = None
        if isinstance(self._pcontext, CommandWorkers):
            told = self._window.stopped and self._heard_soon(death_sig)
            self._pcontext.stop(death_sig, told=told, then=self._tell_stop)
            self._pcontext.close(death_sig)
            if self._factory.lost:
                self._end_orphans()
        elif self._pcontext is not None:
            self._window.open()
            self._tell_stop()
            self._pcontext.close(death_sig, timeout=max(1, int(min(self._window.left, _LONGEST_WAIT))))
        if self._logs is not None:
            self._logs.finish()
            self._mind_the_disk(self._worker_group.spec.rdzv_handler)
        self._recorder.finish(
            self._pcontext, "" if self._worker_group.state is WorkerState.SUCCEEDED else death_sig.name
        )

    @staticmethod
    def _end_orphans() -> None:
        """End what a factory that was killed has left to this process, its subreaper."""
        deadline = time.monotonic() + KILL_SECONDS
        while (orphans := processes.descendants(os.getpid())) and time.monotonic() < deadline:
            for orphan in orphans:
                processes.send(orphan, signal.SIGKILL)
            time.sleep(_OTHERS_SECONDS / 10)

    def close(self) -> None:
        """End the factory, and whatever there still is of what it has started; show the rest of the output."""
        self._factory.close()
        if self._logs is not None:
            before = self._signals.stop
            self._logs.close(lambda: self._signals.hurry or self._signals.stop is not before)

    def _mind_the_disk(self, handler: RendezvousHandler) -> None:
        """Say once, on one node for all, that nothing can be written any more."""
        problem = self._logs.problem if self._logs is not None else None
        if problem is None or self._told_of_disk:
            return
        self._told_of_disk = True
        if not isinstance(handler, SlurmRendezvous) or handler.first("disk"):
            reason = problem.strerror or problem
            say(
                f"{self._plan.world.host}: cannot write in {self._job.path}: {reason}: training goes on, and what the "
                "workers print is lost until there is room again"
            )

    # ---- signals

    def _heard(self, signum: int) -> bool:
        """Whether Slurm has signalled the workers itself: then it has signalled the factory as well."""
        try:
            return self._factory.heard(signum)
        except FactoryLostError:
            return False

    def _heard_soon(self, signum: int) -> bool:
        """The same of a signal that comes now: Slurm signals the processes of a task one after the other."""
        if self._plan.world.origin is not Origin.STEP:
            return False
        deadline = time.monotonic() + _OTHERS_SECONDS
        while not (heard := self._heard(signum)) and time.monotonic() < deadline:
            time.sleep(_OTHERS_SECONDS / 10)
        return heard

    def _send(self, pid: int, signum: int) -> None:
        if isinstance(self._pcontext, CommandWorkers):
            with contextlib.suppress(FactoryLostError):
                self._pcontext.send(pid, signum)
        else:
            processes.send(pid, signum)

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        result: RunResult = super()._monitor_workers(worker_group)
        self._recorder.look(self._pcontext)
        if self._pcontext is not None:
            self._pass_on_notices(worker_group.spec.rdzv_handler, self._pcontext)
            self._mind_the_disk(worker_group.spec.rdzv_handler)
        if self._outlook is not None:
            self._slurm_facts()  # the others are to have them when they need them
        return result

    def _pass_on_notices(self, handler: RendezvousHandler, workers: PContext) -> None:
        pids = workers.running if isinstance(workers, CommandWorkers) else workers.pids()
        others = handler.notices() if isinstance(handler, SlurmRendezvous) else {}
        for name, number in self._notices.turn([*pids.values()], others).items():
            if isinstance(handler, SlurmRendezvous):
                handler.tell_notice(name, number)
            self._recorder.say(events.NOTICE, signal=name, number=number)
            if self._outlook is not None:
                self._outlook.ask_again()
            if self._plan.world.leader:
                left = self._outlook.left if self._outlook is not None else None
                end = f"; the job ends in {duration(left)}" if left is not None else ""
                say(f"{name}: the workers are told{end}")

    def _slurm_facts(self) -> SlurmFacts | None:
        """What Slurm says about the time between its signals; None outside of a step."""
        handler = self._worker_group.spec.rdzv_handler
        if self._plan.world.origin is not Origin.STEP:
            return None
        if isinstance(handler, SlurmRendezvous):
            now = time.monotonic()
            if self._outlook is not None and self._outlook.facts != self._facts:
                self._facts = self._outlook.facts
                with contextlib.suppress(RendezvousError):
                    handler.share(_FACTS, self._facts)
            elif self._outlook is None and now >= self._next_facts:
                self._next_facts = now + _FACTS_SECONDS
                self._facts = handler.shared(_FACTS, SlurmFacts) or self._facts
        return self._facts

    # ---- all attempts

    def _invoke_run(self, role: str = "default") -> RunResult:
        handler = self._worker_group.spec.rdzv_handler
        if not isinstance(handler, SlurmRendezvous):
            result: RunResult = super()._invoke_run(role)
            if not result.is_failed():
                self._recorder.say(events.ROUND_ENDED, **_facts(self._own_end(Ending.DONE, 0, "")))
            return result
        with wakeup() as alarm:
            while True:
                try:
                    self._initialize_workers(self._worker_group)
                except SpareReleased as released:
                    self.end = released.end
                    well = released.end.ending == Ending.DONE.value
                    return RunResult(WorkerState.SUCCEEDED if well else WorkerState.FAILED)
                self._recorder.clock(handler.clock())
                result, end = self._follow_round(handler, alarm)
                self._recorder.say(events.ROUND_ENDED, **_facts(end))
                self._window.stopped = bool(end.signal)
                if self._window.stopped:
                    self._stop = end
                    if self._outlook is not None:
                        self._outlook.ask_again()
                # Who waits for a worker that is gone would not hear of anything less than SIGKILL.
                self._shutdown(signal.Signals[end.signal or ("SIGKILL" if end.lost else "SIGTERM")])
                if end.ending != Ending.DONE.value and not end.signal:
                    self._tell(end, handler)
                if end.ending != Ending.RESTART.value:
                    self.end = end
                    return result

    def _follow_round(self, handler: SlurmRendezvous, alarm: Wakeup) -> tuple[RunResult, RoundEnd]:
        """Watch the workers here and the word of the others, until the round has ended."""
        group = self._worker_group
        reported = False
        patience = math.inf
        while True:
            result: RunResult = self._monitor_workers(group)
            group.state = result.state
            stop = self._signals.stop
            if result.state is WorkerState.SUCCEEDED:
                if not reported:
                    handler.report_done()
                    reported = True
            elif stop is None and result.state is not WorkerState.HEALTHY:
                status, cause, follows = self._cause(result.failures)
                patience = min(patience, time.monotonic() + (_SYMPTOM_SECONDS if follows else 0))
                if time.monotonic() >= patience or not follows:
                    failed = RunResult(WorkerState.FAILED, failures=result.failures)
                    fault = faults.any_of(self._recorder.workers)
                    return failed, handler.report_failure(status, cause, own=not follows, fault=fault)
            if stop is not None:
                handler.report_end(128 + stop, f"stopped by {stop.name} on {self._plan.world.host}", stop.name)
            end = handler.end() or self._hanging(handler)
            if end is not None:
                if end.ending == Ending.DONE.value:
                    return result, end
                return RunResult(WorkerState.FAILED), end
            pause = min(group.spec.monitor_interval, self._notices.pause, self._hang.pause if self._hang else math.inf)
            alarm.wait(pause if patience == math.inf else min(pause, _LOOK_SECONDS), self._factory)

    def _hanging(self, handler: SlurmRendezvous) -> RoundEnd | None:
        """Watch whether the job hangs; the end of the round if it does, and all stacks have been taken."""
        verdict = self._hang.turn(handler) if self._hang is not None else None
        if verdict is None:
            return None
        stacks = f"; stacks in {verdict.path}" if verdict.path is not None else ""
        say(f"attempt {self._first_attempt + self._attempt}: {verdict.cause}{stacks}")
        name = verdict.path.name if verdict.path is not None else ""
        self._recorder.say(events.HANG, seconds=self._plan.settings.hang_timeout, cause=verdict.cause, stacks=name)
        return handler.report_failure(hang.STATUS, verdict.cause, own=False)

    def _cause(self, failures: Mapping[int, ProcessFailure]) -> tuple[int, str, bool]:
        """The status and the cause of a failure here, and whether it looks as if it followed another one."""
        self._recorder.failed(failures.values())
        worker = causes.first(self._recorder.workers)
        if worker is None or worker.exitcode is None:
            return 70, f"the agent on {self._plan.world.host} lost track of its workers", False
        return status_of(worker.exitcode), telling.line(worker), bool(causes.follows(worker, None))

    def _tell(self, end: RoundEnd, handler: SlurmRendezvous) -> None:
        """Say how an attempt failed, on the first node: at length if it was the last one."""
        if not self._plan.world.leader:
            return
        label = self._first_attempt + self._attempt
        if end.ending == Ending.RESTART.value:
            # Where a job hangs was said when it was seen.
            say(f"attempt {label}: {'it hangs' if end.cause.startswith(HANG) else end.cause}; starting again")
            return
        cause = ending.root_cause(self._job, label, Counter(handler.hosts), _RECORDS_SECONDS)
        say(f"attempt {label}: " + "\n    ".join(telling.block(cause) if cause else [end.cause]))

    def _tell_stop(self) -> None:
        """Say what stops the run, and how long that may take, when the workers have been told."""
        if self._stop is None or not self._plan.world.leader:
            return
        if self._outlook is not None:
            self._outlook.answer(_ANSWER_SECONDS)
        left = duration(self._window.left)
        say(f"attempt {self._first_attempt + self._attempt}: {self._stop.cause}; the workers have {left} to end")

    def left(self, error: HpcLaunchError | None) -> None:
        """Write down how the run ended for this agent."""
        self._recorder.left(error.exit_status if error else 0, str(error) if error else "")

    def _own_end(self, how: Ending, status: int, cause: str) -> RoundEnd:
        return RoundEnd(how.value, self._plan.world.agent_rank, self._plan.world.host, status, cause)

    def failure_of(self, result: RunResult) -> RoundEnd:
        """The end of a run under another backend, whose agents know only their own failures."""
        status, cause, _ = self._cause(result.failures)
        end = self._own_end(Ending.FAILED, status, cause)
        self._recorder.say(events.ROUND_ENDED, **_facts(end))
        found = causes.find(self._recorder.summary(end.cause))
        label = self._first_attempt + self._attempt
        say(f"attempt {label}: " + "\n    ".join(telling.block(found) if found else [cause]))
        return end


def _grace(plan: Plan, environ: Mapping[str, str]) -> float | None:
    """Seconds that workers have to end, if somebody has said so."""
    if plan.settings.shutdown_timeout is not None:
        return plan.settings.shutdown_timeout
    text = environ.get("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "")
    return float(text) if text.isdigit() else None


def _facts(end: RoundEnd) -> dict[str, Any]:
    return {"ending": end.ending, "by": end.host, "status": end.status, "cause": end.cause, "signal": end.signal}
